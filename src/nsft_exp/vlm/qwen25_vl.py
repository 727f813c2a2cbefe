"""Qwen2.5-VL: a picture at its own resolution as patches, rows and columns in the positions (M-RoPE)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from nsft_exp.images import CLIP_MEAN, CLIP_STD, Layout, normalised
from nsft_exp.records import UserError
from nsft_exp.vlm.hf import HFModel

if TYPE_CHECKING:
    from torch import Tensor

    from nsft_exp.batching import Pictures
    from nsft_exp.vlm.family import Family


class Qwen25VL(HFModel):
    """A `Qwen2_5_VLForConditionalGeneration` in a folder, or on the hub (see HFModel).

    `preprocessing` is `native`: a picture keeps its shape, and its area is brought between `min_pixels` and
    `max_pixels` (a token is 784 pixels).
    """

    model_type = "qwen2_5_vl"
    preprocessings = ("native",)
    prompt_styles = ("chatml",)
    unquantized = ("model.visual", "lm_head")

    def __init__(
        self,
        path: str | None,
        revision: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch_size: int = 32,
        preprocessing: str | None = None,
        exif: str = "apply",
        prompt_style: str | None = None,
        max_length: int | None = None,
        local_files_only: bool = False,
        min_pixels: int = 3136,
        max_pixels: int = 1_003_520,
        engine: str = "hf",
        python: str | None = None,
        server: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            path,
            revision,
            dtype,
            device,
            batch_size,
            preprocessing,
            exif,
            prompt_style,
            max_length,
            local_files_only,
            engine,
            python,
            server,
        )
        if not 0 < min_pixels <= max_pixels:
            raise UserError(
                f"vlm.max_pixels={max_pixels}: must not be below vlm.min_pixels={min_pixels}; change one"
            )
        self.min_pixels, self.max_pixels = min_pixels, max_pixels

    def family(self, config: Any) -> Family:
        """How this model reads images."""
        return Qwen25VLFamily(config, self.min_pixels, self.max_pixels)


@dataclass(frozen=True)
class NativeResolution:
    """A picture as flat patches of `patch` pixels, `merge` x `merge` neighbours after one another.

    A still picture is a film of `frames` equal frames. The arrays equal those of transformers' PIL image
    processor.
    """

    patch: int
    merge: int
    frames: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @property
    def max_bytes(self) -> int:
        """Bytes of the largest array; a very long picture may go a little above `max_pixels`."""
        return 12 * self.frames * self.max_pixels

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return float32 [patches, 3 * frames * patch * patch]."""
        pixels = normalised(
            image.resize(self.target(image.size), Image.Resampling.BICUBIC), self.mean, self.std
        )
        _, height, width = pixels.shape
        cell = self.patch * self.merge
        blocks = pixels.reshape(
            3, height // cell, self.merge, self.patch, width // cell, self.merge, self.patch
        ).transpose(1, 4, 2, 5, 0, 3, 6)
        film = np.repeat(blocks[:, :, :, :, :, None], self.frames, axis=5)
        return film.reshape(-1, 3 * self.frames * self.patch * self.patch)

    def target(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) that a picture is scaled to: multiples of `patch * merge`.

        Raises UserError for a picture that is more than 200 times as long as wide.
        """
        width, height = size
        if max(size) > 200 * min(size):
            raise UserError(f"a picture of {width}x{height} is too narrow for this model; cut it")
        cell, area = self.patch * self.merge, width * height
        wide, high = (round(edge / cell) * cell for edge in size)
        if wide * high > self.max_pixels:
            shrink = math.sqrt(area / self.max_pixels)
            wide, high = (max(cell, math.floor(edge / shrink / cell) * cell) for edge in size)
        elif wide * high < self.min_pixels:
            grow = math.sqrt(self.min_pixels / area)
            wide, high = (math.ceil(edge * grow / cell) * cell for edge in size)
        return wide, high


class Qwen25VLFamily:
    """How `Qwen2_5_VLForConditionalGeneration` reads images; its projector is the tower's merger."""

    tower = "visual"
    projector = "visual.merger"
    projector_parts: tuple[str, ...] = ("model.visual.merger.",)
    num_image_tokens: int | None = None

    def __init__(self, config: Any, min_pixels: int, max_pixels: int) -> None:
        vision = config.vision_config
        self.image_token_id = config.image_token_id
        self.preprocessing = NativeResolution(
            vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size, min_pixels, max_pixels
        )

    def layout(self, size: tuple[int, int]) -> Layout:
        """Return the tokens of a picture and its (1, rows, columns) of patches."""
        wide, high = (edge // self.preprocessing.patch for edge in self.preprocessing.target(size))
        return Layout(wide * high // self.preprocessing.merge**2, (1, high, wide))

    def inputs(self, pictures: Pictures) -> dict[str, Tensor]:
        """Return all patches [N, values], and the pictures' (1, rows, columns), which say whose they are."""
        import torch

        pixels = torch.cat(pictures.values)
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor(pictures.grids, device=pixels.device)}

    def positions(self, ids: Tensor, grids: Sequence[tuple[int, ...] | None]) -> Tensor:
        """Return [3, B, T]: time, row and column. An image's tokens share one time; text goes on after it.

        Given to the model as they are: left to itself it counts tokens, silently, where it is not told which
        tokens are an image's.
        """
        import torch

        starts = (ids == self.image_token_id).int().argmax(1).tolist()
        rows = [self._row(ids.shape[1], *row) for row in zip(starts, grids, strict=True)]
        return torch.stack(rows, dim=1).to(ids.device)

    def _row(self, length: int, start: int, grid: tuple[int, ...] | None) -> Tensor:
        import torch

        count = torch.arange(length).expand(3, -1)
        if grid is None:
            return count
        high, wide = (edge // self.preprocessing.merge for edge in grid[1:])
        row, column = (
            x.flatten() for x in torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
        )
        image = start + torch.stack([torch.zeros_like(row), row, column])
        after = count[:, start + high * wide :] - high * wide + max(high, wide)
        return torch.cat([count[:, :start], image, after], dim=1)[:, :length]

    def processor(self, tokenizer: Any) -> Any:
        """Return a processor of images and text (see `images_only`)."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        how = self.preprocessing
        pictures = Qwen2VLImageProcessorPil(
            patch_size=how.patch,
            merge_size=how.merge,
            temporal_patch_size=how.frames,
            size={"shortest_edge": how.min_pixels, "longest_edge": how.max_pixels},
        )
        return images_only(pictures, tokenizer)


def images_only(image_processor: Any, tokenizer: Any, template: str | None = None) -> Any:
    """Return a Qwen2_5_VLProcessor without its part for videos, which needs torchvision.

    Saved are the image processor, the tokenizer and the template: AutoProcessor makes a whole processor from
    these files where torchvision is installed.
    """
    from transformers import Qwen2_5_VLProcessor

    class ImagesOnly(Qwen2_5_VLProcessor):
        """The processor with a missing part, which the library's own constructor does not take."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(argument)

        def save_pretrained(self, save_directory: str | Path, *_: Any, **__: Any) -> None:
            self.image_processor.save_pretrained(save_directory)
            self.tokenizer.save_pretrained(save_directory)
            (Path(save_directory) / "chat_template.jinja").write_text(str(self.chat_template), "utf-8")

    return ImagesOnly(image_processor=image_processor, tokenizer=tokenizer, chat_template=template)
