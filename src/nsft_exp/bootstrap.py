"""Is the difference real? Bootstrap over images and seeds, t-intervals over seeds, Holm over a table.

Items are clustered by image and crossed with seeds: every seed's model answers the same items. The
pigeonhole bootstrap (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007) resamples
images and seeds independently and weighs an item of a seed by the product of the two. With few seeds it
sees too little of their spread, so beside it stands the t-interval of the per-seed differences, and a
difference counts only where both exclude zero. Metrics are functions of summed counts, so that F1 or
CHAIR_i, which are no means over items, get right intervals. Needs numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nsft_exp.records import ItemScore
from nsft_exp.statistics import LEVEL, Interval, multiplicities, percentile_interval, student_interval

Metrics = Callable[[Mapping[str, Any]], dict[str, Any]]
"""`Benchmark.metrics`: summed counts -> metrics, elementwise on arrays."""
Scores = Mapping[int | None, Sequence[ItemScore]]
"""Seed -> the scored items of that seed's model; seed None: one model that stands beside every seed."""

REPLICATES = 10_000
CHUNK = 500  # replicates at a time: bounds memory at CHUNK x images


@dataclass(frozen=True)
class Difference:
    """How one metric differs between two models, on the items that both have a score for."""

    value: float
    """Mean over seeds of metric(a) - metric(b), in the metric's own scale; NaN where undefined."""
    per_seed: tuple[float, ...]
    bootstrap: Interval | None
    """Percentile interval of the pigeonhole bootstrap."""
    student: Interval | None
    """t-interval of `per_seed` (df = seeds - 1); None with fewer than two seeds."""
    p_bootstrap: float | None
    p_student: float | None
    seeds: tuple[int | None, ...]
    items: int
    """Items compared, summed over seeds divided by seeds (rounded)."""
    clusters: int
    replicates: int
    """Bootstrap replicates in which the difference was defined."""
    unpaired: int
    """Scored items left out, over all seeds, because the other model has no score for them."""

    @property
    def p(self) -> float | None:
        """The larger of the two p-values: below alpha exactly where both intervals exclude zero."""
        if self.p_bootstrap is None or self.p_student is None:
            return None
        return max(self.p_bootstrap, self.p_student)


def compare(
    a: Scores,
    b: Scores,
    metrics: Metrics,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Difference]:
    """Return the Difference a - b of every metric, `<group>_auc` of ranked items included.

    The same `seed` and clusters give the same replicates, so differences of one table are comparable.
    """
    seeds = common_seeds(a, b)
    pairs = [_paired(a[_at(a, s)], b[_at(b, s)]) for s in seeds]
    clusters = sorted({score.cluster for pair in pairs for side in pair[:2] for score in side})
    if not clusters:
        return {}
    place = {cluster: i for i, cluster in enumerate(clusters)}
    sums_a = [_Sums.of(pair[0], place) for pair in pairs]
    sums_b = [_Sums.of(pair[1], place) for pair in pairs]
    observed = _differences(sums_a, sums_b, metrics, np.ones((1, len(clusters))))
    rng = np.random.default_rng(seed)
    drawn = _bootstrap(sums_a, sums_b, metrics, len(clusters), replicates, rng)
    facts = {
        "seeds": tuple(seeds),
        "items": round(sum(len(pair[0]) for pair in pairs) / len(pairs)),
        "clusters": len(clusters),
        "unpaired": sum(pair[2] for pair in pairs),
    }
    return {name: _difference(observed[name][:, 0], drawn[name], level, facts) for name in observed}


def common_seeds(a: Scores, b: Scores) -> list[int | None]:
    """Return the seeds that both sides have; a side with the single seed None stands beside every seed."""
    if set(a) == {None} or set(b) == {None}:
        return sorted(set(a) if set(b) == {None} else set(b), key=lambda s: (s is not None, s))
    return sorted((set(a) & set(b)) - {None}, key=lambda s: (s is not None, s))


def _at(scores: Scores, seed: int | None) -> int | None:
    return seed if seed in scores else None


def _paired(a: Sequence[ItemScore], b: Sequence[ItemScore]) -> tuple[list[ItemScore], list[ItemScore], int]:
    in_a, in_b = {s.id for s in a}, {s.id for s in b}
    common = in_a & in_b
    return [s for s in a if s.id in common], [s for s in b if s.id in common], len(in_a ^ in_b)


