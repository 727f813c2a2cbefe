"""Keys and values of a running batch, which a new token is written into instead of copied with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

Layers = Sequence[tuple[Tensor, Tensor]]
"""Keys and values [H, T, D] of every layer."""
ROOM = 64
"""Tokens of an answer that a layer gets room for when it has to be moved."""


def growing_cache() -> Cache:
    """An empty cache without a limit: `transformers.DynamicCache`, but for how it grows."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def filled_cache(rows: Sequence[Sequence[Layers]], length: int) -> Cache:
    """A growing cache of rows, each put together from parts, with zeros before them up to `length` tokens."""
    cache = growing_cache()
    for number in range(len(rows[0][0])):
        layer = GrowingLayer()
        layer.fill([[part[number] for part in row] for row in rows], length)
        cache.layers.append(layer)
    return cache


def expect(cache: Cache, answers: int) -> None:
    """Have a growing cache make room for so many answers a row from now on."""
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.more = ROOM * answers


class GrowingLayer(DynamicLayer):
    """A layer's keys and values [B, H, T, D], a view of the first T places of what is allocated.

    DynamicLayer concatenates: each new token copies all that came before it, and needs it twice for a moment.
    """

    keys: Tensor
    values: Tensor
    more: int = ROOM
    """Tokens that it gets room for when it is moved."""
    _room: tuple[Tensor, Tensor] | None = None

    def fill(self, rows: Sequence[Layers], length: int) -> None:
        """Hold rows of keys and values, the parts of each one after another, padded on the left."""
        keys, values = rows[0][0]
        self.lazy_initialization(keys, values)
        heads, _, width = keys.shape
        self._room = (
            keys.new_zeros(len(rows), heads, length + ROOM, width),
            values.new_zeros(len(rows), heads, length + ROOM, width),
        )
        for which, room in enumerate(self._room):
            for number, parts in enumerate(rows):
                whole = torch.cat([part[which] for part in parts], dim=1)
                room[number, :, length - whole.shape[1] : length] = whole
        self._look(length)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the new tokens' keys and values [B, H, N, D]; return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < end:
            self._room = (
                self._moved(self.keys, key_states, end),
                self._moved(self.values, value_states, end),
            )
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self._look(end)
        return self.keys, self.values

    def _moved(self, old: Tensor, new: Tensor, end: int) -> Tensor:
        """What `old` holds, with room for some tokens beyond `end`."""
        room = new.new_empty(*new.shape[:2], end + self.more, new.shape[-1])
        if old.numel():
            room[:, :, : old.shape[-2]] = old
        return room

    def _look(self, length: int) -> None:
        assert self._room is not None
        self.keys, self.values = (room[:, :, :length] for room in self._room)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch, which may repeat, and the room after them."""
        if self._room is not None:
            length = self.get_seq_length()
            self._room = (self._room[0][indices], self._room[1][indices])
            self._look(length)
