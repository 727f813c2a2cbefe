"""LLaVA 1.5: a square picture, one number of image tokens for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nsft_exp.images import CLIP_MEAN, CLIP_STD, Layout, Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

    from nsft_exp.batching import Pictures


class LlavaFamily:
    """How `LlavaForConditionalGeneration` reads images, made square by `mode` (`pad` or `crop`)."""

    tower = "vision_tower"
    projector = "multi_modal_projector"
    projector_parts: tuple[str, ...] = ("model.multi_modal_projector.",)

    def __init__(self, config: Any, mode: str) -> None:
        vision = config.vision_config
        self.patch_size = vision.patch_size
        self.strategy = config.vision_feature_select_strategy
        self.preprocessing = Preprocessing(vision.image_size, mode)
        self.num_image_tokens: int | None = (vision.image_size // vision.patch_size) ** 2 + int(
            self.strategy == "full"
        )

    def layout(self, size: tuple[int, int]) -> Layout:
        """The same for every picture."""
        return Layout(self.num_image_tokens or 0)

    def inputs(self, pictures: Pictures) -> dict[str, Tensor]:
        """Return the pictures as one tensor [N, 3, S, S]."""
        import torch

        return {"pixel_values": torch.stack(pictures.values)}

    def positions(self, ids: Tensor, grids: Sequence[tuple[int, ...] | None]) -> None:
        """Positions count tokens."""

    def processor(self, tokenizer: Any) -> Any:
        """Return a LlavaProcessor that pads or crops as the model was trained."""
        from transformers import LlavaProcessor
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
        from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

        size = self.preprocessing.size
        sizes = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        colours = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
        padded = self.preprocessing.mode == "pad"
        pictures = (
            LlavaImageProcessorPil(do_pad=True, **sizes, **colours)
            if padded
            else CLIPImageProcessorPil(**sizes)
        )
        return LlavaProcessor(
            image_processor=pictures,
            tokenizer=tokenizer,
            patch_size=self.patch_size,
            vision_feature_select_strategy=self.strategy,
            num_additional_image_tokens=1,  # CLIP's class token; without it one token too few is counted
        )
