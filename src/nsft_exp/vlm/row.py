"""One answer in the making: what a request asks for, its prompt, and the reply that it becomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from nsft_exp.images import Layout
from nsft_exp.records import Reply, Request, UserError
from nsft_exp.vlm.beams import refuse_beams
from nsft_exp.vlm.sampling import noise_of

if TYPE_CHECKING:
    from nsft_exp.vlm.loaded import LoadedHF
    from nsft_exp.vlm.memory import Past


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
    past: tuple[Past, ...] = ()
    """What of the prompt has been run before."""

    def done(self) -> bool:
        """True where the answer has ended or reached its limit."""
        return self.finish != "length" or len(self.ids) >= self.limit


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


def candidate_ids(loaded: LoadedHF, row: Row, k: int) -> list[int]:
    """The ids of a candidate that follow the row's prompt (and its answer prefix, where it has one)."""
    text = row.request.candidates[k].strip()
    if not row.prefix:
        return list(loaded.chat.answer(text))
    whole = list(loaded.chat.answer(f"{row.request.answer_prefix.strip()} {text}"))
    if tuple(whole[: len(row.prefix)]) != row.prefix:
        raise UserError(f"request {row.request.id}: candidate {text!r} merges with the answer prefix")
    return whole[len(row.prefix) :]


def reply_of(loaded: LoadedHF, row: Row) -> Reply:
    """The row's answer; its text begins with the answer prefix, its ids and log-probabilities do not."""
    words: list[Any] = [*row.prefix, *row.ids]
    text = loaded.tokenizer.decode(words, skip_special_tokens=True).strip()
    return Reply(text, tuple(row.ids), tuple(row.logps), row.finish, row.candidate_logps)
