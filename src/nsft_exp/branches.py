"""Rows that begin alike, run as one: what they have in common once, then what is each one's own.

Chosen and rejected follow the same image and question, which are most of a pair's tokens: with LLaVA-1.5's
576 for the image, 60 of text and two answers of 128 a pair is 892 tokens instead of 1528. A packed row is the
common tokens and then one branch after another; a branch sees the common tokens and itself, at the positions
that it has in a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

PADDING = -1


@dataclass(frozen=True)
class Branches:
    """How B rows of T tokens are run as G < B packed ones of U tokens.

    `source` [G, U] is where a packed token stands in the rows (b * T + t), `branch` [G, U] the branch that it
    is of (0: common to all, -1: padding), `place` [B, T] where a row's token stands in the packed ones
    (g * U + u), and `first` [G] the first row of each packed one.
    """

    source: Tensor
    branch: Tensor
    place: Tensor
    first: Tensor

    def packed(self, values: Tensor, padding: int = 0) -> Tensor:
        """Return values [..., B, T] of the rows as those [..., G, U] of the packed ones."""
        found = values.flatten(-2)[..., self.source]
        return found.masked_fill(self.branch == PADDING, padding)

    def unpacked(self, hidden: Tensor) -> Tensor:
        """Return hidden states [G, U, H] as those [B, T, H] of the rows."""
        # Not `hidden[place]`: where each row is copied, its backward pass adds faster than indexing's.
        return hidden.flatten(0, 1).index_select(0, self.place.flatten()).view(*self.place.shape, -1)

    def mask(self) -> Tensor:
        """Return which tokens each one sees: bool [G, 1, U, U]."""
        mine, other = self.branch[:, :, None], self.branch[:, None, :]
        before = torch.ones(mine.shape[1], mine.shape[1], dtype=torch.bool, device=mine.device).tril()
        return (before & ((other == 0) | (other == mine)))[:, None]

    def to(self, device: Any, **options: Any) -> Branches:
        """The same on a device."""
        return Branches(*(getattr(self, field.name).to(device, **options) for field in fields(self)))


def branches_of(
    rows: Sequence[np.ndarray], kinds: Sequence[Any], needed: Sequence[int], width: int
) -> Branches | None:
    """Return how rows of token ids, padded to `width`, are packed; None where no two begin alike.

    Rows of one kind may share their beginning (their example, image and view are the same). They do where it
    has the first `needed` tokens of each: its image is never in a branch.
    """
    together: dict[Any, list[int]] = {}
    for number, kind in enumerate(kinds):
        together.setdefault(kind, []).append(number)
    groups: list[tuple[list[int], int]] = []
    for numbers in together.values():
        shared = common([rows[number] for number in numbers])
        if shared and shared >= max(needed[number] for number in numbers):
            groups.append((numbers, shared))
        else:
            groups += [([number], len(rows[number])) for number in numbers]
    return _packed(rows, groups, width) if len(groups) < len(rows) else None


def common(rows: Sequence[np.ndarray]) -> int:
    """How many tokens all of the rows begin with alike."""
    shortest = min(len(row) for row in rows)
    alike = np.all([row[:shortest] == rows[0][:shortest] for row in rows], axis=0)
    return shortest if alike.all() else int(alike.argmin())


def _packed(rows: Sequence[np.ndarray], groups: Sequence[tuple[list[int], int]], width: int) -> Branches:
    lengths = [shared + sum(len(rows[n]) - shared for n in numbers) for numbers, shared in groups]
    shape = (len(groups), max(lengths))
    source, branch = np.zeros(shape, dtype=np.int64), np.full(shape, PADDING, dtype=np.int64)
    place = np.zeros((len(rows), width), dtype=np.int64)
    for g, (numbers, shared) in enumerate(groups):
        start = g * shape[1]
        source[g, :shared] = numbers[0] * width + np.arange(shared)
        branch[g, :shared] = 0
        place[numbers, :shared] = start + np.arange(shared)
        at = shared
        for k, number in enumerate(numbers, start=1):
            own = np.arange(len(rows[number]) - shared)
            source[g, at + own] = number * width + shared + own
            branch[g, at + own] = k
            place[number, shared + own] = start + at + own
            at += len(own)
    first = np.array([numbers[0] for numbers, _ in groups])
    return Branches(*(torch.from_numpy(found) for found in (source, branch, place, first)))
