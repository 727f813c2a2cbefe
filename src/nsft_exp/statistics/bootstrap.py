"""Is the difference of two models real? Bootstrap over images and seeds, beside t-intervals over seeds.

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
from functools import cached_property
from typing import Any

import numpy as np

from nsft_exp.records import ItemScore
from nsft_exp.statistics.interval import (
    LEVEL,
    Interval,
    multiplicities,
    percentile_interval,
    student_interval,
)

Metrics = Callable[[Mapping[str, Any]], dict[str, Any]]
"""`Benchmark.metrics`: summed counts -> metrics, elementwise on arrays."""

CHUNK = 500  # replicates at a time: bounds memory at CHUNK x images


@dataclass(frozen=True, eq=False)
class ScoredItems:
    """The scored items of one model on one benchmark. Compares by identity, so that it can be remembered."""

    scores: tuple[ItemScore, ...]

    @cached_property
    def ids(self) -> frozenset[str]:
        """The ids of the items that have a score."""
        return frozenset(score.id for score in self.scores)


Models = Mapping[int | None, ScoredItems]
"""Seed -> the items of that seed's model; the single seed None: one model that stands beside every seed."""


@dataclass(frozen=True)
class Difference:
    """How one metric differs between two models, on the items that both have a score for."""

    value: float
    """Mean over seeds of metric(a) - metric(b), in the metric's own scale; NaN where undefined."""
    per_seed: tuple[float, ...]
    bootstrap: Interval | None
    """Percentile interval of the pigeonhole bootstrap; None where the difference is undefined."""
    student: Interval | None
    """t-interval of `per_seed` (df = seeds - 1); None with fewer than two seeds."""
    p_bootstrap: float | None
    p_student: float | None
    seeds: tuple[int | None, ...]
    items: int
    """Items compared per seed (rounded, where seeds lack different ones)."""
    clusters: int
    replicates: int
    """Bootstrap replicates in which the difference was defined."""
    unpaired: int
    """Scored items left out, over all seeds, because the other model has no score for them."""

    @property
    def p(self) -> float | None:
        """The larger of the two p-values: both tests must reject. None where one of them is not possible."""
        if self.p_bootstrap is None or self.p_student is None:
            return None
        return max(self.p_bootstrap, self.p_student)


class Bootstrap:
    """Comparisons on one benchmark, all under the same replicates, so that they fit together.

    `metrics` maps summed counts to metrics; `<group>_auc` of ranked items is added to them (0-1).
    """

    def __init__(
        self, metrics: Metrics, replicates: int = 10_000, level: float = LEVEL, seed: int = 0
    ) -> None:
        self.metrics, self.replicates, self.level, self.seed = metrics, replicates, level, seed
        self._weights: dict[int, np.ndarray] = {}
        self._known: dict[Any, dict[str, np.ndarray]] = {}

    def intervals(self, model: ScoredItems) -> dict[str, tuple[float, Interval | None]]:
        """Return every metric of one model with its percentile interval over images; None: undefined."""
        clusters = tuple(sorted({score.cluster for score in model.scores}))
        if not clusters:
            return {}
        found = {}
        for name, values in self._replicates(model, model.ids, clusters).items():
            drawn = values[1:][np.isfinite(values[1:])]
            usable = len(drawn) > 0 and bool(np.isfinite(values[0]))
            found[name] = float(values[0]), percentile_interval(drawn, self.level)[0] if usable else None
        return found

    def compare(self, a: Models, b: Models) -> dict[str, Difference]:
        """Return the Difference a - b of every metric that both have; empty without common items."""
        seeds = common_seeds(a, b)
        pairs = [(_model(a, s), _model(b, s)) for s in seeds]
        common = [one.ids & other.ids for one, other in pairs]
        clusters = tuple(
            sorted(
                {
                    s.cluster
                    for (one, _), ids in zip(pairs, common, strict=True)
                    for s in one.scores
                    if s.id in ids
                }
            )
        )
        if not clusters:
            return {}
        facts = {
            "seeds": tuple(seeds),
            "items": round(sum(len(ids) for ids in common) / len(seeds)),
            "clusters": len(clusters),
            "unpaired": sum(len(one.ids ^ other.ids) for one, other in pairs),
        }
        sides = [
            [self._replicates(model, ids, clusters) for model in pair]
            for pair, ids in zip(pairs, common, strict=True)
        ]
        names = [name for name in sides[0][0] if all(name in side for pair in sides for side in pair)]
        gaps = {name: np.stack([one[name] - other[name] for one, other in sides]) for name in names}
        return {name: self._difference(gap, facts) for name, gap in gaps.items()}

    def _difference(self, gaps: np.ndarray, facts: dict[str, Any]) -> Difference:
        """`gaps` is [S, 1 + R]: the observed difference of each seed, then its replicates."""
        observed, drawn = gaps[:, 0], self._over_seeds(gaps[:, 1:])
        drawn = drawn[np.isfinite(drawn)]
        usable = len(drawn) > 0 and bool(np.isfinite(observed).all())
        interval, p = percentile_interval(drawn, self.level) if usable else (None, None)
        student, p_student = student_interval(observed, self.level)
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

    def _over_seeds(self, gaps: np.ndarray) -> np.ndarray:
        """Return the mean [R] of [S, R] over seeds that are drawn with replacement."""
        num_seeds, size = gaps.shape
        seeds = multiplicities(num_seeds, size, np.random.default_rng([self.seed, 1])).T
        return np.where(seeds > 0, seeds * gaps, 0.0).sum(0) / num_seeds

    def _replicates(
        self, model: ScoredItems, ids: frozenset[str], clusters: tuple[str, ...]
    ) -> dict[str, np.ndarray]:
        """Return metric -> [1 + R]: the observed value, then those under the resampled clusters."""
        key = (model, ids, clusters)
        if key not in self._known:
            sums = ClusterSums.of([s for s in model.scores if s.id in ids], clusters)
            chunks = [sums.metrics(self.metrics, weights) for weights in self._chunks(len(clusters))]
            self._known[key] = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        return self._known[key]

    def _chunks(self, num_clusters: int) -> list[np.ndarray]:
        """Return the weights of clusters, a row a replicate: first all ones, then how often each is drawn."""
        if num_clusters not in self._weights:
            drawn = multiplicities(num_clusters, self.replicates, np.random.default_rng([self.seed, 0]))
            self._weights[num_clusters] = np.vstack([np.ones(num_clusters), drawn]).astype(np.float32)
        weights = self._weights[num_clusters]
        return [weights[i : i + CHUNK].astype(float) for i in range(0, len(weights), CHUNK)]