def _difference(observed: np.ndarray, drawn: np.ndarray, level: float, facts: dict[str, Any]) -> Difference:
    drawn = drawn[np.isfinite(drawn)]
    interval, p = (
        percentile_interval(drawn, level) if len(drawn) and np.isfinite(observed).all() else (None, None)
    )
    student, p_student = student_interval(observed, level)
    return Difference(
        value=float(observed.mean()),
        per_seed=tuple(float(x) for x in observed),
        bootstrap=interval,
        student=student,
        p_bootstrap=p,
        p_student=p_student,
        replicates=len(drawn),
        **facts,
    )


# --- the bootstrap ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ranks:
    """What the area under a ROC curve needs, by cluster: it is a ratio of forms in the clusters' weights."""

    wins: np.ndarray  # [C, C]: pairs (positive in row, negative in column) in the right order, ties 1/2
    positives: np.ndarray  # [C]
    negatives: np.ndarray  # [C]

    def auc(self, weights: np.ndarray) -> np.ndarray:
        """Return the weighted areas [R] in 0-1 for cluster weights [R, C]."""
        pairs = (weights @ self.positives) * (weights @ self.negatives)
        return ((weights @ self.wins) * weights).sum(1) / pairs


@dataclass(frozen=True)
class _Sums:
    """One model's scores summed within clusters."""

    counts: dict[str, np.ndarray]  # name -> [C]
    ranks: dict[str, _Ranks]

    @classmethod
    def of(cls, scores: Sequence[ItemScore], place: Mapping[str, int]) -> _Sums:
        names = sorted({name for score in scores for name in score.counts})
        column = {name: i for i, name in enumerate(names)}
        sums = np.zeros((len(place), len(names)))
        for score in scores:
            for name, count in score.counts.items():
                sums[place[score.cluster], column[name]] += count
        ranked: dict[str, list[tuple[int, int, float]]] = {}
        for score in scores:
            for group, (label, rank) in score.ranks.items():
                ranked.setdefault(group, []).append((place[score.cluster], label, rank))
        ranks = {
            group: _ranks(*zip(*rows, strict=True), num_clusters=len(place)) for group, rows in ranked.items()
        }
        return cls({name: sums[:, i] for name, i in column.items()}, ranks)

    def metrics(self, metrics: Metrics, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return every metric [R] for cluster weights [R, C]; NaN where undefined."""
        with np.errstate(divide="ignore", invalid="ignore"):
            values = metrics({name: weights @ count for name, count in self.counts.items()})
            areas = {f"{group}_auc": ranks.auc(weights) for group, ranks in self.ranks.items()}
        shape = (len(weights),)
        return {k: np.broadcast_to(np.asarray(v, dtype=float), shape) for k, v in {**values, **areas}.items()}


def _ranks(rows: Sequence[tuple[int, int, float]], num_clusters: int) -> _Ranks:
    """Return the sums of ranked items given as (cluster, label 0/1, rank)."""
    cluster, label = (np.array([row[i] for row in rows], dtype=int) for i in (0, 1))
    rank = np.array([row[2] for row in rows], dtype=float)
    positive, negative = np.flatnonzero(label), np.flatnonzero(1 - label)
    wins = np.zeros((num_clusters, num_clusters))
    for i in positive:
        won = (rank[i] > rank[negative]) + 0.5 * (rank[i] == rank[negative])
        wins[cluster[i]] += np.bincount(cluster[negative], weights=won, minlength=num_clusters)
    totals = [np.bincount(cluster[i], minlength=num_clusters).astype(float) for i in (positive, negative)]
    return _Ranks(wins, *totals)


def _differences(
    a: list[_Sums], b: list[_Sums], metrics: Metrics, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Return metric -> [S, R]: the difference of every seed under every row of cluster weights."""
    rows = []
    for one, other in zip(a, b, strict=True):
        left, right = one.metrics(metrics, weights), other.metrics(metrics, weights)
        rows.append({name: left[name] - right[name] for name in left if name in right})
    return {
        name: np.stack([row[name] for row in rows]) for name in rows[0] if all(name in row for row in rows)
    }


def _bootstrap(
    a: list[_Sums],
    b: list[_Sums],
    metrics: Metrics,
    num_clusters: int,
    replicates: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Return metric -> [replicates]: mean differences with clusters and seeds both drawn with replacement."""
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, replicates, CHUNK):
        size = min(CHUNK, replicates - start)
        clusters = multiplicities(num_clusters, size, rng)  # [R, C]
        seeds = multiplicities(len(a), size, rng).T  # [S, R]
        for name, values in _differences(a, b, metrics, clusters).items():
            drawn = np.where(seeds > 0, seeds * values, 0.0).sum(0) / len(a)
            parts.setdefault(name, []).append(drawn)
    return {name: np.concatenate(chunks) for name, chunks in parts.items()}
