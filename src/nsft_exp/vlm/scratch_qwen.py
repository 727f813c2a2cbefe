"""A small Qwen2.5-VL model made in memory from its sizes and a seed: for tests and `preset=debug`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsft_exp.records import UserError
from nsft_exp.vlm.qwen25_vl import Qwen25VL

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEXT = (
    "You are a helpful assistant. user Is there a cat in the image? assistant Yes, there is a cat.",
    "What is in the image? No, there is no dog in the image. The image shows a red box.",
)
"""What its tokenizer learns its pieces from."""


class ScratchQwen25VL(Qwen25VL):
    """A random `Qwen2_5_VLForConditionalGeneration` of `layers` decoder layers and 2 vision blocks.

    `window` is the side of the first vision block's windows in pixels; the second one attends to all.
    """

    def __init__(
        self,
        patch_size: int = 4,
        window: int = 16,
        vision_width: int = 32,
        width: int = 64,
        layers: int = 2,
        mlp: int = 64,
        max_positions: int = 2048,
        vocab_size: int = 320,
        seed: int = 0,
        dtype: str = "float32",
        device: str = "auto",
        batch_size: int = 32,
        exif: str = "apply",
        max_length: int | None = None,
        min_pixels: int = 256,
        max_pixels: int = 4096,
        engine: str = "hf",
        python: str | None = None,
        server: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            None,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            exif=exif,
            max_length=max_length,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            engine=engine,
            python=python,
            server=server,
        )
        self.patch_size, self.window, self.vision_width = patch_size, window, vision_width
        self.width, self.layers, self.mlp = width, layers, mlp
        self.max_positions, self.vocab_size, self.seed = max_positions, vocab_size, seed

    def files(self) -> list[Path]:
        """None: all follows from the arguments."""
        return []

    def base(self, device: torch.device, quantization: str | None) -> tuple[Any, Any]:
        """Make the model, the same for the same seed."""
        if quantization:
            raise UserError("a model that is made in memory is not quantized; take tuning=lora")
        tokenizer = train_chatml_tokenizer(TEXT, self.vocab_size)
        return self._model(tokenizer), tokenizer

    def _model(self, tokenizer: Any) -> Any:
        import torch
        from transformers import AutoModelForImageTextToText

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = AutoModelForImageTextToText.from_config(self._config(tokenizer))
            for parameter in model.parameters():
                if parameter.dim() >= 2:
                    parameter.data.normal_(0.0, parameter[0].numel() ** -0.5)
        return model.to(getattr(torch, self.dtype))

    def _config(self, tokenizer: Any) -> Any:
        from transformers import Qwen2_5_VLConfig

        number = tokenizer.convert_tokens_to_ids
        return Qwen2_5_VLConfig(
            vision_config=self._vision(),
            text_config=self._text(tokenizer),
            image_token_id=number("<|image_pad|>"),
            video_token_id=number("<|video_pad|>"),
            vision_start_token_id=number("<|vision_start|>"),
            vision_end_token_id=number("<|vision_end|>"),
        )

    def _vision(self) -> dict[str, Any]:
        return {
            "depth": 2,
            "hidden_size": self.vision_width,
            "out_hidden_size": self.width,
            "intermediate_size": 2 * self.vision_width,
            "num_heads": 2,
            "patch_size": self.patch_size,
            "window_size": self.window,
            "fullatt_block_indexes": [1],
        }

    def _text(self, tokenizer: Any) -> dict[str, Any]:
        return {
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.width // 32,
            "num_key_value_heads": 1,
            "intermediate_size": self.mlp,
            "max_position_embeddings": self.max_positions,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
            "pad_token_id": tokenizer.pad_token_id,
        }


def train_chatml_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of at most `vocab_size` pieces with Qwen2.5-VL's special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
