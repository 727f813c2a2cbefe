"""The running batch: prompts run through the model, shared parts once, and what follows token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from nsft_exp.vlm.cache import expect, growing_cache
from nsft_exp.vlm.family import Features
from nsft_exp.vlm.memory import cache_of
from nsft_exp.vlm.row import Row

if TYPE_CHECKING:
    from nsft_exp.vlm.loaded import LoadedHF


@dataclass
class State:
    """The running batch of R requests with n answers each: its cache, each request's next position, and the
    answers' next logits.

    The answers to a request share its prompt in one row of the cache, in which they take turns: `mask` [R, T]
    says which places are real, `owner` [T] whose each is (0: all answers', else that of the n-th, from 1).
    `position` is [axes, R, 1], `logits` [R, n, V].
    """

    cache: Cache
    mask: Tensor
    owner: Tensor
    position: Tensor
    logits: Tensor

    def keep(self, requests: Tensor) -> None:
        """Keep some requests of the batch only."""
        self.cache.batch_select_indices(requests)
        self.mask, self.logits = self.mask[requests], self.logits[requests]
        self.position = self.position[:, requests]

    def begin(self, answers: int) -> None:
        """Have each request answered so many times."""
        self.logits = self.logits.expand(-1, answers, -1)
        expect(self.cache, answers)

    def places(self, answer: int) -> Tensor:
        """Return which places [R, T] hold a request's prompt and the answer with this number, from 0."""
        return self.mask.bool() & ((self.owner == 0) | (self.owner == answer + 1))


def prefill(loaded: LoadedHF, rows: list[Row]) -> State:
    """Run the prompts of different requests; `logits` are those of the first answer token.

    Rows with a past (all of them, or none) go on after it. Where rows ask about the same images, the prompt
    up to the image (the same for all) is run once an image.
    """
    positions = [positions_of(loaded, row) for row in rows]
    if rows[0].past:
        cache, mask = cache_of([row.past for row in rows])
        known = [sum(len(past.ids) for past in row.past) for row in rows]
        return _run_rest(loaded, rows, positions, known, cache, mask)
    features, place = image_features(loaded, rows)
    if features is None or 2 * len(features) > len(rows):
        prompts = [row.prompt for row in rows]
        return _run_prompts(loaded, prompts, positions, features[place] if features else None)
    ends = [_image_end(loaded, row) for row in rows]
    first = [place.tolist().index(number) for number in range(len(features))]
    opening = _run_prompts(
        loaded,
        [rows[n].prompt[: ends[n]] for n in first],
        [positions[n][:, : ends[n]] for n in first],
        features,
    )
    opening.keep(place.to(loaded.device))
    return _run_rest(loaded, rows, positions, ends, opening.cache, opening.mask)


def _run_rest(
    loaded: LoadedHF, rows: list[Row], positions: list[Tensor], starts: list[int], cache: Cache, mask: Tensor
) -> State:
    """Run what of the prompts comes after their first tokens, which the cache holds."""
    rest = [row.prompt[start:] for row, start in zip(rows, starts, strict=True)]
    places = [found[:, start:] for found, start in zip(positions, starts, strict=True)]
    return _run_prompts(loaded, rest, places, None, cache, mask)


def positions_of(loaded: LoadedHF, row: Row) -> Tensor:
    """The position ids [axes, T] of a row's prompt."""
    ids = torch.tensor([row.prompt])
    return loaded.positions(ids, [row.layout.grid if row.layout else None])[:, 0]


def _image_end(loaded: LoadedHF, row: Row) -> int:
    """The place after the prompt's image tokens."""
    assert row.layout is not None
    return row.prompt.index(loaded.chat.image_token_id) + row.layout.tokens


def image_features(loaded: LoadedHF, rows: list[Row]) -> tuple[Features | None, Tensor]:
    """The features of the rows' distinct images, and which of them each row has; None without images."""
    images = [(row.request.image, row.request.view) for row in rows]
    distinct = [(image, view) for image, view in dict.fromkeys(images) if image is not None]
    if not distinct:
        return None, torch.empty(0)
    place = {image: number for number, image in enumerate(distinct)}
    features = loaded.features(loaded.pictures(distinct))
    return features, torch.tensor([place[(str(image), view)] for image, view in images])


def _run_prompts(
    loaded: LoadedHF,
    prompts: list[tuple[int, ...]],
    positions: list[Tensor],
    features: Features | None,
    cache: Cache | None = None,
    before: Tensor | None = None,
) -> State:
    """Run prompts with their positions [axes, T], padded on the left, after what the cache holds: its real
    places are `before` [B, T].
    """
    ids, mask, position = pad_prompts(loaded, prompts, positions)
    mask = torch.cat([before, mask], dim=1) if before is not None else mask
    cache = growing_cache() if cache is None else cache
    out = loaded.run(ids, features, position, attention_mask=mask, past_key_values=cache, use_cache=True)
    logits = loaded.model.lm_head(out.last_hidden_state[:, -1:]).float()
    following = position.amax(dim=(0, 2)) + 1  # M-RoPE goes on after the largest of the axes
    owner = mask.new_zeros(mask.shape[1])
    return State(cache, mask, owner, following.expand(len(position), -1)[..., None], logits)


def pad_prompts(
    loaded: LoadedHF, prompts: list[tuple[int, ...]], positions: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts padded on the left: ids [B, T], the mask of what is real [B, T], positions [axes, B, T]."""
    device, longest = loaded.device, max(len(prompt) for prompt in prompts)
    padding = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([[loaded.pad_id] * pad + list(p) for pad, p in zip(padding, prompts, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding], device=device)
    position = torch.stack([pad_left(p, longest) for p in positions], dim=1)
    return ids.to(device), mask, position.to(device)


def pad_left(positions: Tensor, length: int) -> Tensor:
    """Return positions [axes, T] with zeros before them, [axes, length]."""
    return torch.nn.functional.pad(positions, (length - positions.shape[1], 0))


def advance(loaded: LoadedHF, state: State, tokens: Tensor) -> None:
    """Run one more token [R, n] of every answer through the model."""
    answers = tokens.shape[1]
    whose = torch.arange(1, answers + 1, device=tokens.device)
    state.mask = torch.cat([state.mask, torch.ones_like(tokens)], dim=1)
    state.owner = torch.cat([state.owner, whose])
    out = loaded.run(
        tokens,
        positions=state.position.expand(-1, -1, answers),
        attention_mask=state.mask if answers == 1 else visible(state, answers),
        past_key_values=state.cache,
        use_cache=True,
    )
    state.logits = loaded.model.lm_head(out.last_hidden_state).float()
    state.position = state.position + 1


def visible(state: State, answers: int) -> Tensor:
    """Return which places the answers' next tokens see: bool [R, 1, n, T]."""
    return torch.stack([state.places(answer) for answer in range(answers)], dim=1)[:, None]
