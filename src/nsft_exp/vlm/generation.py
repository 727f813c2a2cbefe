"""Batched answers from a model in memory, with the log-probabilities of asked answers.

They are greedy, sampled, or searched with beams (beams.py). An answer in the making is in row.py, the running
of prompts in prefill.py, the scoring of asked answers in candidates.py.

Prompts are padded on the left and sorted by length. An answer does not depend on the batch that it is made
in: padding is masked, positions count from each prompt's own start, and the noise of a sampled token is drawn
from a generator that belongs to (seed, request id, sample number).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nsft_exp.records import Reply, Request, UserError
from nsft_exp.vlm.beams import search_beams
from nsft_exp.vlm.candidates import score_candidates
from nsft_exp.vlm.prefill import State, advance, image_features, pad_prompts, positions_of, prefill
from nsft_exp.vlm.row import Row, refuse, reply_of, rows_of
from nsft_exp.vlm.sampling import choose

if TYPE_CHECKING:
    from nsft_exp.vlm.loaded import LoadedHF


def generate(loaded: LoadedHF, requests: Sequence[Request]) -> Iterator[tuple[str, tuple[Reply, ...]]]:
    """Yield (request id, replies) for every request, as their batches end.

    Raises UserError for wishes that do not go together, an unknown view, a prompt that is too long, or a GPU
    out of memory.
    """
    for request in requests:
        refuse(request)
    rows = [row for request in requests for row in rows_of(loaded, request)]
    loaded.memory.recall(rows, loaded.batch_size)
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
    """Cut rows into batches of one kind (`_kind`)."""
    kinds: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        kinds[_kind(row)].append(row)
    for (_, beams, *_), some in sorted(kinds.items(), reverse=True):
        start = 0
        while start < len(some):
            end = start + max(1, size // beams)
            while end < len(some) and _bound(some[end - 1], some[end]):
                end += 1
            yield some[start:end]
            start = end


def _kind(row: Row) -> tuple[bool, int, int, bool]:
    """What the rows of a batch have in common: an image or none, the beams and with several the limit, a past
    or none.
    """
    beams = row.request.decoding.num_beams
    return row.request.image is not None, beams, row.limit if beams > 1 else 0, bool(row.past)


def _bound(first: Row, second: Row) -> bool:
    """True for two answers that look at one another's tokens, and so belong into one batch."""
    return first.request is second.request and first.request.decoding.diversity > 0


def _place(row: Row) -> tuple[Any, ...]:
    """Where a row stands: batches hold rows of similar length, the longest first, about few images."""
    image = row.request.image
    return -(len(row.prompt) // 32), str(image), -len(row.prompt), row.request.id, row.number


@torch.inference_mode()
def _search(loaded: LoadedHF, rows: list[Row]) -> None:
    """Answer rows by beam search."""
    features, place = image_features(loaded, rows)
    ids, mask, positions = pad_prompts(
        loaded, [row.prompt for row in rows], [positions_of(loaded, row) for row in rows]
    )
    embeddings = loaded.embeddings(ids, features[place] if features else None)
    search_beams(loaded, rows, embeddings, mask, positions)


@torch.inference_mode()
def _answer(loaded: LoadedHF, rows: list[Row]) -> None:
    state = prefill(loaded, rows)
    score_candidates(loaded, rows, state)
    live = rows
    while True:
        running = [number for number, row in enumerate(live) if not row.done()]
        if not running:
            loaded.memory.keep(enumerate(live), state.cache, state.mask)
            return
        if len(running) <= len(live) // 2:
            ended = ((number, row) for number, row in enumerate(live) if row.done())
            loaded.memory.keep(ended, state.cache, state.mask)
            state.keep(torch.tensor(running, device=state.logits.device))
            live = [live[number] for number in running]
        _step(loaded, live, state)


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
        advance(loaded, state, chosen[:, None])


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
