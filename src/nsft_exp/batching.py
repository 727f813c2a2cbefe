"""From examples to tensors: encoding, the order of the global batches, collation.

An example without a supervised token is refused here, image tokens are never cut, and what had to be trimmed
or dropped is counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsft_exp.branches import Branches, branches_of
from nsft_exp.conversation import PROMPT, ChatEncoder, Encoded, cut
from nsft_exp.images import Layout
from nsft_exp.records import Conversation, Example, UserError

log = logging.getLogger(__name__)

PixelReader = Callable[[str, str], Tensor]
"""(image, view) to the vision tower's input: of one shape for all pictures, or of one for each."""
LayoutReader = Callable[[str, str], Layout]
"""(image, view) to its number of image tokens and its grid."""


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as compact arrays [T]; `weights` is None where all are 1."""

    ids: np.ndarray
    roles: np.ndarray
    weights: np.ndarray | None
    image: str | None
    view: str
    grid: tuple[int, ...] = ()
    """The grid of the image's features, where the model's pictures have one (see Layout)."""
    image_end: int = 0
    """Its tokens up to the last one of its image."""


@dataclass(frozen=True)
class EncodedExample:
    """An example's conversations as arrays."""

    id: str
    conversations: tuple[EncodedConversation, ...]

    @property
    def length(self) -> int:
        """Tokens of its longest conversation."""
        return max(len(c.ids) for c in self.conversations)

    @property
    def supervised(self) -> int:
        """Tokens that a loss can find."""
        return sum(int((c.roles != PROMPT).sum()) for c in self.conversations)


def encode_examples(
    examples: Iterable[Example], chat: ChatEncoder, images: LayoutReader | int, max_length: int
) -> tuple[list[EncodedExample], dict[str, int]]:
    """Return the encoded examples and the counts `trimmed` (answers cut at `max_length`) and `dropped`.

    `images` tells each image's layout; a number stands for that many tokens an image. An example is dropped
    when cutting would take its image or every supervised token of a conversation, and the log says which.
    Raises UserError, naming the example, for one that has no supervised token to begin with or an image that
    cannot be read.
    """
    counts = {"trimmed": 0, "dropped": 0}
    kept: list[EncodedExample] = []
    for example in examples:
        layouts = [_layout(example, c, images) for c in example.conversations]
        whole = [_encode(example, *pair, chat) for pair in zip(example.conversations, layouts, strict=True)]
        if not any(encoded.supervised for encoded in whole):
            raise UserError(f"example {example.id}: no token is supervised; give it an answer to learn")
        short = [cut(encoded, max_length, chat.image_token_id) for encoded in whole]
        if None in short:
            counts["dropped"] += 1
            _tell_why(example, whole[short.index(None)], chat, max_length)
            continue
        counts["trimmed"] += any(len(a.ids) != len(b.ids) for a, b in zip(whole, short, strict=True) if b)
        parts = zip(example.conversations, layouts, short, strict=True)
        token = chat.image_token_id
        kept.append(EncodedExample(example.id, tuple(_compact(c, of, e, token) for c, of, e in parts if e)))
    return kept, counts


def _tell_why(example: Example, encoded: Encoded, chat: ChatEncoder, max_length: int) -> None:
    """Write the reason why an example is dropped to the log."""
    lost = "its image" if chat.image_token_id in encoded.ids[max_length:] else "its whole answer"
    log.warning(
        "example %s: dropped: of its %d tokens %d are kept, which would cut %s; raise recipe.max_length",
        example.id,
        len(encoded.ids),
        max_length,
        lost,
    )


def _layout(example: Example, conversation: Conversation, images: LayoutReader | int) -> Layout | None:
    if conversation.image is None:
        return None
    if isinstance(images, int):
        return Layout(images)
    try:
        return images(conversation.image, conversation.view)
    except UserError as error:
        raise UserError(f"example {example.id}: {error}") from None


def _encode(
    example: Example, conversation: Conversation, layout: Layout | None, chat: ChatEncoder
) -> Encoded:
    try:
        return chat.encode(conversation.turns, layout.tokens if layout else None)
    except UserError as error:
        raise UserError(f"example {example.id}: {error}") from None


def _compact(
    conversation: Conversation, layout: Layout | None, encoded: Encoded, image_token: int
) -> EncodedConversation:
    plain = encoded.weights.count(1.0) == len(encoded.weights)
    ids = np.array(encoded.ids, dtype=np.int32)
    return EncodedConversation(
        ids=ids,
        roles=np.array(encoded.roles, dtype=np.int8),
        weights=None if plain else np.array(encoded.weights, dtype=np.float32),
        image=conversation.image,
        view=conversation.view,
        grid=layout.grid if layout else (),
        image_end=int(np.flatnonzero(ids == image_token)[-1]) + 1 if layout else 0,
    )


