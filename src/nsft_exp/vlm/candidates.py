"""Log-probabilities of the answers that a request asks about, after prompts that have been run."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from nsft_exp.vlm.prefill import State, advance
from nsft_exp.vlm.row import Row, candidate_ids

if TYPE_CHECKING:
    from nsft_exp.vlm.loaded import LoadedHF


def score_candidates(loaded: LoadedHF, rows: list[Row], state: State) -> None:
    """Fill in each asked answer's summed log-probability, the end of the answer included.

    All rows' k-th candidates run together on copies of the prompts' caches.
    """
    asking = [n for n, row in enumerate(rows) if row.request.candidates and row.number == 0]
    most = max((len(rows[n].request.candidates) for n in asking), default=0)
    totals: dict[int, list[float]] = {n: [] for n in asking}
    for k in range(most):
        numbers = [n for n in asking if len(rows[n].request.candidates) > k]
        answers = [candidate_ids(loaded, rows[n], k) for n in numbers]
        part = _copy_of(state, torch.tensor(numbers, device=state.logits.device))
        for n, total in zip(numbers, _answer_logps(loaded, part, answers), strict=True):
            totals[n].append(total)
    for n in asking:
        rows[n].candidate_logps = tuple(totals[n])


def _copy_of(state: State, rows: torch.Tensor) -> State:
    """Some rows' state in memory of its own, so that it can grow without changing this one's."""
    cache = copy.copy(state.cache)
    cache.layers = [copy.copy(layer) for layer in state.cache.layers]
    part = State(cache, state.mask, state.owner, state.position, state.logits)
    part.keep(rows)
    return part


def _answer_logps(loaded: LoadedHF, state: State, answers: list[list[int]]) -> list[float]:
    """Summed log-probability of each row's answer after its prompt."""
    longest = max(len(ids) for ids in answers)
    padded = torch.tensor([ids + [loaded.pad_id] * (longest - len(ids)) for ids in answers])
    totals = torch.zeros(len(answers), dtype=torch.float64)
    for step in range(longest):
        tokens = padded[:, step : step + 1].to(state.logits.device)
        logps = state.logits[:, 0].log_softmax(-1).gather(1, tokens)[:, 0].double().cpu()
        totals += torch.where(torch.tensor([len(ids) > step for ids in answers]), logps, 0.0)
        if step < longest - 1:
            advance(loaded, state, tokens)
    return totals.tolist()
