"""Results: arms, columns, means over seeds, and every difference with its intervals and its verdict.

Tables, figures and the page are drawn from `Results` alone, so they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from nsft_exp.report.cell import Cell, Row
from nsft_exp.statistics import Difference, holm

ALPHA = 0.05
GROUPS = {
    "yes_no": "Yes/no",
    "generation": "Free generation",
    "short_answer": "Short answers",
    "judged": "Judged",
    "other": "Other",
}
"""Kinds of test in the order of their columns: yes/no tests and free generation are never mixed."""

BESIDE = ("recall", "length")
"""Metrics of a caption benchmark that stand beside its scores: few errors may mean few words."""

Verdict = Literal["better", "worse", "maybe better", "maybe worse", "open", "untested"]


@dataclass(frozen=True)
class Column:
    """One metric of one benchmark."""

    benchmark: str
    metric: str
    title: str
    better: str
    scale: str
    group: str
    headline: bool

    @property
    def key(self) -> str:
        """`<benchmark>/<metric>`."""
        return f"{self.benchmark}/{self.metric}"


@dataclass(frozen=True)
class Mean:
    """A metric over the seeds of an arm; `sd` is None with one seed."""

    value: float
    sd: float | None
    per_seed: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Arm:
    """A row of the table: the cells that differ in their seed only."""

    label: str
    method: str
    source: str
    """Empty for the base VLM."""
    size: int | None
    vlm: str
    cells: tuple[Cell, ...]
    failed: tuple[Cell, ...] = ()

    @property
    def is_base(self) -> bool:
        """True for the VLM before any alignment: it stands beside every source, size and seed."""
        return self.method == "base"

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """The seeds of the finished cells."""
        return tuple(cell.seed for cell in self.cells)

    def mean(self, key: str) -> Mean | None:
        """Return a column's mean over seeds; None where no seed has a value."""
        benchmark, _, metric = key.partition("/")
        found = [e.metrics.get(metric) for c in self.cells if (e := c.evaluation(benchmark))]
        return mean_of(found)

    def number(self, name: str) -> Mean | None:
        """Return the mean over seeds of one of the cells' `counts` or `costs`."""
        return mean_of([{**c.counts, **c.costs}.get(name) for c in self.cells])


def largest(arms: Sequence[Arm]) -> list[Arm]:
    """Return one finished arm a label, that of the largest size: more would hide one another."""
    best: dict[str, Arm] = {}
    for arm in arms:
        known = best.get(arm.label)
        if arm.cells and (known is None or (arm.size or math.inf) > (known.size or math.inf)):
            best[arm.label] = arm
    return list(best.values())


def mean_of(values: Sequence[Any]) -> Mean | None:
    """Return mean and sample standard deviation of the finite numbers; None where there are none."""
    finite = tuple(float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v))
    if not finite:
        return None
    return Mean(float(np.mean(finite)), float(np.std(finite, ddof=1)) if len(finite) > 1 else None, finite)


@dataclass(frozen=True, eq=False)
class Comparison:
    """One difference in a table of comparisons."""

    arm: Arm
    against: Arm
    column: Column
    difference: Difference
    adjusted: float | None
    """The larger of the two p-values after Holm's correction over the table; None: not tested."""

    @property
    def gain(self) -> float:
        """The difference, its sign turned where less is better."""
        return -self.difference.value if self.column.better == "down" else self.difference.value

    @property
    def verdict(self) -> Verdict:
        """`better` or `worse`: both intervals exclude zero after Holm; `maybe`: only before it."""
        if self.column.better == "none" or self.adjusted is None or not math.isfinite(self.gain):
            return "untested"
        if not (excludes_zero(self.difference.bootstrap) and excludes_zero(self.difference.student)):
            return "open"
        side: Literal["better", "worse"] = "better" if self.gain > 0 else "worse"
        return side if self.adjusted < ALPHA else f"maybe {side}"  # type: ignore[return-value]


def excludes_zero(interval: tuple[float, float] | None) -> bool:
    """True where an interval lies on one side of zero."""
    return interval is not None and (interval[0] > 0 or interval[1] < 0)


