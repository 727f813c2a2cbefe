"""Forest plots: the differences of every arm from another, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nsft_exp.report import wording
from nsft_exp.report.results import Comparison, ComparisonTable, Results, largest
from nsft_exp.report.style import FAINT, INK, MUTED, PAPER, Style, label_legend, look, panels

LEAST_HEIGHT = 1.6
"""Inches of a row of panels: titles of three lines, the legend and the axis leave room for one difference."""


def draw_differences(results: Results, style: Style) -> Figure | None:
    """A panel for each label compared with; a row for each metric; both intervals; right is better."""
    tables = [t for t in results.tables if t.against != "base"] or list(results.tables)
    return _forests(results, style, tables, scale=_points, student=True, unit="points, right is better")


def draw_improvement(results: Results, style: Style) -> Figure | None:
    """Relative improvement over the base VLM, a row a benchmark metric; right is better."""
    tables = [t for t in results.tables if t.against == "base"]
    unit = "% of the base VLM's score, right is better"
    return _forests(results, style, tables, scale=_relative, student=False, unit=unit)


def _forests(
    results: Results,
    style: Style,
    tables: Sequence[ComparisonTable],
    scale: Callable[[Comparison], float],
    student: bool,
    unit: str,
) -> Figure | None:
    """A panel for each table and each source and VLM of the study, all on one scale."""
    places = list(dict.fromkeys((c.arm.source, c.arm.vlm) for t in tables for c in t.comparisons))
    wanted = [(t, place, _shown(t, place, results, scale)) for t in tables for place in places]
    wanted = [(t, place, shown) for t, place, shown in wanted if shown]
    if not wanted:
        return None
    rows = max(len({c.column for c in shown}) * (len({c.arm for c in shown}) + 0.9) for _, _, shown in wanted)
    per_row = 2 if len(wanted) == 4 else 3
    figure, axes = panels(len(wanted), style, max(0.6 + 0.175 * rows, LEAST_HEIGHT), per_row)
    limits = common_limits([_ends(c.difference.bootstrap, scale(c)) for *_, shown in wanted for c in shown])
    for place, (axis, (table, (source, vlm), shown)) in enumerate(zip(axes, wanted, strict=True)):
        _forest(axis, shown, results, style, scale, student, limits)
        where = [source] * (len({s for s, _ in places}) > 1) + [vlm] * (len({v for _, v in places}) > 1)
        if len(wanted) > 1 or table.against != "base":
            axis.set_title("\n".join([f"against {table.against}", *where]))
        axis.set_xlabel(unit)
        same = all({c.column for c in other} == {c.column for c in shown} for *_, other in wanted)
        if place % per_row and same and not style.narrow:
            axis.set_yticklabels([])
    wanted_labels = [c.arm.label for *_, shown in wanted for c in shown]
    label_legend(figure, [a.label for a in results.arms], wanted_labels, style)
    return figure


def common_limits(spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return one scale for all panels: that of all spans and 0, with a margin.

    Where one span in seven or fewer reaches more than three times as far as the rest, the rest's scale.
    """
    reach = np.array([max(abs(low), abs(high)) for low, high in spans])
    usual = float(np.sort(reach)[-1 - len(reach) // 7])
    bound = 1.5 * usual if reach.max() > 3 * usual > 0 else float(reach.max())
    low = max(-bound, min(0.0, *(low for low, _ in spans)))
    high = min(bound, max(0.0, *(high for _, high in spans)))
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _ends(interval: tuple[float, float] | None, factor: float) -> tuple[float, float]:
    low, high = sorted(factor * x for x in interval or (0.0, 0.0))
    return low, high


def _shown(
    table: ComparisonTable, place: tuple[str, str], results: Results, scale: Callable[[Comparison], float]
) -> list[Comparison]:
    arms = largest([a for a in results.arms if (a.source, a.vlm) == place])
    return [
        c
        for c in table.comparisons
        if c.arm in arms
        and c.column.headline
        and c.column.better != "none"
        and c.difference.bootstrap
        and math.isfinite(scale(c))
    ]


def _points(c: Comparison) -> float:
    """Factor from a difference to points, better to the right; areas and other ratios count in hundredths."""
    return (100 if c.column.scale == "ratio" else 1) * (-1 if c.column.better == "down" else 1)


def _relative(c: Comparison) -> float:
    """Factor from a difference to per cent of the other side's score; NaN where that is zero."""
    base = c.against.mean(c.column.key)
    if base is None or base.value == 0:
        return math.nan
    return 100 / abs(base.value) * (-1 if c.column.better == "down" else 1)


def _forest(
    axis: Axes,
    shown: Sequence[Comparison],
    results: Results,
    style: Style,
    scale: Callable[[Comparison], float],
    student: bool,
    limits: tuple[float, float],
) -> None:
    labels = [a.label for a in results.arms]
    arms = list(dict.fromkeys(c.arm for c in shown))
    columns = list(dict.fromkeys(c.column for c in shown))
    step = len(arms) + 0.9
    for c in shown:
        y = columns.index(c.column) * step + arms.index(c.arm)
        colour, marker = look(c.arm.label, labels)
        factor, d = scale(c), c.difference
        fill = colour if c.verdict in ("better", "worse") else PAPER
        if student and d.student:
            _line(axis, _ends(d.student, factor), limits, y, color=colour, lw=0.9)
        _line(axis, _ends(d.bootstrap, factor), limits, y, color=colour, lw=3.2, alpha=0.4)
        if limits[0] <= d.value * factor <= limits[1]:
            axis.plot(d.value * factor, y, marker, color=colour, mfc=fill, ms=5.5, mew=1.4)
        else:
            _beyond(axis, d.value * factor, limits, y, color=colour, mfc=fill)
    for i in range(1, len(columns)):
        new = columns[i].group != columns[i - 1].group
        axis.axhline(i * step - 0.95, color=MUTED if new else FAINT, lw=0.8 if new else 0.6)
    axis.axvline(0, color=INK, lw=0.9, zorder=0.5)
    axis.grid(axis="x")
    axis.set(xlim=limits, ylim=(len(columns) * step - 0.95, -0.95))
    middle = [(len(arms) - 1) / 2 + i * step for i in range(len(columns))]
    axis.set_yticks(middle, [wording.title(c) for c in columns])
    axis.tick_params(axis="y", length=0, labelcolor=INK, pad=8)
    axis.spines["left"].set_visible(False)


def _line(axis: Axes, ends: tuple[float, float], limits: tuple[float, float], y: float, **how: Any) -> None:
    """Draw what the panel shows of an interval; an arrowhead shows that it goes on beyond."""
    if ends[1] < limits[0] or ends[0] > limits[1]:
        return
    axis.plot(np.clip(ends, *limits), [y, y], solid_capstyle="butt", **how)
    for end, marker in ((limits[0], "<"), (limits[1], ">")):
        if (ends[0] < end) if marker == "<" else (ends[1] > end):
            axis.plot(end, y, marker, color=how["color"], ms=4, mew=0, clip_on=False)


def _beyond(axis: Axes, value: float, limits: tuple[float, float], y: float, **how: Any) -> None:
    """Write a difference that lies beyond the panel at its edge."""
    low = value < limits[0]
    edge, marker, side, aside = (limits[0], "<", "left", 5) if low else (limits[1], ">", "right", -5)
    axis.plot(edge, y, marker, ms=5.5, mew=1.4, clip_on=False, **how)
    words = wording.number(value, "points", signed=True)
    look = {"ha": side, "va": "center", "color": how["color"], "fontsize": 7.5}
    axis.annotate(words, (edge, y), (aside, 0), textcoords="offset points", **look)
