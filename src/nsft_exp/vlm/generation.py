"""Batched answers from a model in memory, with the log-probabilities of asked answers.

They are greedy, sampled, or searched with beams (beams.py).

Prompts are padded on the left and sorted by length. An answer does not depend on the batch that it is made
in: padding is masked, positions count from each prompt's own start, and the noise of a sampled token is drawn
from a generator that belongs to (seed, request id, sample number).
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nsft_exp.images import Layout
from nsft_exp.records import Reply, Request, UserError
from nsft_exp.vlm.beams import refuse_beams, search_beams
from nsft_exp.vlm.family import Features
from nsft_exp.vlm.sampling import choose, noise_of

if TYPE_CHECKING:
    from nsft_exp.vlm.loaded import LoadedHF


@dataclass
class Row:
    """One answer in the making: a request's `number`-th sample."""

    request: Request
    number: int
    layout: Layout | None
    prompt: tuple[int, ...]
    prefix: tuple[int, ...]
    limit: int
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: str = "length"
    candidate_logps: tuple[float, ...] | None = None
    noise: torch.Generator | None = None

    def done(self) -> bool:
        """True where the answer has ended or reached its limit."""
        return self.finish != "length" or len(self.ids) >= self.limit


@dataclass
class State:
    """The running batch: its cache, which places are real, each row's next position and next logits.

    `mask` is [B, T], `position` [axes, B, 1], `logits` [B, V].
    """

    cache: DynamicCache
    mask: Tensor
    position: Tensor
    logits: Tensor

    def keep(self, rows: Tensor) -> None:
        """Keep some rows of the batch only."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position, self.logits = self.mask[rows], self.position[:, rows], self.logits[rows]


def generate(loaded: LoadedHF, requests: Sequence[Request]) -> Iterator[tuple[str, tuple[Reply, ...]]]:
    """Yield (request id, replies) for every request, as their batches end.

    Raises UserError for wishes that do not go together, an unknown view, a prompt that is too long, or a GPU
    out of memory.
    """
    for request in requests:
        refuse(request)
    rows = [row for request in requests for row in rows_of(loaded, request)]
    rows.sort(key=_place)
    waiting: dict[str, list[Row]] = defaultdict(list)
    for batch in _batches(rows, loaded.batch_size):
        try:
            (_answer if batch[0].request.decoding.num_beams == 1 else _search)(loaded, batch)
        except torch.OutOfMemoryError:
            raise UserError(
                f"out of memory answering {len(batch)} requests at once; lower vlm.batch_size"
            ) from None
        for row in batch:
            waiting[row.request.id].append(row)
            if len(waiting[row.request.id]) == row.request.n:
                ready = sorted(waiting.pop(row.request.id), key=lambda r: r.number)
                yield row.request.id, tuple(reply_of(loaded, r) for r in ready)


def _batches(rows: list[Row], size: int) -> Iterator[list[Row]]:
    """Cut rows into batches of one kind: with an image or without, with as many beams."""
    kinds: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        kinds[_kind(row)].append(row)
    for (_, beams, _), some in sorted(kinds.items(), reverse=True):
        start = 0
        while start < len(some):
            end = start + max(1, size // beams)
            while end < len(some) and _bound(some[end - 1], some[end]):
                end += 1
            yield some[start:end]
            start = end


def _kind(row: Row) -> tuple[bool, int, int]:
    """What the rows of a batch have in common: an image or none, the beams, and with several the limit."""
    beams = row.request.decoding.num_beams
    return row.request.image is not None, beams, row.limit if beams > 1 else 0


def _bound(first: Row, second: Row) -> bool:
    """True for two answers that look at one another's tokens, and so belong into one batch."""
    return first.request is second.request and first.request.decoding.diversity > 0


