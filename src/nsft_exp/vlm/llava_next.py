"""LLaVA-NeXT: the whole picture and tiles of it at a higher resolution ("anyres")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from nsft_exp.images import CLIP_MEAN, CLIP_STD, Layout, normalised
from nsft_exp.vlm.hf import HFModel

if TYPE_CHECKING:
    from torch import Tensor

    from nsft_exp.batching import Pictures
    from nsft_exp.vlm.family import Family


class LlavaNext(HFModel):
    """A `LlavaNextForConditionalGeneration` in a folder, or on the hub (see HFModel).

    `preprocessing` is `anyres`, the only way that its image tokens are defined for. An image takes up to 2928
    tokens with the hub's grids, so that `recipe.max_length` must be larger than for LLaVA 1.5.
    """

    model_type = "llava_next"
    preprocessings = ("anyres",)

    def family(self, config: Any) -> Family:
        """How this model reads images."""
        return LlavaNextFamily(config)


@dataclass(frozen=True)
class AnyRes:
    """A picture as tiles of `size` x `size`: itself, squashed, then those of the best of some grids.

    `grids` are (height, width) in pixels, as transformers reads them. The arrays equal those of transformers'
    PIL image processor.
    """

    size: int
    grids: tuple[tuple[int, int], ...]
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @property
    def max_bytes(self) -> int:
        """Bytes of the largest array: the tiles of the largest grid and the whole picture."""
        return 12 * max(h * w + self.size**2 for h, w in self.grids)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return float32 [tiles, 3, size, size]."""
        side = self.size
        whole = image.resize((side, side), Image.Resampling.BICUBIC)
        large = self._on_grid(image)
        boxes = [
            (left, top, left + side, top + side)
            for top in range(0, large.height, side)
            for left in range(0, large.width, side)
        ]
        tiles = [whole, *(large.crop(box) for box in boxes)]
        return np.stack([normalised(tile, self.mean, self.std) for tile in tiles])

    def _on_grid(self, image: Image.Image) -> Image.Image:
        """The picture scaled into the middle of its best grid, black around it."""
        height, width = self.best_grid(image.size)
        across, down = width / image.width, height / image.height
        if across < down:
            target = (width, min(math.ceil(image.height * across), height))
        else:
            target = (min(math.ceil(image.width * down), width), height)
        canvas = Image.new("RGB", (width, height))
        scaled = image.resize(target, Image.Resampling.BICUBIC)
        canvas.paste(scaled, ((width - target[0]) // 2, (height - target[1]) // 2))
        return canvas

    def best_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the grid (height, width) for a picture of (width, height).

        The one that keeps most of the picture's pixels; then the one that wastes least; then the first.
        """
        wide, high = size

        def merit(grid: tuple[int, int]) -> tuple[int, int]:
            scale = min(grid[1] / wide, grid[0] / high)
            kept = min(int(wide * scale) * int(high * scale), wide * high)
            return kept, kept - grid[0] * grid[1]

        return max(self.grids, key=merit)


class LlavaNextFamily:
    """How `LlavaNextForConditionalGeneration` reads images."""

    tower = "vision_tower"
    projector = "multi_modal_projector"
    projector_parts: tuple[str, ...] = ("model.multi_modal_projector.", "model.image_newline")
    num_image_tokens: int | None = None

    def __init__(self, config: Any) -> None:
        vision = config.vision_config
        self.side = vision.image_size // vision.patch_size
        self.patch_size = vision.patch_size
        self.strategy = config.vision_feature_select_strategy
        grids = tuple((int(height), int(width)) for height, width in config.image_grid_pinpoints)
        self.preprocessing = AnyRes(vision.image_size, grids)

    def layout(self, size: tuple[int, int]) -> Layout:
        """Return the tokens of a picture and its (height, width).

        The whole picture's patches, and the patches of the grid without the rows or columns that are only
        padding, with one newline after each row (LLaVA-NeXT's `spatial_unpad`).
        """
        width, height = size
        tall, wide = (
            edge // self.preprocessing.size * self.side for edge in self.preprocessing.best_grid(size)
        )
        if width / height > wide / tall:
            tall -= (tall - int(round(height * (wide / width), 7))) // 2 * 2
        else:
            wide -= (wide - int(round(width * (tall / height), 7))) // 2 * 2
        whole = self.side**2 + int(self.strategy == "full")
        return Layout(whole + tall * (wide + 1), (height, width))

    def inputs(self, pictures: Pictures) -> dict[str, Tensor]:
        """Return all tiles [N, 3, S, S], and the pictures' (height, width), which say whose they are."""
        import torch

        return {"pixel_values": torch.cat(pictures.values), "image_sizes": torch.tensor(pictures.grids)}

    def positions(self, ids: Tensor, grids: Sequence[tuple[int, ...] | None]) -> None:
        """Positions count tokens."""

    def processor(self, tokenizer: Any) -> Any:
        """Return a LlavaNextProcessor with this model's grids."""
        from transformers import LlavaNextProcessor
        from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

        size = self.preprocessing.size
        pictures = LlavaNextImageProcessorPil(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_grid_pinpoints=[list(grid) for grid in self.preprocessing.grids],
        )
        return LlavaNextProcessor(
            image_processor=pictures,
            tokenizer=tokenizer,
            patch_size=self.patch_size,
            vision_feature_select_strategy=self.strategy,
            num_additional_image_tokens=1,  # CLIP's class token; without it one token too few is counted
        )
