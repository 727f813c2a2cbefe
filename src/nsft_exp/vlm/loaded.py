"""A LLaVA model in memory: reading it, answering with it, writing it with the hub's names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging as transformers_logging

from nsft_exp.conversation import VICUNA_V1, ChatEncoder, PromptStyle
from nsft_exp.images import CLIP_MEAN, CLIP_STD, Preprocessing, open_image
from nsft_exp.records import Reply, Request, UserError

TEXT_OF_MESSAGE = (
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] | trim }}{% endfor %}"
    "{% endif %}"
)
TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}{{ SYSTEM }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}{% if message['content'] is not string %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}{% endif %}"
    + TEXT_OF_MESSAGE
    + "{{ ' ASSISTANT:' }}{% else %}{{ ' ' }}"
    + TEXT_OF_MESSAGE
    + "{{ '</s>' }}{% endif %}{% endfor %}"
)
"""The text of `vicuna_v1` for programs that want a chat template; BOS is the tokenizer's."""


class LoadedHF:
    """A LLaVA model with its tokenizer, and how it reads images and writes conversations.

    `model` is the `LlavaForConditionalGeneration` (LoRA layers, if any, are inside it), `chat` the
    conversation builder, `num_image_tokens` the image tokens of one picture.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        style: PromptStyle = VICUNA_V1,
        preprocessing: str = "pad",
        exif: str = "apply",
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> None:
        vision, text = model.config.vision_config, model.config.text_config
        self.model = model
        self.tokenizer = tokenizer
        self.chat = ChatEncoder(tokenizer, style, model.config.image_token_id)
        self.preprocessing = Preprocessing(vision.image_size, preprocessing)
        self.exif = exif
        self.opener: Callable[[str], Image.Image] | None = None
        self.batch_size = batch_size
        self.max_length = min(max_length or text.max_position_embeddings, text.max_position_embeddings)
        full = model.config.vision_feature_select_strategy == "full"
        self.num_image_tokens = (vision.image_size // vision.patch_size) ** 2 + int(full)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.unk_token_id

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.model.lm_head.weight.device

    def pixels(self, image: str, view: str = "clean") -> Tensor:
        """Return an image under a view as the tower's input: float32 [3, S, S].

        `image` is the path of a file, or what `opener` makes a picture of where that is set. Raises UserError
        for a view that does not exist or an image that cannot be opened.
        """
        if view != "clean":
            raise UserError(f"{image}: there is no view {view!r}; there is clean")
        picture = self.opener(image) if self.opener else open_image(image, self.exif)
        return torch.from_numpy(self.preprocessing(picture))

    def features(self, pixels: Tensor) -> Tensor:
        """Return the projected image features [N, n, H] of pixels [N, 3, S, S]."""
        pixels = pixels.to(self.device, self.model.lm_head.weight.dtype)
        return torch.stack(list(self.model.model.get_image_features(pixel_values=pixels).pooler_output))

    def hidden(self, ids: Tensor, features: Tensor | None = None, **options: Any) -> Tensor:
        """Return the last hidden states [B, T, H] of token ids [B, T].

        `features` [M, n, H] are the images of the rows that have one, in row order.
        """
        return self.run(ids, features, use_cache=False, **options).last_hidden_state

    def run(self, ids: Tensor, features: Tensor | None = None, **options: Any) -> Any:
        """Return the output of the model below its LM head (with a cache where `options` ask for one)."""
        if features is not None:
            images: Any = list(features)
            options["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=images)}
        return self.model.model(input_ids=ids, **options)

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[str, tuple[Reply, ...]]]:
        """Yield (request id, its n replies), batch by batch, long prompts first.

        A greedy answer does not depend on the batch, and neither does a sampled one: its noise comes from
        (seed, request id, sample number). Raises UserError for what this engine cannot do.
        """
        from nsft_exp.vlm.generation import generate

        yield from generate(self, list(requests))

    def save(self, folder: Path) -> None:
        """Write weights (under the hub's names), configuration, tokenizer and processor to a folder."""
        with _silently():
            self.model.save_pretrained(folder, max_shard_size="5GB")
        use_hub_names(folder)
        self.tokenizer.save_pretrained(folder)
        _save_processor(self, folder)


def read_model(folder: Path, dtype: str) -> Any:
    """Return the model of a folder. Raises UserError when there is no LLaVA model in safetensors."""
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except FileNotFoundError:
        raise UserError(f"{folder}: there is no config.json; vlm.path must name a model's folder") from None
    if kind != "llava":
        raise UserError(f"{folder}: model type {kind!r} is not supported; it must be llava")
    try:
        with _silently():
            return LlavaForConditionalGeneration.from_pretrained(
                folder, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
            )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: the model cannot be loaded ({' '.join(str(error).split())[:200]})"
        ) from error