def _place(row: Row) -> tuple[Any, ...]:
    """Where a row stands: batches hold rows of similar length, the longest first, about few images."""
    image = row.request.image
    return -(len(row.prompt) // 32), str(image), -len(row.prompt), row.request.id, row.number


def refuse(request: Request) -> None:
    """Raise UserError for a request that no engine here can answer."""
    if request.decoding.num_beams < 1:
        raise UserError(f"request {request.id}: num_beams={request.decoding.num_beams}: must be at least 1")
    refuse_beams(request)
    if len(request.turns) % 2 == 0:
        raise UserError(f"request {request.id}: the last turn must be the user's")
    if request.n < 1:
        raise UserError(f"request {request.id}: n must be at least 1")


def rows_of(loaded: LoadedHF, request: Request) -> list[Row]:
    """The answers that a request asks for, their prompt made. Raises UserError for one that is too long."""
    try:
        layout = loaded.layout(request.image, request.view) if request.image is not None else None
        tokens = layout.tokens if layout else None
        prompt = loaded.chat.prompt(request.turns, tokens, request.answer_prefix)
    except UserError as error:
        raise UserError(f"request {request.id}: {error}") from None
    room = loaded.max_length - len(prompt)
    if room < 1:
        raise UserError(
            f"request {request.id}: the prompt of {len(prompt)} tokens leaves no room for an answer within "
            f"{loaded.max_length}; shorten it or raise vlm.max_length"
        )
    prefix = tuple(loaded.chat.text(request.answer_prefix.strip()))
    limit = min(request.decoding.max_new_tokens, room)
    return [
        Row(request, n, layout, prompt, prefix, limit, noise=noise_of(request, n)) for n in range(request.n)
    ]


@torch.inference_mode()
def _search(loaded: LoadedHF, rows: list[Row]) -> None:
    """Answer rows by beam search."""
    features, place = _features(loaded, rows)
    ids, mask, positions = _padded(
        loaded, [row.prompt for row in rows], [_positions(loaded, row) for row in rows]
    )
    embeddings = loaded.embeddings(ids, features[place] if features else None)
    search_beams(loaded, rows, embeddings, mask, positions)


@torch.inference_mode()
def _answer(loaded: LoadedHF, rows: list[Row]) -> None:
    state = _prefill(loaded, rows)
    _score_candidates(loaded, rows, state)
    live = rows
    while True:
        running = [number for number, row in enumerate(live) if not row.done()]
        if not running:
            return
        if len(running) <= len(live) // 2:
            state.keep(torch.tensor(running, device=state.logits.device))
            live = [live[number] for number in running]
        _step(loaded, live, state)


def _prefill(loaded: LoadedHF, rows: list[Row]) -> State:
    """Run the prompts; `logits` are those of the first answer token.

    A request's prompt is run once for all of its answers. Where rows ask about the same images, the prompt up
    to the image (the same for all) is run once an image.
    """
    asked = [id(row.request) for row in rows]
    different = list(dict.fromkeys(asked))
    if len(different) < len(rows):
        state = _prefill(loaded, [rows[asked.index(key)] for key in different])
        state.keep(torch.tensor([different.index(key) for key in asked], device=loaded.device))
        return state
    positions = [_positions(loaded, row) for row in rows]
    features, place = _features(loaded, rows)
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
    rest = [row.prompt[end:] for row, end in zip(rows, ends, strict=True)]
    places = [found[:, end:] for found, end in zip(positions, ends, strict=True)]
    return _run_prompts(loaded, rest, places, None, opening)


def _positions(loaded: LoadedHF, row: Row) -> Tensor:
    """The position ids [axes, T] of a row's prompt."""
    ids = torch.tensor([row.prompt])
    return loaded.positions(ids, [row.layout.grid if row.layout else None])[:, 0]


def _image_end(loaded: LoadedHF, row: Row) -> int:
    """The place after the prompt's image tokens."""
    assert row.layout is not None
    return row.prompt.index(loaded.chat.image_token_id) + row.layout.tokens


def _features(loaded: LoadedHF, rows: list[Row]) -> tuple[Features | None, Tensor]:
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
    before: State | None = None,
) -> State:
    """Run prompts with their positions [axes, T], padded on the left, after what `before` has run."""
    ids, mask, position = _padded(loaded, prompts, positions)
    mask = torch.cat([before.mask, mask], dim=1) if before else mask
    cache = before.cache if before else DynamicCache()
    out = loaded.run(ids, features, position, attention_mask=mask, past_key_values=cache, use_cache=True)
    logits = loaded.model.lm_head(out.last_hidden_state[:, -1]).float()
    following = position.amax(dim=(0, 2)) + 1  # M-RoPE goes on after the largest of the axes
    return State(cache, mask, following.expand(len(position), -1)[..., None], logits)


def _padded(
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


def _step(loaded: LoadedHF, rows: list[Row], state: State) -> None:
    """Choose every running row's next token and run it through the model."""
    chosen = choose(
        state.logits, [None if row.done() else row.noise for row in rows], [row.request for row in rows]
    )
    _diversify(chosen, state.logits, rows)
    logps = state.logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0].tolist()
    for row, token, logp in zip(rows, chosen.tolist(), logps, strict=True):
        if row.done():
            continue
        row.ids.append(token)
        row.logps.append(logp)
        if token in loaded.stops:
            row.finish = "stop"
        elif row.request.decoding.one_sentence and token in loaded.sentence_ends:
            row.finish = "sentence"
    if not all(row.done() for row in rows):
        _advance(loaded, state, chosen[:, None])