def global_batches(num_examples: int, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Return the example numbers of every optimizer step of all epochs, shuffled by the seed.

    The last batch of an epoch may be smaller: every example is seen once an epoch.
    """
    steps: list[list[int]] = []
    for epoch in range(epochs):
        order = list(range(num_examples))
        Random(f"order {seed} {epoch}").shuffle(order)
        steps += [order[start : start + batch_size] for start in range(0, num_examples, batch_size)]
    return steps


def micro_batches(numbers: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Cut a batch into micro-batches of at most `size` whole examples of similar length (less padding)."""
    ordered = sorted(numbers, key=lambda n: (lengths[n], n))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


@dataclass(frozen=True)
class Pictures:
    """Distinct pictures as a vision tower reads them: each one's `values` (float32) and grid."""

    values: tuple[Tensor, ...]
    grids: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: Any, **options: Any) -> Pictures:
        """The same pictures on a device."""
        return Pictures(tuple(v.to(device, **options) for v in self.values), self.grids)


@dataclass
class Batch:
    """A micro-batch of B sequences of at most T tokens, padded on the right.

    `image_rows[m]` is the place in `pixels` of the m-th sequence with an image, in row order: an image that
    several sequences share is there once. `numbers` are the examples' places in the list of examples, and
    `keys` the (example number, conversation number) of each row. `branches` say how rows of an example that
    begin alike are run as one (None: none do).
    """

    ids: Tensor
    role: Tensor
    weight: Tensor
    example: Tensor
    pixels: Pictures | None
    image_rows: Tensor | None
    numbers: list[int]
    keys: list[tuple[int, int]]
    tokens: int
    """Tokens of all rows, padding left out."""
    branches: Branches | None = None

    @property
    def where(self) -> Tensor:
        """Which tokens are supervised: bool [B, T]."""
        return self.role != PROMPT

    def to(self, device: Any, **options: Any) -> Batch:
        """The same micro-batch on a device."""
        moved: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            movable = isinstance(value, (Tensor, Pictures, Branches))
            moved[name] = value.to(device, **options) if movable else value
        return Batch(**moved)


def collate(
    examples: Sequence[EncodedExample], numbers: Sequence[int], pixels: PixelReader, pad_id: int
) -> Batch:
    """Return the micro-batch of the examples with these numbers."""
    rows = [
        (place, n, k, c) for place, n in enumerate(numbers) for k, c in enumerate(examples[n].conversations)
    ]
    shape = (len(rows), max(len(c.ids) for *_, c in rows))
    ids = np.full(shape, pad_id, dtype=np.int64)
    role = np.zeros(shape, dtype=np.int8)
    weight = np.zeros(shape, dtype=np.float32)
    for row, (*_, c) in enumerate(rows):
        ids[row, : len(c.ids)] = c.ids
        role[row, : len(c.ids)] = c.roles
        weight[row, : len(c.ids)] = 1.0 if c.weights is None else c.weights
    images = [(c.image, c.view) for *_, c in rows if c.image is not None]
    grids = {(c.image, c.view): c.grid for *_, c in rows if c.image is not None}
    distinct = list(grids)
    return Batch(
        ids=torch.from_numpy(ids),
        role=torch.from_numpy(role),
        weight=torch.from_numpy(weight),
        example=torch.tensor([place for place, *_ in rows]),
        pixels=Pictures(tuple(pixels(*image) for image in distinct), tuple(grids.values()))
        if distinct
        else None,
        image_rows=torch.tensor([distinct.index(image) for image in images]) if distinct else None,
        numbers=list(numbers),
        keys=[(n, k) for _, n, k, _ in rows],
        tokens=sum(len(c.ids) for *_, c in rows),
        branches=branches_of(
            [c.ids for *_, c in rows],
            [(n, c.image, c.view) for _, n, _, c in rows],
            [c.image_end for *_, c in rows],
            shape[1],
        ),
    )


class GlobalBatches:
    """A stateful loader: yields one global batch after another, each as a list of micro-batches.

    `position` counts the batches that were handed out; `state_dict` and `load_state_dict` carry it over a
    restart, so that training goes on at the next batch. `workers` processes prepare batches ahead.
    """

    def __init__(
        self,
        examples: Sequence[EncodedExample],
        steps: Sequence[Sequence[int]],
        micro_batch: int,
        pixels: PixelReader,
        pad_id: int,
        workers: int = 0,
    ) -> None:
        self.examples = examples
        self.steps = steps
        self.micro_batch = micro_batch
        self.pixels = pixels
        self.pad_id = pad_id
        self.workers = workers
        self.position = 0
        self._lengths = [example.length for example in examples]

    def __len__(self) -> int:
        """Batches from the beginning, whatever the position."""
        return len(self.steps)

    def __getitem__(self, step: int) -> list[Batch]:
        """The micro-batches of one global batch."""
        cuts = micro_batches(self.steps[step], self._lengths, self.micro_batch)
        return [collate(self.examples, numbers, self.pixels, self.pad_id) for numbers in cuts]

    def __iter__(self) -> Iterator[list[Batch]]:
        left = range(self.position, len(self.steps))
        for batch in self._prepared(left) if self.workers else map(self.__getitem__, left):
            self.position += 1
            yield batch

    def _prepared(self, left: range) -> Iterator[list[Batch]]:
        from torch.utils.data import DataLoader

        yield from DataLoader(self, batch_size=None, sampler=left, num_workers=self.workers)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, int]:
        """Where the loader is."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position."""
        self.position = state["position"]
