"""A small LLaVA model made in memory from its sizes and a seed: for tests, and to train a toy base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsft_exp.conversation import VICUNA_V1
from nsft_exp.records import UserError
from nsft_exp.vlm.hf import HFModel

if TYPE_CHECKING:
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig

PROJECTOR = "projector.safetensors"
"""In a tower's folder, what was trained with it (`toy.tower`)."""
TEXT = (
    VICUNA_V1.system + "USER: Is there a cat in the image? ASSISTANT: Yes, there is a cat.",
    "USER: What is in the image? ASSISTANT: No, there is no dog in the image. The image shows a red box.",
    "Answer the question using a single word or phrase. How many are there? What colour is it? one two three",
)
"""What the tokenizer of a model without a tokenizer folder learns its pieces from."""


@dataclass(eq=False)
class ScratchLlava(HFModel):
    """A random `LlavaForConditionalGeneration`: CLIP tower, two-layer projector, Llama decoder."""

    # the vision tower
    image_size: int = 32
    patch_size: int = 16
    vision_width: int = 32
    vision_layers: int = 2
    vision_mlp: int = 64
    vision_feature_layer: int = -2
    """LLaVA's: the last CLIP layer is not used."""
    tower: str | None = None
    """The folder of a trained `CLIPVisionModel` of these sizes and its projector; None: random ones."""

    # the decoder
    width: int = 32
    layers: int = 2
    mlp: int = 64
    head_size: int = 32
    """Of the decoder's and the tower's heads: 32 or 64, so that vLLM loads it."""
    kv_heads: int | None = None
    tie_embeddings: bool = False
    keys_begin_as_queries: bool = False
    """Whether a token attends to what is like it from the beginning: the keys' map begins as the queries'
    (after "Mimetic Initialization of Self-Attention Layers", Trockman and Kolter, 2023)."""
    max_positions: int = 2048

    # the tokenizer
    tokenizer: str | None = None
    """A folder; None: at most `vocab_size` pieces learnt from a few built-in sentences."""
    vocab_size: int = 384

    seed: int = 0
    """Of the random weights."""

    # as for any model (HFModel)
    dtype: str = "float32"
    device: str = "auto"
    batch_size: int = 32
    preprocessing: str = "pad"
    exif: str = "apply"
    prompt_style: str = "vicuna_v1"
    max_length: int | None = None
    engine: str = "hf"
    python: str | None = None
    server: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__init__(
            None,
            dtype=self.dtype,
            device=self.device,
            batch_size=self.batch_size,
            preprocessing=self.preprocessing,
            exif=self.exif,
            prompt_style=self.prompt_style,
            max_length=self.max_length,
            engine=self.engine,
            python=self.python,
            server=self.server,
        )
        if self.width % self.head_size or self.vision_width % self.head_size:
            raise UserError(
                f"vlm.head_size={self.head_size} must divide vlm.width={self.width} "
                f"and vlm.vision_width={self.vision_width}"
            )

    def files(self) -> list[Path]:
        """The tokenizer's and the tower's files, if there are: all else follows from the arguments."""
        files = [self.tokenizer and Path(self.tokenizer) / "tokenizer.json"]
        files += [Path(self.tower) / name for name in ("model.safetensors", PROJECTOR)] if self.tower else []
        return [file for file in files if file]

    def base(self, device: torch.device, quantization: str | None) -> tuple[Any, Any]:
        """Make the model, the same for the same seed."""
        if quantization:
            raise UserError("a model that is made in memory is not quantized; take tuning=lora")
        tokenizer = self._tokenizer()
        return self._model(tokenizer), tokenizer

    def _tokenizer(self) -> Any:
        from nsft_exp.vlm.tokenizer import load_tokenizer, train_llama_tokenizer

        return (
            load_tokenizer(self.tokenizer) if self.tokenizer else train_llama_tokenizer(TEXT, self.vocab_size)
        )

    def _model(self, tokenizer: Any) -> Any:
        import torch
        from transformers import AutoModelForImageTextToText

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = AutoModelForImageTextToText.from_config(self._config(tokenizer))
            _initialise(model)
        if self.keys_begin_as_queries:
            _copy_queries(model)
        if self.tower:
            model.model.vision_tower.load_state_dict(_read_tower(self.tower, model).state_dict())
            _give_projector(model, Path(self.tower) / PROJECTOR)
        return model.to(getattr(torch, self.dtype))

    def tower_config(self) -> CLIPVisionConfig:
        """The vision tower's own config."""
        from transformers import CLIPVisionConfig

        return CLIPVisionConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.vision_width,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_width // self.head_size,
            intermediate_size=self.vision_mlp,
            hidden_act="quick_gelu",
            projection_dim=self.width,
        )

    def _decoder_config(self, tokenizer: Any) -> LlamaConfig:
        from transformers import LlamaConfig

        heads = self.width // self.head_size
        return LlamaConfig(
            vocab_size=-(-len(tokenizer) // 64) * 64,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=self.kv_heads or heads,
            head_dim=self.head_size,
            intermediate_size=self.mlp,
            max_position_embeddings=self.max_positions,
            rms_norm_eps=1e-5,
            tie_word_embeddings=self.tie_embeddings,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )

    def _config(self, tokenizer: Any) -> Any:
        from transformers import LlavaConfig

        side = self.image_size // self.patch_size
        return LlavaConfig(
            vision_config=self.tower_config(),
            text_config=self._decoder_config(tokenizer),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=side * side,
            vision_feature_layer=self.vision_feature_layer,
            pad_token_id=tokenizer.pad_token_id,  # type: ignore[call-arg]
            tie_word_embeddings=self.tie_embeddings,
        )


def _read_tower(folder: str, model: Any) -> Any:
    """The trained tower in a folder. Raises UserError when it is not there or of other sizes."""
    from transformers import CLIPVisionModel

    from nsft_exp.vlm.reading import silently

    if not (Path(folder) / "model.safetensors").is_file():
        raise UserError(f"{folder}: holds no vision tower; train it first (make toy-base)")
    with silently():
        tower = CLIPVisionModel.from_pretrained(folder, dtype="float32")
    ours, theirs = model.config.vision_config, tower.config
    for size in ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "intermediate_size"):
        have, need = getattr(theirs, size), getattr(ours, size)
        if have != need:
            raise UserError(f"{folder}: the tower's {size} is {have}, the model's is {need}")
    return tower


def read_projector(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how a tower's projector was made (`recipe`, `words`) and its weights.

    Raises UserError when it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as stored:
            return json.loads(stored.metadata()["made"]), {n: stored.get_tensor(n) for n in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); remove {file.parent}") from None


def _give_projector(model: Any, file: Path) -> None:
    """Give the model the projector in a file. Raises UserError when it was taught another one's words."""
    made, weights = read_projector(file)
    if made["words"] != words_digest(model):
        raise UserError(
            f"{file}: was taught the words of another vlm.seed or tokenizer; remove {file.parent}"
        )
    model.model.multi_modal_projector.load_state_dict(weights)


def words_digest(model: Any) -> str:
    """A digest of a model's word embeddings."""
    table = model.get_input_embeddings().weight.detach().float().contiguous().numpy()
    return hashlib.sha256(table.tobytes()).hexdigest()[:16]


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


def _copy_queries(model: Any) -> None:
    """Make the keys' maps those of the (first) queries."""
    import torch

    for layer in model.model.language_model.layers:
        queries, keys = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
        with torch.no_grad():
            keys.copy_(queries[: len(keys)])
