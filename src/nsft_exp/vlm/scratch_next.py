"""A small LLaVA-NeXT model made in memory from its sizes and a seed: for tests and `preset=debug`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nsft_exp.vlm.llava_next import LlavaNextFamily
from nsft_exp.vlm.scratch import ScratchLlava

if TYPE_CHECKING:
    from nsft_exp.vlm.family import Family

GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""The hub's grids (LLaVA-NeXT's `image_grid_pinpoints`) in tiles: rows, columns."""


@dataclass(eq=False)
class ScratchLlavaNext(ScratchLlava):
    """A random `LlavaNextForConditionalGeneration`: ScratchLlava's parts, tiles of `image_size`."""

    model_type: ClassVar[str] = "llava_next"
    preprocessings: ClassVar[tuple[str, ...]] = ("anyres",)

    preprocessing: str = "anyres"
    grids: Sequence[Sequence[int]] = GRIDS
    """(rows, columns) of tiles that a picture may be cut into."""

    def family(self, config: Any) -> Family:
        """How this model reads images."""
        return LlavaNextFamily(config)

    def _config(self, tokenizer: Any) -> Any:
        from transformers import LlavaNextConfig

        size = self.image_size
        return LlavaNextConfig(
            vision_config=self.tower_config(),
            text_config=self._decoder_config(tokenizer),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_grid_pinpoints=[[size * rows, size * columns] for rows, columns in self.grids],
            vision_feature_layer=self.vision_feature_layer,
            tie_word_embeddings=self.tie_embeddings,
        )

    def _tokenizer(self) -> Any:
        """As on the hub, without a token for padding: padding is `<unk>`."""
        tokenizer = super()._tokenizer()
        tokenizer.pad_token = tokenizer.unk_token
        return tokenizer
