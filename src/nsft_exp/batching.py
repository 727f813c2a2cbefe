"""From encoded examples to tensors: the order of the global batches, micro-batches, collation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsft_exp.branches import Branches, branches_of
from nsft_exp.conversation import PROMPT
from nsft_exp.encoding import EncodedExample

PixelReader = Callable[[str, str], Tensor]
"""(image, view) to the vision tower's input: of one shape for all pictures, or of one for each."""


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
