"""Do two models' greedy answers agree? They may part where rounding decides between two near tokens."""

from __future__ import annotations

from collections.abc import Sequence

from nsft_exp.export.probe import GreedyAnswer
from nsft_exp.records import UserError

ROUNDING = 0.25
"""Nats by which a token's log-probability may differ between two bf16 runs of one model (ours: bf16 keeps 8
bits, so that a logit near 30 has steps of 0.125)."""


def agree(first: GreedyAnswer, second: GreedyAnswer) -> bool:
    """True where the answers are equal, or part at a near tie.

    Up to the first token that differs, and at it, both models give their tokens the same log-probability
    within `ROUNDING`; a model that prefers another token by more than that gives its own choice more.
    """
    if first.ids == second.ids:
        return True
    for a, p, b, q in zip(first.ids, first.logps, second.ids, second.logps, strict=False):
        if abs(p - q) > ROUNDING:
            return False
        if a != b:
            return True
    return False


def summary(what: str, first: Sequence[GreedyAnswer], second: Sequence[GreedyAnswer]) -> str:
    """`32 of 32 agree (30 to the last token)`. Raises UserError where an answer does not agree."""
    pairs = list(zip(first, second, strict=True))
    same, agreeing = sum(a.ids == b.ids for a, b in pairs), sum(agree(a, b) for a, b in pairs)
    text = f"{agreeing} of {len(pairs)} agree ({same} to the last token)"
    if agreeing < len(pairs):
        raise UserError(f"greedy answers against {what}: only {text}; it is not the same model")
    return text