def common_seeds(a: Models, b: Models) -> list[int | None]:
    """Return the seeds that both sides have; a side with the single seed None stands beside every seed."""
    if set(b) == {None}:
        return sorted(a, key=lambda s: (s is not None, s))
    if set(a) == {None}:
        return sorted(b, key=lambda s: (s is not None, s))
    return [*sorted(s for s in a if s in b and s is not None)]


def _model(models: Models, seed: int | None) -> ScoredItems:
    return models[seed if seed in models else None]


@dataclass(frozen=True)
class Ranks:
    """What the area under a ROC curve needs, by cluster: it is a ratio of forms in the clusters' weights."""

    wins: np.ndarray  # [C, C]: pairs (positive in row, negative in column) in the right order, ties 1/2
    positives: np.ndarray  # [C]
    negatives: np.ndarray  # [C]

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, float]], num_clusters: int) -> Ranks:
        """Sum ranked items given as (cluster, label 0/1, rank)."""
        cluster, label = (np.array([row[i] for row in rows], dtype=int) for i in (0, 1))
        rank = np.array([row[2] for row in rows], dtype=float)
        positive, negative = np.flatnonzero(label), np.flatnonzero(1 - label)
        wins = np.zeros((num_clusters, num_clusters), np.float32)  # halves of whole numbers: exact
        for i in positive:
            won = (rank[i] > rank[negative]) + 0.5 * (rank[i] == rank[negative])
            wins[cluster[i]] += np.bincount(cluster[negative], weights=won, minlength=num_clusters)
        totals = [np.bincount(cluster[i], minlength=num_clusters).astype(float) for i in (positive, negative)]
        return cls(wins, *totals)

    def auc(self, weights: np.ndarray) -> np.ndarray:
        """Return the weighted areas [R] in 0-1 for cluster weights [R, C]; NaN without both labels."""
        pairs = (weights @ self.positives) * (weights @ self.negatives)
        ordered = ((weights.astype(np.float32) @ self.wins) * weights).sum(1)
        return ordered / pairs


@dataclass(frozen=True)
class ClusterSums:
    """One model's scores summed within clusters."""

    counts: dict[str, np.ndarray]  # name -> [C]
    ranks: dict[str, Ranks]

    @classmethod
    def of(cls, scores: Sequence[ItemScore], clusters: Sequence[str]) -> ClusterSums:
        """Sum counts and gather ranked items; `clusters` gives the order."""
        place = {cluster: i for i, cluster in enumerate(clusters)}
        counts = {name: np.zeros(len(place)) for score in scores for name in score.counts}
        ranked: dict[str, list[tuple[int, int, float]]] = {}
        for score in scores:
            for name, count in score.counts.items():
                counts[name][place[score.cluster]] += count
            for group, (label, rank) in score.ranks.items():
                ranked.setdefault(group, []).append((place[score.cluster], label, rank))
        return cls(counts, {group: Ranks.of(rows, len(place)) for group, rows in ranked.items()})

    def metrics(self, metrics: Metrics, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return every metric [R] for cluster weights [R, C]; NaN where undefined."""
        with np.errstate(divide="ignore", invalid="ignore"):
            values = metrics({name: weights @ count for name, count in self.counts.items()})
            areas = {f"{group}_auc": ranks.auc(weights) for group, ranks in self.ranks.items()}
        both = {**values, **areas}
        return {k: np.broadcast_to(np.asarray(v, dtype=float), len(weights)) for k, v in both.items()}
