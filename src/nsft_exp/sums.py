"""Sums of loss terms and diagnostics over the micro-batches of a global batch, and what they come to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from nsft_exp import losses
from nsft_exp.batching import Batch
from nsft_exp.interfaces import Method
from nsft_exp.losses import TokenScores

Totals = dict[str, list[Any]]
"""Name -> [sum, weight]."""


def term_weights(method: Method, batches: list[Batch]) -> dict[str, float]:
    """Return each loss term's weight over a global batch, from roles and weights alone."""
    weights: dict[str, float] = defaultdict(float)
    for batch in batches:
        zeros = torch.zeros_like(batch.weight)
        blank = TokenScores(zeros, batch.weight, batch.role, batch.example, kl=zeros, value=zeros)
        for name, (_, weight) in method.loss(blank, blank).items():
            weights[name] += float(weight)
    return weights


def add(
    totals: Totals,
    terms: dict[str, tuple[Any, Any]],
    policy: TokenScores,
    reference: TokenScores | None,
) -> None:
    """Add a micro-batch's terms (as `loss/<name>`) and diagnostics to the sums."""
    for name, (total, weight) in _named(terms, policy, reference):
        totals[name][0] += float(total)
        totals[name][1] += float(weight)


def _named(
    terms: dict[str, tuple[Any, Any]], policy: TokenScores, reference: TokenScores | None
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    with torch.no_grad():
        for name, term in terms.items():
            yield f"loss/{name}", term
        yield from losses.diagnostics(policy, reference)


def means(totals: Totals) -> dict[str, float]:
    """Return sum / weight of everything, and `loss`, the sum of the loss terms."""
    values = {name: total / weight for name, (total, weight) in totals.items() if weight > 0}
    return {"loss": sum(v for name, v in values.items() if name.startswith("loss/")), **values}


def contents(batches: list[Batch]) -> dict[str, int]:
    """What a global batch holds: examples, conversations, supervised tokens, tokens without padding."""
    return {
        "examples": sum(len(b.numbers) for b in batches),
        "conversations": sum(len(b.ids) for b in batches),
        "supervised_tokens": sum(int(b.where.sum()) for b in batches),
        "tokens": sum(b.tokens for b in batches),
    }
