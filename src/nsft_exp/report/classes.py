"""In-domain accuracy: the classes of a benchmark on which the base VLM is worst, and on which it is best.

The paper reports the ten worst and the ten best (ACC10w, ACC10b); what its classes are is not known. Ours is
a question type with one answer, of benchmarks that tell it (`classes`), with 20 items or more. Chosen by the
base's accuracies and scored on the same items, the worst would rise and the best fall by chance alone
(regression to the mean). So classes are chosen on one half of the images and scored on the other, and the
other way round: an item counts where the other half chose its class, and the base is scored by the same rule.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nsft_exp.records import ItemScore
from nsft_exp.report.matching import Rows, items_of, pairs
from nsft_exp.report.results import (
    AnswerClass,
    Arm,
    ClassTable,
    Column,
    ComparisonTable,
    Mean,
    compared,
    mean_of,
)
from nsft_exp.statistics import Bootstrap, Difference, ScoredItems

MIN_ITEMS = 20
"""A class with fewer items is left out."""
MOST = 10
"""Classes on each side, as in the paper; where there are fewer than twice as many, half of them."""
SIDES = ("worst_classes", "best_classes")

Place = tuple[int, str]
"""A class in one half of the images."""
Placed = list[tuple[Place, ItemScore, float]]
"""One model's items that have a class: place, score, and its accuracy (0-1)."""
Chosen = dict[str, list[Place]]
"""Side -> the places whose items count: classes that the other half of the images chose."""


def make_class_tables(
    labels: Sequence[str], arms: Sequence[Arm], rows: Rows, replicates: int
) -> tuple[ClassTable, ...]:
    """Return a table for each base VLM and benchmark with at least two classes that have enough items."""
    found = []
    for base in (arm for arm in arms if arm.is_base and arm.cells):
        same = [arm for arm in arms if arm.vlm == base.vlm and arm.cells]
        for e in base.cells[0].evaluations:
            if hasattr(e.benchmark, "classes"):
                items = {arm: items_of(arm, e.name, rows) for arm in same}
                found.append(_table(base, e.name, e.benchmark, items, labels, replicates))
    return tuple(table for table in found if table is not None)


