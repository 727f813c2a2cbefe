"""The reference model pi_ref, had in one of three ways that give the same numbers.

`adapter_off` is the policy with its LoRA and its trained projector switched off; `cached` are
log-probabilities computed once and kept on disk; `copy` is a second model in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nsft_exp import losses
from nsft_exp.batching import Batch
from nsft_exp.conversation import PROMPT
from nsft_exp.encoding import EncodedExample
from nsft_exp.losses import TokenScores
from nsft_exp.recipe import Tuning
from nsft_exp.records import UserError
from nsft_exp.vlm.family import Features
from nsft_exp.vlm.loaded import LoadedHF
from nsft_exp.world import World


class Reference(Protocol):
    """What the training loop asks of a reference."""

    def scores(self, batch: Batch, features: Features | None) -> TokenScores:
        """The reference's log-probabilities of a micro-batch.

        `features` are the policy's image features where the reference would make the same ones, else None.
        """


class Live:
    """A reference that is run: the policy inside `switched_off()`, or another model."""

    def __init__(
        self, loaded: LoadedHF, switched_off: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> None:
        self.loaded = loaded
        self.switched_off = switched_off

    def scores(self, batch: Batch, features: Features | None) -> TokenScores:
        """Run the model without gradients."""
        with torch.no_grad(), self.switched_off():
            return token_scores(self.loaded, batch, features)

    def hidden(self, batch: Batch, features: Features | None) -> Tensor:
        """The reference's last hidden states [B, T, H], for an exact divergence."""
        with torch.no_grad(), self.switched_off():
            return hidden_states(self.loaded, batch, features)


class Cached:
    """Log-probabilities from disk, by (example number, conversation number)."""

    def __init__(self, logps: Tensor, examples: Sequence[EncodedExample]) -> None:
        self.logps = logps
        self.starts: dict[tuple[int, int], int] = {}
        start = 0
        for n, example in enumerate(examples):
            for k, conversation in enumerate(example.conversations):
                self.starts[n, k] = start
                start += int((conversation.roles != PROMPT).sum())

    def scores(self, batch: Batch, features: Features | None) -> TokenScores:
        """Look the micro-batch's tokens up."""
        counts = batch.where.sum(1).tolist()
        parts = [
            self.logps[self.starts[key] :][:count] for key, count in zip(batch.keys, counts, strict=True)
        ]
        logp = torch.zeros(batch.ids.shape, device=batch.ids.device)
        logp = logp.masked_scatter(batch.where, torch.cat(parts).to(logp.device))
        return TokenScores(logp, batch.weight, batch.role, batch.example)


def reference_mode(needs: str, tuning: Tuning, asked: str) -> str:
    """Return how the reference is had: `none`, `adapter_off`, `cached` or `copy`.

    `auto` switches adapters off where there are any; else it caches log-probabilities, or copies the model
    for a distribution. Raises UserError for a way that cannot work.
    """
    if needs == "nothing":
        return "none"
    if asked == "auto":
        return "adapter_off" if tuning.kind == "lora" else "cached" if needs == "logp" else "copy"
    if asked == "adapter_off" and tuning.kind != "lora":
        raise UserError(
            f"trainer.reference=adapter_off needs tuning=lora, not {tuning.kind}; take cached or copy"
        )
    if asked == "cached" and needs == "distribution":
        raise UserError(
            "trainer.reference=cached keeps no distributions, which the KL needs; take adapter_off or copy"
        )
    return asked


def token_scores(loaded: LoadedHF, batch: Batch, features: Features | None = None) -> TokenScores:
    """Return the model's log-probabilities of a micro-batch's supervised tokens."""
    hidden = hidden_states(loaded, batch, features)
    logp = losses.token_logps(hidden, loaded.model.lm_head, batch.ids, batch.where)
    return TokenScores(logp, batch.weight, batch.role, batch.example)


def hidden_states(loaded: LoadedHF, batch: Batch, features: Features | None = None) -> Tensor:
    """The model's last hidden states [B, T, H] of a micro-batch; `features` are its images' where known."""
    return loaded.hidden(batch.ids, row_features(loaded, batch, features), batch.branches)


def row_features(loaded: LoadedHF, batch: Batch, features: Features | None = None) -> Features | None:
    """The image features of the rows that have an image; `features` are the batch's where they are known."""
    if batch.pixels is None or batch.image_rows is None:
        return None
    return (loaded.features(batch.pixels) if features is None else features)[batch.image_rows]


def cached(
    loaded: LoadedHF,
    examples: Sequence[EncodedExample],
    batches: Callable[[], Iterable[Batch]],
    folder: Path,
    context: Callable[[], AbstractContextManager[Any]],
    world: World,
) -> Cached:
    """Return the cached reference, computing it from `loaded` when the folder has none for this very input.

    In a world of several processes `batches` are this one's share.

    The file's name is a hash of the weights, the preprocessing and the encoded examples with their images.
    """
    key = fingerprint(loaded, examples)
    path = folder / f"{key}.safetensors"
    if not all(world.gathered(path.exists())):
        logps = _compute(loaded, examples, batches(), context, world)
        if world.first:
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            save_file({"logp": logps}, partial)
            os.replace(partial, path)
        world.gathered("written")
    return Cached(load_file(path)["logp"], examples)


@torch.inference_mode()
def _compute(
    loaded: LoadedHF,
    examples: Sequence[EncodedExample],
    batches: Iterable[Batch],
    context: Callable[[], AbstractContextManager[Any]],
    world: World,
) -> Tensor:
    """The supervised tokens' log-probabilities of all conversations, one after another."""
    found: dict[tuple[int, int], Tensor] = {}
    with evaluating(loaded.model):
        for batch in batches:
            batch = batch.to(loaded.device)
            with context():
                logp = token_scores(loaded, batch).logp.float().cpu()
            where = batch.where.cpu()
            found |= {key: logp[row][where[row]] for row, key in enumerate(batch.keys)}
    found = {key: logp for part in world.gathered(found) for key, logp in part.items()}
    return torch.cat(
        [found[n, k] for n, example in enumerate(examples) for k in range(len(example.conversations))]
    )


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Have the model in evaluation mode (no dropout) inside the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def fingerprint(loaded: LoadedHF, examples: Sequence[EncodedExample]) -> str:
    """Return a hash of the model's weights, its preprocessing, and the examples with their images."""
    total = hashlib.sha256(f"{loaded.preprocessing} {loaded.exif} {loaded.num_image_tokens}".encode())
    for name, value in loaded.model.state_dict().items():
        total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    images: dict[str, str] = {}
    for example in examples:
        for c in example.conversations:
            total.update(f"{example.id} {c.view} {_image_hash(c.image, images)}".encode())
            total.update(np.ascontiguousarray(c.ids).data)
            total.update(np.ascontiguousarray(c.roles).data)
    return total.hexdigest()


def _image_hash(image: str | None, known: dict[str, str]) -> str:
    """A hash of the image file's content; of its name where it is no file (a picture drawn on the fly)."""
    if image is None:
        return "-"
    if image not in known:
        path = Path(image)
        content = path.read_bytes() if path.is_file() else image.encode()
        known[image] = hashlib.sha256(content).hexdigest()
    return known[image]
