"""From cells to results: read the item scores, group the cells, compare the arms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from nsft_exp.report.cell import Cell
from nsft_exp.report.classes import make_class_tables
from nsft_exp.report.form import fallen_apart
from nsft_exp.report.matching import Rows, items_of, pairs
from nsft_exp.report.results import GROUPS, Arm, Column, Results, compared
from nsft_exp.statistics import Bootstrap, Difference


def make_results(cells: Sequence[Cell], study: dict[str, Any], replicates: int = 5_000) -> Results:
    """Read the cells' item scores and compute every mean and difference of the study.

    With `replicates=0` nothing is read and nothing compared: arms, columns and means only, at once.

    `study["compare_to"]` names the labels that every other arm is compared with; the base VLM is always
    one of them. `study["columns"]` names the headline columns (`<benchmark>/<metric>`) in place of those
    that the benchmarks call headline.
    """
    arms = group_arms(cells)
    columns = find_columns(cells, study.get("columns") or None)
    if not replicates:
        return Results(study, tuple(cells), arms, columns, (), {})
    rows: Rows = {(c.name, e.name): list(e.rows()) for c in cells for e in c.evaluations if c.status == "ok"}
    wanted = list(study.get("compare_to") or [])
    labels = [x for x in dict.fromkeys(["base", *wanted]) if any(a.label == x and a.cells for a in arms)]
    notes = [
        f"{x}: nothing is compared with it, because no cell of it finished" for x in wanted if x not in labels
    ]
    found = _compare_all(labels, arms, columns, rows, replicates)
    tables = tuple(compared(label, found[label]) for label in labels)
    notes += [*_notes(cells, rows), *fallen_apart(arms, rows)]
    classes = make_class_tables(labels, arms, rows, replicates)
    return Results(study, tuple(cells), arms, columns, tables, rows, tuple(notes), classes)


def group_arms(cells: Sequence[Cell]) -> tuple[Arm, ...]:
    """Group cells by all but their seed, the base VLM first, else in the order of the cells."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        where = ("", None) if cell.method == "base" else (cell.source, cell.size)
        groups.setdefault((cell.label, *where, cell.vlm), []).append(cell)
    arms = []
    for (label, source, size, vlm), members in groups.items():
        done = {c.seed: c for c in members if c.status == "ok"}
        if members[0].method == "base":  # no seed moves it
            done = {None: next(iter(done.values()))} if done else {}
        failed = tuple(c for c in members if c.status == "failed")
        arms.append(Arm(label, members[0].method, source, size, vlm, tuple(done.values()), failed))
    return tuple(sorted(arms, key=lambda arm: not arm.is_base))


def find_columns(cells: Sequence[Cell], headline: Sequence[str] | None = None) -> tuple[Column, ...]:
    """Return every described metric that some cell has, by kind of test, then in the benchmarks' order.

    `headline` (keys) says which are headline columns, in that order within their kind of test.
    """
    evaluations = {(e.name, *e.metrics): e for cell in cells for e in cell.evaluations}
    found: dict[str, Column] = {}
    for e in evaluations.values():
        for m in e.benchmark.describe():
            shown = m.headline if headline is None else f"{e.name}/{m.name}" in headline
            column = Column(e.name, m.name, m.title, m.better, m.scale, m.group, shown)
            if m.name in e.metrics:
                found.setdefault(column.key, column)
    first = {c.title: c for c in reversed(found.values())}  # the others of a title name their benchmark
    columns = [
        c if first[c.title] is c else replace(c, title=f"{c.title} ({c.benchmark})") for c in found.values()
    ]
    place = {key: i for i, key in enumerate(headline or [])}
    order = lambda c: (list(GROUPS).index(c.group), place.get(c.key, len(place)))  # noqa: E731
    return tuple(sorted(columns, key=order))


def _compare_all(
    labels: Sequence[str], arms: Sequence[Arm], columns: Sequence[Column], rows: Rows, replicates: int
) -> dict[str, list[tuple[Arm, Arm, Column, Difference]]]:
    """Return label -> the differences of every other arm from it."""
    items = {
        (arm, name): items_of(arm, name, rows)
        for arm in arms
        for name in dict.fromkeys(c.benchmark for c in columns)
    }
    found: dict[str, list[tuple[Arm, Arm, Column, Difference]]] = {label: [] for label in labels}
    for name in dict.fromkeys(column.benchmark for column in columns):
        shown = [column for column in columns if column.benchmark == name]
        evaluation = next(e for arm in arms for c in arm.cells if (e := c.evaluation(name)))
        bootstrap = Bootstrap(evaluation.benchmark.metrics, replicates)
        for label, arm, against in pairs(labels, arms, name):
            differences = bootstrap.compare(items[arm, name], items[against, name])
            found[label] += [
                (arm, against, c, differences[c.metric]) for c in shown if c.metric in differences
            ]
    return found


def _notes(cells: Sequence[Cell], rows: Rows) -> Iterator[str]:
    """Yield what stands in the way of a plain reading: protocols that differ, items without a score."""
    protocols: dict[str, set[str]] = {}
    for cell in cells:
        for e in cell.evaluations:
            protocols.setdefault(e.name, set()).add(e.protocol)
            mine = rows.get((cell.name, e.name), [])
            missing, total = sum(row.score is None for row in mine), len(mine)
            if missing or not e.complete:
                yield f"{cell.name}, {e.name}: {missing} of {total} items have no score and are left out"
    for name, found in protocols.items():
        if len(found) > 1:
            yield f"{name}: scored under different protocols, not compared: {', '.join(sorted(found))}"
