"""A model in memory: reading it, answering with it, writing it with the hub's names."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nsft_exp.batching import Pictures
from nsft_exp.branches import Branches
from nsft_exp.conversation import VICUNA_V1, ChatEncoder, PromptStyle
from nsft_exp.images import Layout, image_size, open_image
from nsft_exp.records import Reply, Request, UserError
from nsft_exp.view import View, view_named
from nsft_exp.vlm.family import Family, Features, Preprocess
from nsft_exp.vlm.memory import Memory
from nsft_exp.vlm.reading import silently
from nsft_exp.vlm.template import candidates, exact_template

log = logging.getLogger(__name__)


class LoadedHF:
    """A model with its tokenizer, and how it reads images and writes conversations.

    `model` is the `...ForConditionalGeneration` (LoRA layers, if any, are inside it), `chat` the conversation
    builder, `family` what differs between model families, `stops` the ids that end an answer.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        family: Family,
        *,
        style: PromptStyle = VICUNA_V1,
        exif: str = "apply",
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> None:
        longest = model.config.text_config.max_position_embeddings
        self.model = model
        self.tokenizer = tokenizer
        self.family = family
        self.chat = ChatEncoder(tokenizer, style, model.config.image_token_id)
        self.exif = exif
        self.opener: Callable[[str], Image.Image] | None = None
        self.batch_size = batch_size
        self.memory = Memory()
        self.max_length = min(max_length or longest, longest)
        # LLaVA-NeXT has no padding token: nothing here tells padding by its id.
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.unk_token_id
        self.stops = {self.chat.end, *_ids(model.generation_config.eos_token_id)}
        self._layouts: dict[tuple[str, str], Layout] = {}

    @cached_property
    def sentence_ends(self) -> frozenset[int]:
        """The ids whose text ends with a full stop."""
        texts = enumerate(self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))]))
        return frozenset(token for token, text in texts if text.rstrip().endswith("."))

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.model.lm_head.weight.device

    @property
    def preprocessing(self) -> Preprocess:
        """How a picture becomes the vision tower's input."""
        return self.family.preprocessing

    @property
    def num_image_tokens(self) -> int | None:
        """The image tokens of every picture; None where they depend on its size (see `layout`)."""
        return self.family.num_image_tokens

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return self.model.model.get_submodule(self.family.tower)

    def layout(self, image: str, view: str = "clean") -> Layout:
        """Return how many tokens an image has and the grid of its features, from its size alone.

        Raises UserError as `pixels` does.
        """
        seen = _view(image, view)
        if self.family.num_image_tokens is not None:
            return Layout(self.family.num_image_tokens)
        if (image, seen.kind) not in self._layouts:
            size = self.opener(image).size if self.opener else image_size(image, self.exif)
            try:
                self._layouts[image, seen.kind] = self.family.layout(seen.size(size))
            except UserError as error:
                raise UserError(f"{image}: {error}") from None
        return self._layouts[image, seen.kind]

    def pixels(self, image: str, view: str = "clean") -> Tensor:
        """Return an image under a view as the tower's input, float32 (for LLaVA [3, S, S]).

        `image` is the path of a file, or what `opener` makes a picture of where that is set. Raises UserError
        for a view that does not exist or an image that cannot be opened.
        """
        seen = _view(image, view)
        picture = self.opener(image) if self.opener else open_image(image, self.exif)
        return torch.from_numpy(seen.pixels(self.preprocessing(seen.picture(picture))))

    def pictures(self, images: Sequence[tuple[str, str]]) -> Pictures:
        """Return (image, view) pairs as the tower's input."""
        return Pictures(
            tuple(self.pixels(*one) for one in images), tuple(self.layout(*one).grid for one in images)
        )

    def features(self, pictures: Pictures) -> Features:
        """Return the projected features of pictures. The tower is frozen: it is run in evaluation mode."""
        dtype = next(p.dtype for p in self.tower.parameters() if p.is_floating_point())
        self.tower.eval()
        inputs = self.family.inputs(pictures.to(self.device, dtype=dtype))
        found = self.model.model.get_image_features(**inputs)
        return Features(tuple(found.pooler_output), pictures.grids)

    def positions(self, ids: Tensor, grids: Sequence[tuple[int, ...] | None]) -> Tensor:
        """Return the position ids [axes, B, T] of ids [B, T] that have no padding on the left."""
        found = self.family.positions(ids, grids)
        if found is None:
            found = torch.arange(ids.shape[1], device=ids.device).expand(1, *ids.shape)
        return found

    def hidden(
        self, ids: Tensor, features: Features | None = None, branches: Branches | None = None
    ) -> Tensor:
        """Return the last hidden states [B, T, H] of token ids [B, T], padded on the right.

        `features` are the images of the rows that have one, in row order. With `branches` the rows are run as
        these pack them, to the same states beyond rounding.
        """
        grids = iter(features.grids if features else ())
        has_image = (ids == self.chat.image_token_id).any(1)
        in_rows = [next(grids) if has else None for has in has_image.tolist()]
        if branches is None:
            positions = self.family.positions(ids, in_rows)
            return self.run(ids, features, positions, use_cache=False).last_hidden_state
        if features is not None:
            number = has_image.cumsum(0) - 1
            features = features[number[branches.first][has_image[branches.first]]]
        packed = branches.packed(ids, self.pad_id)
        positions = branches.packed(self.positions(ids, in_rows))
        out = self.run(packed, features, positions, use_cache=False, attention_mask=branches.mask())
        return branches.unpacked(out.last_hidden_state)

    def run(
        self, ids: Tensor, features: Features | None = None, positions: Tensor | None = None, **options: Any
    ) -> Any:
        """Return the output of the language model below its head (with a cache where `options` ask for one).

        `positions` [axes, B, T] None: they count tokens. An `attention_mask` is one of real tokens [B, T], or
        of what each one sees: bool [B, 1, T, all T]. Raises ValueError as `embeddings` does.
        """
        embeddings = self.embeddings(ids, features)
        if positions is not None:
            options["position_ids"] = positions[0] if len(positions) == 1 else positions
        mask, attention = options.get("attention_mask"), self.model.config.text_config._attn_implementation
        if mask is not None and mask.dim() == 4 and attention == "eager":
            # It adds its mask to the scores: truth values would hide nothing.
            hidden = torch.finfo(embeddings.dtype).min
            options["attention_mask"] = torch.zeros_like(mask, dtype=embeddings.dtype).masked_fill(
                ~mask, hidden
            )
        return self.model.model.language_model(inputs_embeds=embeddings, **options)

    def embeddings(self, ids: Tensor, features: Features | None = None) -> Tensor:
        """Return the embeddings [B, T, H] of token ids, each image token's replaced by its feature.

        Raises ValueError where image tokens and features are not equally many.
        """
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        if features is None:
            return embeddings
        parts = torch.cat(features.parts).to(embeddings.device, embeddings.dtype)
        where = ids == self.chat.image_token_id
        if int(where.sum()) != len(parts):
            raise ValueError(f"{int(where.sum())} image tokens and {len(parts)} image features")
        return embeddings.masked_scatter(where[..., None], parts)

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[str, tuple[Reply, ...]]]:
        """Yield (request id, its n replies), batch by batch, long prompts first.

        A greedy answer does not depend on the batch, and neither does a sampled one: its noise comes from
        (seed, request id, sample number). Raises UserError for what this engine cannot do.
        """
        from nsft_exp.vlm.generation import generate

        yield from generate(self, list(requests))

    def save(self, folder: Path) -> None:
        """Write weights (under the hub's names), configuration, tokenizer and processor to a folder."""
        with silently():
            self.model.save_pretrained(folder, max_shard_size="5GB")
        use_hub_names(folder)
        self.save_processor(folder)

    def save_processor(self, folder: Path) -> bool:
        """Write tokenizer, processor and chat template; True where the template is exact (`exact_template`).

        Where none is exact with this tokenizer the plainest one is written, and the log says so.
        """
        processor = self.family.processor(self.tokenizer)
        exact = exact_template(processor, self.chat)
        if exact is None:
            log.warning("%s: no chat template gives training's ids; feed token ids, not text", folder)
        processor.chat_template = exact or next(candidates(processor, self.chat))
        with silently():
            processor.save_pretrained(folder)
        return exact is not None


def _view(image: str, name: str) -> View:
    try:
        return view_named(name)
    except UserError as error:
        raise UserError(f"{image}: {error}") from None


def _ids(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


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