def _diversify(chosen: Tensor, logits: Tensor, rows: list[Row]) -> None:
    """Have the greedy answers to one request avoid one another's tokens: group beam search, a beam a group.

    Vijayakumar et al. 2018 with the Hamming penalty, as transformers 4 had it. Changes `chosen` [B] in place.
    """
    taken: dict[str, list[int]] = defaultdict(list)
    for number, row in sorted(enumerate(rows), key=lambda pair: pair[1].number):
        if row.done() or row.noise is not None or not row.request.decoding.diversity:
            continue
        scores = logits[number].clone()
        for token in taken[row.request.id]:
            scores[token] -= row.request.decoding.diversity
        chosen[number] = scores.argmax()
        taken[row.request.id].append(int(chosen[number]))


def _advance(loaded: LoadedHF, state: State, tokens: Tensor) -> None:
    """Run one more token [B, 1] of every row through the model."""
    state.mask = torch.cat([state.mask, torch.ones_like(tokens)], dim=1)
    out = loaded.run(
        tokens,
        positions=state.position,
        attention_mask=state.mask,
        past_key_values=state.cache,
        use_cache=True,
    )
    state.logits = loaded.model.lm_head(out.last_hidden_state[:, -1]).float()
    state.position = state.position + 1


def _score_candidates(loaded: LoadedHF, rows: list[Row], state: State) -> None:
    """Fill in each asked answer's summed log-probability, the end of the answer included.

    All rows' k-th candidates run together on copies of the prompts' caches.
    """
    asking = [n for n, row in enumerate(rows) if row.request.candidates and row.number == 0]
    most = max((len(rows[n].request.candidates) for n in asking), default=0)
    totals: dict[int, list[float]] = {n: [] for n in asking}
    for k in range(most):
        numbers = [n for n in asking if len(rows[n].request.candidates) > k]
        answers = [candidate_ids(loaded, rows[n], k) for n in numbers]
        part = _copied(state)
        part.keep(torch.tensor(numbers, device=state.logits.device))
        for n, total in zip(numbers, _answer_logps(loaded, part, answers), strict=True):
            totals[n].append(total)
    for n in asking:
        rows[n].candidate_logps = tuple(totals[n])


def candidate_ids(loaded: LoadedHF, row: Row, k: int) -> list[int]:
    """The ids of a candidate that follow the row's prompt (and its answer prefix, where it has one)."""
    text = row.request.candidates[k].strip()
    if not row.prefix:
        return list(loaded.chat.answer(text))
    whole = list(loaded.chat.answer(f"{row.request.answer_prefix.strip()} {text}"))
    if tuple(whole[: len(row.prefix)]) != row.prefix:
        raise UserError(f"request {row.request.id}: candidate {text!r} merges with the answer prefix")
    return whole[len(row.prefix) :]


def _copied(state: State) -> State:
    """A state whose cache can grow without changing this one's (a cache grows by concatenation)."""
    cache = copy.copy(state.cache)
    cache.layers = [copy.copy(layer) for layer in state.cache.layers]
    return State(cache, state.mask, state.position, state.logits)


def _answer_logps(loaded: LoadedHF, state: State, answers: list[list[int]]) -> list[float]:
    """Summed log-probability of each row's answer after its prompt."""
    longest = max(len(ids) for ids in answers)
    padded = torch.tensor([ids + [loaded.pad_id] * (longest - len(ids)) for ids in answers])
    totals = torch.zeros(len(answers), dtype=torch.float64)
    for step in range(longest):
        tokens = padded[:, step : step + 1].to(state.logits.device)
        logps = state.logits.log_softmax(-1).gather(1, tokens)[:, 0].double().cpu()
        totals += torch.where(torch.tensor([len(ids) > step for ids in answers]), logps, 0.0)
        if step < longest - 1:
            _advance(loaded, state, tokens)
    return totals.tolist()


def reply_of(loaded: LoadedHF, row: Row) -> Reply:
    """The row's answer; its text begins with the answer prefix, its ids and log-probabilities do not."""
    words: list[Any] = [*row.prefix, *row.ids]
    text = loaded.tokenizer.decode(words, skip_special_tokens=True).strip()
    return Reply(text, tuple(row.ids), tuple(row.logps), row.finish, row.candidate_logps)