def _table(
    base: Arm,
    name: str,
    benchmark: Any,
    items: Mapping[Arm, Mapping[int | None, ScoredItems]],
    labels: Sequence[str],
    replicates: int,
) -> ClassTable | None:
    class_of = benchmark.classes()
    models = {
        arm: {seed: _placed(own.scores, class_of, benchmark) for seed, own in seeds.items()}
        for arm, seeds in items.items()
    }
    tally = Tally.of(models[base][None])
    kept, left_out = tally.eligible()
    number = min(MOST, len(kept) // 2)
    if not number:
        return None
    chosen = choose(tally, kept, number)
    columns = [_column(name, side, number) for side in SIDES]
    counted = {arm: {s: _counted(own, chosen) for s, own in seeds.items()} for arm, seeds in models.items()}
    return ClassTable(
        benchmark=name,
        base=base,
        number=number,
        eligible=len(kept),
        left_out=left_out,
        columns=tuple(columns),
        chosen={side: _described(places, tally) for side, places in chosen.items()},
        means={arm: _means(seeds.values(), chosen) for arm, seeds in counted.items()},
        tables=_compare(name, columns, counted, chosen, labels, replicates),
    )


def _column(name: str, side: str, number: int) -> Column:
    title = f"{number} {side.replace('_', ' ')}"
    return Column(name, side, title, "up", "percent", "short_answer", headline=True)


def _compare(
    name: str,
    columns: Sequence[Column],
    counted: Mapping[Arm, Mapping[int | None, ScoredItems]],
    chosen: Chosen,
    labels: Sequence[str],
    replicates: int,
) -> tuple[ComparisonTable, ...]:
    """Return the differences from each label, on the same replicates as those of every other."""
    bootstrap = Bootstrap(lambda counts: side_means(counts, chosen), replicates)
    found: dict[str, list[tuple[Arm, Arm, Column, Difference]]] = {label: [] for label in labels}
    for label, arm, against in pairs(labels, list(counted), name):
        differences = bootstrap.compare(counted[arm], counted[against])
        found[label] += [(arm, against, c, differences[c.metric]) for c in columns if differences]
    return tuple(compared(label, rows) for label, rows in found.items() if rows)


@dataclass(frozen=True)
class Tally:
    """One model's items by place: how many, and how many of them are right."""

    items: Counter[Place]
    right: Mapping[Place, float]

    @classmethod
    def of(cls, placed: Placed) -> Tally:
        """Count the items of one model."""
        right: defaultdict[Place, float] = defaultdict(float)
        for place, _, accuracy in placed:
            right[place] += accuracy
        return cls(Counter(place for place, _, _ in placed), right)

    def accuracy(self, *places: Place) -> float:
        """Percent over all items of these places."""
        return 100 * sum(self.right[p] for p in places) / sum(self.items[p] for p in places)

    def eligible(self) -> tuple[list[str], int]:
        """Return the classes with enough items, some in each half, and how many other classes there are."""
        names = sorted({name for _, name in self.items})
        counts = {name: [self.items[h, name] for h in (0, 1)] for name in names}
        kept = [name for name in names if sum(counts[name]) >= MIN_ITEMS and all(counts[name])]
        return kept, len(names) - len(kept)


def half(cluster: str) -> int:
    """Return the half (0 or 1) that an image belongs to, by a hash of its name."""
    return hashlib.sha256(cluster.encode()).digest()[0] % 2


def choose(tally: Tally, classes: Sequence[str], number: int) -> Chosen:
    """Return for each side the places of the `number` classes that the other half's accuracies choose."""
    chosen: Chosen = {side: [] for side in SIDES}
    for scored in (0, 1):
        ranked = sorted(classes, key=lambda name: (tally.accuracy((1 - scored, name)), name))
        chosen[SIDES[0]] += [(scored, name) for name in ranked[:number]]
        chosen[SIDES[1]] += [(scored, name) for name in ranked[-number:]]
    return chosen


def side_means(counts: Mapping[str, Any], chosen: Chosen) -> dict[str, Any]:
    """Return each side's mean accuracy over its places in percent, from summed counts; elementwise.

    A place without an item (in a bootstrap replicate) is no part of the mean.
    """
    means = {}
    for side, places in chosen.items():
        items = np.stack(np.broadcast_arrays(*(counts.get(_key(p, "items"), 0.0) for p in places)))
        right = np.stack(np.broadcast_arrays(*(counts.get(_key(p, "right"), 0.0) for p in places)))
        some = items > 0
        accuracies = np.divide(100 * right, items, out=np.zeros(items.shape), where=some)
        means[side] = accuracies.sum(0) / some.sum(0)
    return means


def _placed(scores: Iterable[ItemScore], class_of: Mapping[str, str], benchmark: Any) -> Placed:
    """Give each item of a class its place and what the benchmark's own accuracy is on it alone."""
    found = [score for score in scores if score.id in class_of]
    metric = next(m.name for m in benchmark.describe() if m.headline)
    names = dict.fromkeys(name for score in found for name in score.counts)
    counts = {name: np.array([score.counts.get(name, 0.0) for score in found]) for name in names}
    accuracies = benchmark.metrics(counts)[metric] / 100 if found else ()  # elementwise: an item each
    places = [(half(score.cluster), class_of[score.id]) for score in found]
    return [(p, s, float(a)) for p, s, a in zip(places, found, accuracies, strict=True)]


def _counted(placed: Placed, chosen: Chosen) -> ScoredItems:
    """Return the items of chosen places, with the counts that `side_means` reads."""
    wanted = {place for places in chosen.values() for place in places}
    return ScoredItems(
        tuple(
            replace(s, counts={_key(place, "items"): 1.0, _key(place, "right"): right}, ranks={})
            for place, s, right in placed
            if place in wanted
        )
    )


def _key(place: Place, count: str) -> str:
    return f"{place[0]}/{place[1]}/{count}"


def _means(seeds: Iterable[ScoredItems], chosen: Chosen) -> dict[str, Mean | None]:
    found = []
    for items in seeds:
        sums: defaultdict[str, float] = defaultdict(float)
        for score in items.scores:
            for name, count in score.counts.items():
                sums[name] += count
        found.append(side_means(sums, chosen))
    return {side: mean_of([float(means[side]) for means in found]) for side in SIDES}


def _described(places: Sequence[Place], tally: Tally) -> tuple[AnswerClass, ...]:
    """Return the chosen classes, those of both halves first, then by the base's accuracy."""
    halves = Counter(name for _, name in places)
    found = [
        AnswerClass(n, sum(tally.items[h, n] for h in (0, 1)), tally.accuracy((0, n), (1, n)), number)
        for n, number in halves.items()
    ]
    return tuple(sorted(found, key=lambda c: (-c.halves, c.accuracy, c.name)))