@contextmanager
def _silently() -> Iterator[None]:
    """Keep transformers' own progress bars and remarks off the terminal."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model's folder."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def device_named(name: str) -> torch.device:
    """`auto` is the GPU where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def model_folder(adapters: Sequence[Path]) -> Path | None:
    """The whole model that the last full training wrote (it replaces the base), if there is one."""
    whole = [Path(folder) / "model" for folder in adapters if (Path(folder) / "model").is_dir()]
    return whole[-1] if whole else None


def with_adapters(model: Any, adapters: Sequence[Path]) -> Any:
    """Put the adapters of train-stage folders on a model, those after its last full training.

    In float32 they are merged into the weights. In lower precision merging would round small updates away, so
    that the last one stays beside the weights. Raises UserError for a folder without a trained part.
    """
    folders = [Path(folder) for folder in adapters]
    for folder in folders:
        if not (folder / "model").is_dir() and not (folder / "adapter").is_dir():
            raise UserError(f"{folder}: there is neither a trained model nor an adapter here; train it first")
    whole = [number for number, folder in enumerate(folders) if (folder / "model").is_dir()]
    folders = folders[whole[-1] + 1 :] if whole else folders
    for number, folder in enumerate(folders):
        keep = model.dtype != torch.float32 and number == len(folders) - 1
        model = _with_adapter(model, folder / "adapter", merge=not keep)
    return model


def _with_adapter(model: Any, folder: Path, merge: bool) -> Any:
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, str(folder), local_files_only=True)
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: the adapter does not fit the model ({reason})") from error
    return adapted.merge_and_unload(safe_merge=True) if merge else adapted.get_base_model()


def use_hub_names(folder: Path) -> None:
    """Rename a vision tower's weights to the hub's `vision_tower.vision_model.…` (vLLM knows no other).

    A model made from a config is saved without that part; one that was loaded from the hub already has it.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if all(_hub_name(name) == name for name in names):
                continue
            tensors = {_hub_name(name): file.get_tensor(name) for name in names}
        save_file(tensors, path, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        table = json.loads(index.read_text("utf-8"))
        table["weight_map"] = {_hub_name(name): file for name, file in table["weight_map"].items()}
        index.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", "utf-8")


def _hub_name(name: str) -> str:
    short, infix = "vision_tower.", "vision_tower.vision_model."
    return infix + name[len(short) :] if name.startswith(short) and not name.startswith(infix) else name


def _save_processor(loaded: LoadedHF, folder: Path) -> None:
    """Write the processor that does to images what this model was trained with, with our chat template."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    size = loaded.preprocessing.size
    sizes = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    colours = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
    padded = loaded.preprocessing.mode == "pad"
    pictures = (
        LlavaImageProcessorPil(do_pad=True, **sizes, **colours) if padded else CLIPImageProcessorPil(**sizes)
    )
    LlavaProcessor(
        image_processor=pictures,
        tokenizer=loaded.tokenizer,
        patch_size=loaded.model.config.vision_config.patch_size,
        vision_feature_select_strategy=loaded.model.config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("SYSTEM", json.dumps(loaded.chat.style.system)),
    ).save_pretrained(folder)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder through a neighbour, so that it is either whole or not there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
