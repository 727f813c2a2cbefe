"""A small LLaVA model made in memory from its sizes and a seed: for tests, and to train a toy base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsft_exp.conversation import VICUNA_V1
from nsft_exp.records import UserError
from nsft_exp.vlm.hf import HFModel

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig, LlavaConfig

    from nsft_exp.vlm.loaded import LoadedHF

TEXT = (
    VICUNA_V1.system + "USER: Is there a cat in the image? ASSISTANT: Yes, there is a cat.",
    "USER: What is in the image? ASSISTANT: No, there is no dog in the image. The image shows a red box.",
    "Answer the question using a single word or phrase. How many are there? What colour is it? one two three",
)
"""What the tokenizer of a model without a tokenizer folder learns its pieces from."""


class ScratchLlava(HFModel):
    """A random `LlavaForConditionalGeneration`: CLIP tower, two-layer projector, Llama decoder.

    `width` and `layers` are the decoder's; its heads have size `head_size` (32 or 64, so that vLLM loads it).
    `vision_feature_layer` -2 is LLaVA's: the last CLIP layer is not used. `tokenizer` is a folder; None: a
    tokenizer of at most `vocab_size` pieces learnt from a few built-in sentences. `tower` is the folder of a
    trained `CLIPVisionModel` of these sizes; None: a random one.
    """

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 16,
        vision_width: int = 32,
        vision_layers: int = 2,
        vision_mlp: int = 64,
        vision_feature_layer: int = -2,
        width: int = 32,
        layers: int = 2,
        mlp: int = 64,
        head_size: int = 32,
        kv_heads: int | None = None,
        tie_embeddings: bool = False,
        max_positions: int = 2048,
        vocab_size: int = 384,
        tokenizer: str | None = None,
        tower: str | None = None,
        seed: int = 0,
        dtype: str = "float32",
        device: str = "auto",
        batch_size: int = 32,
        preprocessing: str = "pad",
        exif: str = "apply",
        prompt_style: str = "vicuna_v1",
        max_length: int | None = None,
    ) -> None:
        super().__init__(
            None,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            preprocessing=preprocessing,
            exif=exif,
            prompt_style=prompt_style,
            max_length=max_length,
        )
        if width % head_size or vision_width % head_size:
            raise UserError(
                f"vlm.head_size={head_size} must divide vlm.width={width} and vlm.vision_width={vision_width}"
            )
        self.vision: dict[str, Any] = {
            "image_size": image_size,
            "patch_size": patch_size,
            "hidden_size": vision_width,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_width // head_size,
            "intermediate_size": vision_mlp,
        }
        self.text: dict[str, Any] = {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // head_size,
            "num_key_value_heads": kv_heads or width // head_size,
            "head_dim": head_size,
            "intermediate_size": mlp,
            "max_position_embeddings": max_positions,
        }
        self.vision_feature_layer = vision_feature_layer
        self.tie_embeddings = tie_embeddings
        self.vocab_size = vocab_size
        self.tokenizer = tokenizer
        self.tower = tower
        self.seed = seed

    def files(self) -> list[Path]:
        """The tokenizer's and the tower's files, if there are: all else follows from the arguments."""
        files = [self.tokenizer and Path(self.tokenizer) / "tokenizer.json"]
        files.append(self.tower and Path(self.tower) / "model.safetensors")
        return [file for file in files if file]

    def load(self, adapters: Sequence[Path] = (), device: str | None = None) -> LoadedHF:
        """Make the model (the same for the same seed), or load what a training from scratch wrote."""
        from nsft_exp.vlm import loaded

        folder = loaded.model_folder(adapters)
        if folder:
            return self.finish(
                loaded.read_model(folder, self.dtype), loaded.read_tokenizer(folder), adapters, device
            )
        tokenizer = self._tokenizer()
        return self.finish(self._model(tokenizer), tokenizer, adapters, device)

    def _tokenizer(self) -> Any:
        from nsft_exp.vlm.tokenizer import load_tokenizer, train_llama_tokenizer

        return (
            load_tokenizer(self.tokenizer) if self.tokenizer else train_llama_tokenizer(TEXT, self.vocab_size)
        )

    def _model(self, tokenizer: Any) -> Any:
        import torch
        from transformers import LlavaForConditionalGeneration

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = LlavaForConditionalGeneration(self._config(tokenizer))
            _initialise(model)
        if self.tower:
            model.model.vision_tower.load_state_dict(_read_tower(self.tower, model).state_dict())
        return model.to(getattr(torch, self.dtype))

    def tower_config(self) -> CLIPVisionConfig:
        """The vision tower's own config."""
        from transformers import CLIPVisionConfig

        return CLIPVisionConfig(
            **self.vision, hidden_act="quick_gelu", projection_dim=self.text["hidden_size"]
        )

    def _config(self, tokenizer: Any) -> LlavaConfig:
        from transformers import LlamaConfig, LlavaConfig

        rows = -(-len(tokenizer) // 64) * 64
        ids: dict[str, Any] = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        text = LlamaConfig(
            **self.text, **ids, vocab_size=rows, rms_norm_eps=1e-5, tie_word_embeddings=self.tie_embeddings
        )
        size = self.vision["image_size"] // self.vision["patch_size"]
        return LlavaConfig(
            vision_config=self.tower_config(),
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=size * size,
            vision_feature_layer=self.vision_feature_layer,
            pad_token_id=tokenizer.pad_token_id,  # type: ignore[call-arg]
            tie_word_embeddings=self.tie_embeddings,
        )


def _read_tower(folder: str, model: Any) -> Any:
    """The trained tower in a folder. Raises UserError when it is not there or of other sizes."""
    from transformers import CLIPVisionModel

    if not (Path(folder) / "model.safetensors").is_file():
        raise UserError(f"{folder}: holds no vision tower; train it first (make toy-base)")
    tower = CLIPVisionModel.from_pretrained(folder, dtype="float32")
    ours, theirs = model.config.vision_config, tower.config
    for size in ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "intermediate_size"):
        have, need = getattr(theirs, size), getattr(ours, size)
        if have != need:
            raise UserError(f"{folder}: the tower's {size} is {have}, the model's is {need}")
    return tower


def _initialise(model: Any) -> None:
    """Draw the decoder's and projector's weights at a scale that suits small widths.

    Linear maps get a standard deviation of 1/sqrt(inputs), those that write to the residual stream less by
    sqrt(2 * layers), embeddings 1/sqrt(width). The CLIP tower keeps its own initialisation.
    """
    import torch

    text = model.config.text_config
    for name, parameter in model.named_parameters():
        if "vision_tower" in name or parameter.dim() < 2:
            continue
        deviation = parameter.shape[-1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            deviation *= (2 * text.num_hidden_layers) ** -0.5
        with torch.no_grad():
            parameter.normal_(0.0, deviation)