@dataclass(frozen=True, eq=False)
class ComparisonTable:
    """Every other arm against one label: a family of tests of its own."""

    against: str
    comparisons: tuple[Comparison, ...]

    @property
    def is_base(self) -> bool:
        """True for the comparisons with the base VLM."""
        return self.against == "base"

    @property
    def num_tests(self) -> int:
        """How many differences were tested (Holm's family)."""
        return sum(c.adjusted is not None for c in self.comparisons)

    def of(self, arm: Arm, key: str) -> Comparison | None:
        """Return the comparison of an arm in a column."""
        return next((c for c in self.comparisons if c.arm is arm and c.column.key == key), None)

    @property
    def arms(self) -> list[Arm]:
        """The compared arms in order."""
        return list(dict.fromkeys(c.arm for c in self.comparisons))


def compared(label: str, found: Sequence[tuple[Arm, Arm, Column, Difference]]) -> ComparisonTable:
    """Return the differences from one label, the headline ones corrected for their number (Holm)."""
    tested = [c.headline and c.better != "none" for _, _, c, _ in found]
    adjusted = holm([d.p if test else None for test, (_, _, _, d) in zip(tested, found, strict=True)])
    return ComparisonTable(label, tuple(Comparison(*row, p) for row, p in zip(found, adjusted, strict=True)))


@dataclass(frozen=True)
class AnswerClass:
    """A question type with one answer: how often the base VLM gives it, and where it was chosen."""

    name: str
    items: int
    accuracy: float
    """The base VLM's, in percent over all its items."""
    halves: int
    """In how many of the two halves of the images (the other half chose) its items count."""


@dataclass(frozen=True, eq=False)
class ClassTable:
    """Accuracy over the classes of one benchmark on which a base VLM is worst, and on which it is best."""

    benchmark: str
    base: Arm
    number: int
    """Classes taken on each side."""
    eligible: int
    left_out: int
    """Classes with too few items."""
    columns: tuple[Column, ...]
    """The worst, then the best."""
    chosen: dict[str, tuple[AnswerClass, ...]]
    """Column's metric -> the classes, those that both halves chose first."""
    means: dict[Arm, dict[str, Mean | None]]
    """Arm (the base first) -> column's metric -> mean over seeds."""
    tables: tuple[ComparisonTable, ...]
    """The differences from each label, each table a family of tests of its own."""


@dataclass(frozen=True, eq=False)
class Results:
    """All that a report shows."""

    study: dict[str, Any]
    cells: tuple[Cell, ...]
    arms: tuple[Arm, ...]
    columns: tuple[Column, ...]
    tables: tuple[ComparisonTable, ...]
    rows: dict[tuple[str, str], list[Row]] = field(repr=False)
    """(cell name, benchmark) -> scored items."""
    notes: tuple[str, ...] = ()
    """What a reader must know: other protocols, incomplete evaluations, answers that fell apart."""
    classes: tuple[ClassTable, ...] = ()
    """In-domain: the classes on which the base VLM is worst and best, of each benchmark that has classes."""

    @property
    def headline(self) -> list[Column]:
        """The columns that are compared."""
        return [c for c in self.columns if c.headline]

    @property
    def shown(self) -> list[Column]:
        """The columns of the main table: those that are compared, and what stands beside them."""
        compared = {c.benchmark for c in self.headline if c.group == "generation"}
        return [c for c in self.columns if c.headline or (c.benchmark in compared and c.metric in BESIDE)]

    @property
    def failed(self) -> list[Cell]:
        """Cells that did not finish."""
        return [c for c in self.cells if c.status == "failed"]

    @cached_property
    def base(self) -> Arm | None:
        """The first arm of the untrained VLM."""
        return next((arm for arm in self.arms if arm.is_base), None)

    @cached_property
    def num_scored(self) -> dict[str, set[int]]:
        """Benchmark -> how many items have a score, over its cells."""
        found: dict[str, set[int]] = {}
        for (_, benchmark), rows in self.rows.items():
            found.setdefault(benchmark, set()).add(sum(row.score is not None for row in rows))
        return found

    def table(self, against: str) -> ComparisonTable | None:
        """Return the comparisons with one label."""
        return next((t for t in self.tables if t.against == against), None)
