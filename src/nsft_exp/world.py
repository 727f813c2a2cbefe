"""The processes of one training (its ranks): who this one is, its share, and what they sum up together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

BUCKET = 2**24
"""Gradient values that are summed in one message."""


@dataclass(frozen=True)
class World:
    """This process is the `rank`-th of `size`, the `local_rank`-th of its machine. Alone it says nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, numbers: Sequence[int], lengths: Sequence[int]) -> list[int]:
        """Return this rank's examples of a global batch: whole ones, about as many tokens for each rank.

        They are dealt from the longest to the shortest, back and forth. A rank may get none.
        """
        if self.size == 1:
            return list(numbers)
        dealt = sorted(numbers, key=lambda n: (-lengths[n], n))
        return [n for place, n in enumerate(dealt) if self._turn(place) == self.rank]

    def _turn(self, place: int) -> int:
        round_, seat = divmod(place, self.size)
        return self.size - 1 - seat if round_ % 2 else seat

    def gathered(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order. All ranks wait for one another here."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def summed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sums by name of every rank's numbers, or pairs of numbers."""
        ranks = self.gathered(dict(values))
        if self.size == 1:
            return ranks[0]
        totals: dict[str, list[float]] = defaultdict(list)
        pairs = any(isinstance(v, list) for rank in ranks for v in rank.values())
        for rank in ranks:
            for name, value in rank.items():
                parts = value if isinstance(value, list) else [value]
                before = totals[name] or [0] * len(parts)
                totals[name] = [a + b for a, b in zip(before, parts, strict=True)]
        return {name: total if pairs else total[0] for name, total in totals.items()}

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace each gradient by its sum over the ranks; one that a rank lacks counts as zero there.

        Gradients of weights that are in parts are sums already.
        """
        parameters = [p for p in parameters if not isinstance(p, DTensor)]
        if self.size == 1 or not parameters:
            return
        has = torch.tensor([int(p.grad is not None) for p in parameters], device=parameters[0].device)
        torch.distributed.all_reduce(has, torch.distributed.ReduceOp.MAX)
        trained = [p for p, some in zip(parameters, has.tolist(), strict=True) if some]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in trained if p.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            torch.distributed.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one type together, at least BUCKET values in all but the last."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and (gradient.dtype != bucket[0].dtype or sum(g.numel() for g in bucket) >= BUCKET):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
