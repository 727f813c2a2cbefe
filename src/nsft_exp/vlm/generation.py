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

Answers = list[Row]
"""Answers in the making to one request, whose prompt they share."""


def generate(loaded: LoadedHF, requests: Sequence[Request]) -> Iterator[tuple[str, tuple[Reply, ...]]]:
    """Yield (request id, replies) for every request, as their batches end.

    Raises UserError for wishes that do not go together, an unknown view, a prompt that is too long, or a GPU
    out of memory.
    """
    for request in requests:
        refuse(request)
    asked = [rows_of(loaded, request) for request in requests]
    loaded.memory.recall([row for answers in asked for row in answers], loaded.batch_size)
    waiting: dict[str, list[Row]] = defaultdict(list)
    for batch in _batches(asked, loaded.batch_size):
        try:
            (_answer if batch[0][0].request.decoding.num_beams == 1 else _search)(loaded, batch)
        except torch.OutOfMemoryError:
            raise UserError(
                f"out of memory answering {sum(map(len, batch))} requests at once; lower vlm.batch_size"
            ) from None
        for row in (row for answers in batch for row in answers):
            waiting[row.request.id].append(row)
            if len(waiting[row.request.id]) == row.request.n:
                ready = sorted(waiting.pop(row.request.id), key=lambda r: r.number)
                yield row.request.id, tuple(reply_of(loaded, r) for r in ready)


def _batches(asked: Sequence[Answers], size: int) -> Iterator[list[Answers]]:
    """Cut what is asked into batches of one kind (`_kind`), of at most `size` rows where that can be."""
    kinds: dict[Any, list[Answers]] = defaultdict(list)
    for part in sorted((part for answers in asked for part in _parts(answers, size)), key=_place):
        kinds[_kind(part)].append(part)
    for (_, beams, rows, *_), some in sorted(kinds.items(), reverse=True):
        number = max(1, size // (beams * rows))
        yield from (some[start : start + number] for start in range(0, len(some), number))


def _parts(answers: Answers, size: int) -> Iterator[Answers]:
    """Cut a request's answers to the size of a batch, but for those that look at one another's tokens."""
    decoding = answers[0].request.decoding
    step = len(answers) if decoding.diversity > 0 else max(1, size // decoding.num_beams)
    yield from (answers[start : start + step] for start in range(0, len(answers), step))


def _kind(answers: Answers) -> tuple[bool, int, int, int, bool]:
    """What the requests of a batch have in common: an image or none, the beams, the number of answers, with
    several beams the limit, a past or none.
    """
    row = answers[0]
    beams = row.request.decoding.num_beams
    limit = row.limit if beams > 1 else 0
    return row.request.image is not None, beams, len(answers), limit, bool(row.past)


def _place(answers: Answers) -> tuple[Any, ...]:
    """Where answers stand: batches hold those of similar length, the longest first, about few images."""
    row = answers[0]
    image = row.request.image
    return -(len(row.prompt) // 32), str(image), -len(row.prompt), row.request.id, row.number


@torch.inference_mode()
def _search(loaded: LoadedHF, asked: list[Answers]) -> None:
    """Answer rows by beam search."""
    rows = [row for answers in asked for row in answers]
    features, place = image_features(loaded, rows)
    ids, mask, positions = pad_prompts(
        loaded, [row.prompt for row in rows], [positions_of(loaded, row) for row in rows]
    )
    embeddings = loaded.embeddings(ids, features[place] if features else None)
    search_beams(loaded, rows, embeddings, mask, positions)


@torch.inference_mode()
def _answer(loaded: LoadedHF, asked: list[Answers]) -> None:
    firsts = [answers[0] for answers in asked]
    state = prefill(loaded, firsts)
    score_candidates(loaded, firsts, state)
    state.begin(len(asked[0]))
    while True:
        running = [number for number, answers in enumerate(asked) if not _ended(answers)]
        if not running:
            _remember(loaded, asked, state)
            return
        if len(running) <= len(asked) // 2:
            _remember(loaded, asked, state)
            state.keep(torch.tensor(running, device=state.logits.device))
            asked = [asked[number] for number in running]
        _step(loaded, asked, state)


def _ended(answers: Answers) -> bool:
    return all(row.done() for row in answers)


def _remember(loaded: LoadedHF, asked: list[Answers], state: State) -> None:
    """Have the model's memory keep what has been run of the requests whose answers have ended."""
    ended = [
        (n, answers) for n, answers in enumerate(asked) if answers[0].request.lineage and _ended(answers)
    ]
    places = [state.places(k) for k in range(len(asked[0]))] if ended else []
    found = ((row, n, places[k][n]) for n, answers in ended for k, row in enumerate(answers))
    loaded.memory.keep(found, state.cache)


def _step(loaded: LoadedHF, asked: list[Answers], state: State) -> None:
    """Choose every running answer's next token and run it through the model."""
    rows = [row for answers in asked for row in answers]
    noise = [None if row.done() else row.noise for row in rows]
    chosen = choose(state.logits.flatten(0, 1), noise, [row.request for row in rows]).view(len(asked), -1)
    _diversify(chosen, state.logits, asked)
    logps = state.logits.log_softmax(-1).gather(2, chosen[..., None]).flatten().tolist()
    for row, token, logp in zip(rows, chosen.flatten().tolist(), logps, strict=True):
        if row.done():
            continue
        row.ids.append(token)
        row.logps.append(logp)
        if token in loaded.stops:
            row.finish = "stop"
        elif row.request.decoding.one_sentence and token in loaded.sentence_ends:
            row.finish = "sentence"
    if not all(row.done() for row in rows):
        advance(loaded, state, chosen)


def _diversify(chosen: Tensor, logits: Tensor, asked: list[Answers]) -> None:
    """Have the greedy answers to one request avoid one another's tokens: group beam search, a beam a group.

    Vijayakumar et al. 2018 with the Hamming penalty, as transformers 4 had it: each answer's logits [R, n, V]
    lose the request's `diversity` at the tokens of those before it. Changes `chosen` [R, n] in place.
    """
    strength = torch.tensor([[_diversity(row) for row in answers] for answers in asked], device=logits.device)
    if not strength.any():
        return
    for k in range(1, len(asked[0])):
        penalty = torch.zeros_like(logits[:, k]).scatter_add_(1, chosen[:, :k], strength[:, :k])
        other = (logits[:, k] - penalty).argmax(-1)
        chosen[:, k] = torch.where(strength[:, k] > 0, other, chosen[:, k])


def _diversity(row: Row) -> float:
    """What a running answer's token costs in those after it; sampled ones take no part."""
    return 0.0 if row.done() or row.noise is not None else row.request.decoding.diversity
