"""What differs between model families: pictures to pixels, how many image tokens, features, positions.

Everything else (conversations, batching, generation, training, adapters) is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from nsft_exp.images import Layout

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from nsft_exp.batching import Pictures


class Preprocess(Protocol):
    """A picture as the vision tower's input. Its `repr` names everything that decides the result."""

    @property
    def max_bytes(self) -> int:
        """Bytes of the largest array that a picture can become."""

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return float32 pixels of an RGB picture."""


class Family(Protocol):
    """How one family of models reads images. A new family is one module that implements this."""

    tower: str
    """The vision tower's name inside `model.model`: frozen, in evaluation mode."""
    projector: str
    """The projector's name inside `model.model`, as PEFT's `modules_to_save` finds it."""
    projector_parts: tuple[str, ...]
    """The beginnings of the names of all weights that full training counts to the projector."""
    num_image_tokens: int | None
    """The image tokens of every picture; None: they depend on its size."""

    @property
    def preprocessing(self) -> Preprocess:
        """A picture to the vision tower's input."""

    def layout(self, size: tuple[int, int]) -> Layout:
        """Return the layout of a picture of (width, height) pixels."""

    def inputs(self, pictures: Pictures) -> dict[str, Tensor]:
        """Return what the Hugging Face class is given for these pictures, by name."""

    def positions(self, ids: Tensor, grids: Sequence[tuple[int, ...] | None]) -> Tensor | None:
        """Return the position ids [axes, B, T] of ids [B, T] without padding on the left.

        `grids` holds each row's grid, None for a row without an image. None: positions count tokens.
        """

    def processor(self, tokenizer: Any) -> Any:
        """Return the Hugging Face processor that does to images what `preprocessing` does.

        Its chat template is the caller's to set; its `save_pretrained` writes the tokenizer too.
        """


@dataclass(frozen=True)
class Features:
    """Projected image features: `parts[m]` [n_m, H] of the m-th row with an image, and its grid."""

    parts: tuple[Tensor, ...]
    grids: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, rows: Tensor) -> Features:
        """The features of these rows; a picture may be there several times."""
        places = rows.tolist()
        return Features(tuple(self.parts[n] for n in places), tuple(self.grids[n] for n in places))

    def detach(self) -> Features:
        """The same features outside of the graph."""
        return Features(tuple(part.detach() for part in self.parts), self.grids)
