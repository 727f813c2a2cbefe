"""What has been run of a prompt and its answers, kept for the requests that continue them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from nsft_exp.vlm.cache import filled_cache
from nsft_exp.vlm.row import Row

Key = tuple[str, str | None, str]
"""A lineage, its image, its view."""


@dataclass(frozen=True)
class Past:
    """Tokens that have been run: their ids, and keys and values [H, T, D] of every layer."""

    ids: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]

    def first(self, count: int) -> Past:
        """The first tokens of it."""
        if count == len(self.ids):
            return self
        return Past(
            self.ids[:count], tuple((keys[:, :count], values[:, :count]) for keys, values in self.layers)
        )


class Memory:
    """The pasts of every lineage (`Request.lineage`): of its first prompt, its image with it, and of the
    answers after that.

    Requests of one lineage about different images share nothing. The weights must stay as they are between
    its requests. It holds at most as many tokens as a full batch of the rows at hand, so that it no more than
    doubles the memory of a cache; what is beyond that is run again.
    """

    def __init__(self) -> None:
        self._prompts: dict[Key, Past] = {}
        self._answers: dict[Key, list[Past]] = {}
        self.tokens = 0
        self._room = 0

    def recall(self, rows: Sequence[Row], batch_size: int) -> None:
        """Give every row its past; then forget all answers, and the prompts of lineages without a row."""
        named = {key_of(row) for row in rows if row.request.lineage}
        self._prompts = {key: past for key, past in self._prompts.items() if key in named}
        for row in rows:
            row.past = self._past(row)
        self._answers = {key: [] for key in named}
        self.tokens = sum(len(past.ids) for past in self._prompts.values())
        self._room = batch_size * max((len(row.prompt) + row.limit for row in rows), default=0)

    def _past(self, row: Row) -> tuple[Past, ...]:
        """The longest part of the row's prompt that has been run: all but its last token at most."""
        prompt, known = row.prompt[:-1], self._prompts.get(key_of(row))
        if known is None or prompt[: len(known.ids)] != known.ids:
            return ()
        rest = prompt[len(known.ids) :]
        longest = max(self._answers[key_of(row)], key=lambda past: common(past.ids, rest), default=None)
        shared = common(longest.ids, rest) if longest else 0
        return (known, longest.first(shared)) if longest and shared else (known,)

    def keep(self, rows: Iterable[tuple[Row, int, Tensor]], cache: Cache) -> None:
        """Keep what has been run of the rows with a lineage, as far as there is room.

        Each comes with its row of the cache, and which places [T] of that are its own: the first ones are its
        prompt and its answer, but for the last token, which may not have been run.
        """
        for row, number, own in rows:
            key, ids = key_of(row), (*row.prompt, *row.ids)[:-1]
            known = self._prompts[key].ids if key in self._prompts else ()
            if ids[: len(known)] != known or self.tokens + len(ids) - len(known) > self._room:
                continue
            self.tokens += len(ids) - len(known)
            start, places = len(known) or len(row.prompt) - 1, own.nonzero()[: len(ids), 0]
            if not known:
                self._prompts[key] = taken(cache, number, places[:start], ids[:start])
            self._answers[key].append(taken(cache, number, places[start:], ids[start:]))


def key_of(row: Row) -> Key:
    """What rows have in common that may go on after one another."""
    return row.request.lineage, row.request.image, row.request.view


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def taken(cache: Cache, row: int, places: Tensor, ids: tuple[int, ...]) -> Past:
    """A copy of some places of a row of a cache."""
    layers: list[Any] = cache.layers
    return Past(ids, tuple((layer.keys[row][:, places], layer.values[row][:, places]) for layer in layers))


def cache_of(pasts: Sequence[tuple[Past, ...]]) -> tuple[Cache, Tensor]:
    """A batch's cache that holds the rows' pasts, padded on the left, and the mask [B, T] of what is real."""
    device = pasts[0][0].layers[0][0].device
    lengths = torch.tensor([sum(len(past.ids) for past in row) for row in pasts], device=device)
    longest = int(lengths.max())
    rows = [[past.layers for past in row] for row in pasts]
    mask = torch.arange(longest, device=device) >= longest - lengths[:, None]
    return filled_cache(rows, longest), mask.long()
