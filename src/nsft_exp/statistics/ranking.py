"""Areas under ROC curves of ranked items."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from nsft_exp.records import ItemScore


def rank_metrics(scores: Iterable[ItemScore]) -> dict[str, float]:
    """Return `<group>_auc` (0-1, ties count 1/2; NaN without both labels) for every group of ranked items."""
    groups: dict[str, list[tuple[int, float]]] = {}
    for score in scores:
        for group, ranked in score.ranks.items():
            groups.setdefault(group, []).append(ranked)
    return {f"{group}_auc": auc(*zip(*rows, strict=True)) for group, rows in groups.items()}


def auc(labels: Sequence[int], ranks: Sequence[float]) -> float:
    """Return the chance that a positive ranks above a negative (0-1, ties 1/2): Mann-Whitney U / pairs."""
    label, rank = np.array(labels, dtype=bool), np.array(ranks, dtype=float)
    num_positive, num_negative = int(label.sum()), int((~label).sum())
    if not num_positive or not num_negative:
        return math.nan
    _, inverse, counts = np.unique(rank, return_inverse=True, return_counts=True)
    midranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    u = midranks[label].sum() - num_positive * (num_positive + 1) / 2
    return float(u / (num_positive * num_negative))
