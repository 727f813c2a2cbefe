"""Named views of an image: `clean`, noise on the vision tower's input (`diffusion:500`), a changed picture.

A view that draws at random carries what it draws from after an `@` (`diffusion:500@0|r12|0`), so that whoever
meets the name sees the same pixels. NumPy and PIL.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from nsft_exp.augment import AUGMENTATIONS, sizes
from nsft_exp.records import UserError

DIFFUSION_STEPS = 1000
"""Steps of the noise schedule (SeVa's and VCD's public code)."""


@dataclass(frozen=True)
class View:
    """What a view's name says: its kind, the step of its noise (`diffusion` only) and what it draws from."""

    kind: str
    step: int = 0
    draws: str = ""

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) of a picture of this size under the view."""
        return sizes(self.kind, size)

    def picture(self, image: Image.Image) -> Image.Image:
        """Return an RGB picture under the view; noise changes no picture, only what `pixels` gets."""
        if self.kind in AUGMENTATIONS:
            return AUGMENTATIONS[self.kind](image, self._generator())
        return image

    def pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Return the vision tower's input under the view: float32 of the same shape.

        Diffusion noise: x_t = sqrt(abar_t) x + sqrt(1 - abar_t) e with e standard normal, the closed form of
        q(x_t | x_0) (Ho et al. 2020, equation 4), on the normalised tensor as in SeVa's public code. Where a
        tensor holds a picture several times (tiles of LLaVA-NeXT, frames of Qwen2.5-VL) the noise differs.
        """
        if self.kind != "diffusion":
            return pixels
        kept = alphas_bar()[self.step]
        noise = self._generator().standard_normal(pixels.shape, dtype=np.float32)
        return np.float32(np.sqrt(kept)) * pixels + np.float32(np.sqrt(1 - kept)) * noise

    def _generator(self) -> np.random.Generator:
        content = hashlib.sha256(f"{self.kind}:{self.step}@{self.draws}".encode()).digest()
        return np.random.Generator(np.random.Philox(int.from_bytes(content[:16], "big")))


@lru_cache(maxsize=1024)
def view_named(name: str) -> View:
    """Return the view of this name. Raises UserError, naming the views that there are, for any other."""
    kind, _, draws = name.partition("@")
    kind, colon, step = kind.partition(":")
    if kind == "diffusion" and step.isdecimal() and int(step) < DIFFUSION_STEPS:
        return View(kind, int(step), draws)
    if colon or (kind != "clean" and kind not in AUGMENTATIONS):
        raise UserError(
            f"there is no view {name!r}; there are clean, diffusion:<step below {DIFFUSION_STEPS}>, "
            f"{', '.join(AUGMENTATIONS)}"
        )
    return View(kind, draws=draws)


def drawn(name: str, seed: int, key: str, number: int = 0) -> str:
    """Return the view's name with what it draws from: the seed, a record's id and the sample's number."""
    return name if name == "clean" else f"{name}@{seed}|{key}|{number}"


@lru_cache(maxsize=1)
def alphas_bar() -> np.ndarray:
    """Return abar_t, the squared share of the signal after step t: float64 [1000], decreasing.

    beta_t = sigmoid(s_t) (0.005 - 1e-5) + 1e-5 with s from -6 to 6 (SeVa's and VCD's public code).
    """
    betas = (0.005 - 1e-5) / (1 + np.exp(-np.linspace(-6, 6, DIFFUSION_STEPS))) + 1e-5
    found: np.ndarray = np.cumprod(1 - betas)
    return found
