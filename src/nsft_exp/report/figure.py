"""The figures of a study. Each is a function of the results; it returns None with nothing to draw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nsft_exp.report import dialogue, wording
from nsft_exp.report.results import GROUPS, Arm, Column, Comparison, ComparisonTable, Mean, Results
from nsft_exp.report.style import Style, drawing, legend_above, panels, to_png, to_svg


@dataclass(frozen=True)
class Plot:
    """A figure that a report may have: what it shows, how it is drawn and what it needs."""

    name: str
    title: str
    caption: str
    draw: Callable[[Results, Style], Figure | None]
    needs: str
    """Said in the report where there is nothing to draw."""


@dataclass(frozen=True)
class Drawn:
    """A drawn figure: SVG for every style and PNG for the light, wide one."""

    plot: Plot
    svg: dict[Style, str]
    png: bytes


def draw_all(results: Results) -> tuple[list[Drawn], list[Plot]]:
    """Return the drawn figures and the plots that had nothing to draw."""
    drawn, missing = [], []
    for plot in PLOTS:
        svg: dict[Style, str] = {}
        png = b""
        for style in (Style(dark, narrow) for dark in (False, True) for narrow in (False, True)):
            with drawing(style):
                figure = plot.draw(results, style)
                if figure is None:
                    break
                svg[style] = to_svg(figure)
                png = png or to_png(figure)
        drawn += [Drawn(plot, svg, png)] if svg else []
        missing += [] if svg else [plot]
    return drawn, missing


# --- differences -----------------------------------------------------------------------------------


def draw_differences(results: Results, style: Style) -> Figure | None:
    """A panel for each label compared with; a row for each metric; both intervals; right is better."""
    tables = [t for t in results.tables if t.against != "base" and _shown(t)] or [
        t for t in results.tables if _shown(t)
    ]
    if not tables:
        return None
    arms = {t.against: t.arms for t in tables}
    rows = max(len({c.column.key for c in _shown(t)}) * (len(arms[t.against]) + 0.9) for t in tables)
    figure, axes = panels(len(tables), style, 0.55 + 0.175 * rows)
    for place, (axis, table) in enumerate(zip(axes, tables, strict=True)):
        _forest(axis, _shown(table), results, style, scale=_points, student=True)
        axis.set_title(f"against {table.against}")
        axis.set_xlabel("points, right is better")
        if place and not style.narrow:
            axis.set_yticklabels([])
    _label_legend(figure, results, [a.label for t in tables for a in t.arms], style)
    return figure


def draw_improvement(results: Results, style: Style) -> Figure | None:
    """Relative improvement over the base VLM, a row a benchmark metric; right is better."""
    table = results.table("base")
    shown = [c for c in _shown(table) if _relative(c) is not None] if table else []
    if not shown:
        return None
    rows = len({c.column.key for c in shown}) * (len({c.arm for c in shown}) + 0.9)
    figure, axes = panels(1, style, 0.6 + 0.175 * rows)
    _forest(axes[0], shown, results, style, scale=lambda c: _relative(c) or math.nan, student=False)
    axes[0].set_xlabel("% of the base VLM's score, right is better")
    _label_legend(figure, results, [c.arm.label for c in shown], style)
    return figure


def _shown(table: ComparisonTable) -> list[Comparison]:
    return [
        c
        for c in table.comparisons
        if c.column.headline and c.column.better != "none" and c.difference.bootstrap
    ]


def _points(c: Comparison) -> float:
    """Factor from a difference to points, better to the right; areas and other ratios count in hundredths."""
    return (100 if c.column.scale == "ratio" else 1) * (-1 if c.column.better == "down" else 1)


def _relative(c: Comparison) -> float | None:
    base = c.against.mean(c.column.key)
    if base is None or base.value == 0:
        return None
    return 100 / abs(base.value) * (-1 if c.column.better == "down" else 1)


def _forest(
    axis: Axes,
    shown: Sequence[Comparison],
    results: Results,
    style: Style,
    scale: Callable[[Comparison], float],
    student: bool,
) -> None:
    labels = [a.label for a in results.arms]
    arms = list(dict.fromkeys(c.arm for c in shown))
    columns = list(dict.fromkeys(c.column for c in shown))
    reach = max(abs(x) * abs(scale(c)) for c in shown for x in c.difference.bootstrap or ()) * 1.12 or 1.0
    step = len(arms) + 0.9
    for c in shown:
        y = columns.index(c.column) * step + arms.index(c.arm)
        colour, marker = style.look(c.arm.label, labels)
        factor, d = scale(c), c.difference
        if student and d.student:
            axis.plot(
                np.array(d.student) * factor, [y, y], color=colour, lw=0.9, solid_capstyle="butt", alpha=0.9
            )
            _arrowheads(axis, np.array(d.student) * factor, reach, y, colour)
        axis.plot(
            np.array(d.bootstrap) * factor, [y, y], color=colour, lw=3.2, alpha=0.4, solid_capstyle="round"
        )
        filled = c.verdict in ("better", "worse")
        axis.plot(
            d.value * factor, y, marker, color=colour, mfc=colour if filled else style.paper, ms=5.5, mew=1.4
        )
    for i in range(1, len(columns)):
        new = columns[i].group != columns[i - 1].group
        axis.axhline(i * step - 0.95, color=style.muted if new else style.faint, lw=0.8 if new else 0.6)
    axis.axvline(0, color=style.ink, lw=0.9, zorder=0.5)
    axis.grid(axis="x")
    axis.set(xlim=(-reach, reach), ylim=(len(columns) * step - 0.95, -0.95))
    middle = [(len(arms) - 1) / 2 + i * step for i in range(len(columns))]
    axis.set_yticks(middle, [wording.title(c) for c in columns])
    axis.tick_params(axis="y", length=0, labelcolor=style.ink)
    axis.spines["left"].set_visible(False)


def _arrowheads(axis: Axes, ends: np.ndarray, reach: float, y: float, colour: str) -> None:
    """Show that an interval goes on beyond the panel."""
    for sign, marker in ((-1, "<"), (1, ">")):
        if (sign * ends).max() > reach:
            axis.plot(sign * reach * 0.985, y, marker, color=colour, ms=4, mew=0, clip_on=False)


def _label_legend(figure: Figure, results: Results, wanted: Sequence[str], style: Style) -> None:
    labels = [a.label for a in results.arms]
    shown = [label for label in dict.fromkeys(labels) if label in wanted]
    handles = []
    for label in shown:
        colour, marker = style.look(label, labels)
        handles.append(Line2D([], [], color=colour, marker=marker, ls="-", lw=1.8, ms=6))
    legend_above(figure, handles, shown, style)


# --- score against size ----------------------------------------------------------------------------


def draw_sizes(results: Results, style: Style) -> Figure | None:
    """A panel for each metric (and source): the mean over seeds against the number of samples."""
    lines = _size_lines(results)
    columns = [c for c in results.headline if any(arm.mean(c.key) for arms in lines.values() for arm in arms)]
    sources = list(dict.fromkeys(source for _, source, _ in lines))
    wanted = [(source, c) for source in sources for c in columns]
    if not wanted:
        return None
    figure, axes = panels(len(wanted), style, 2.1)
    labels = [a.label for a in results.arms]
    for axis, (source, column) in zip(axes, wanted, strict=True):
        for (label, place, _), arms in lines.items():
            if place == source:
                _size_line(axis, label, arms, column, labels, style)
        base = results.base.mean(column.key) if results.base else None
        if base:
            axis.axhline(base.value, color=style.look("base", labels)[0], ls=(0, (4, 3)), lw=1.3)
        axis.set_title(wording.title(column) + (f" · {source}" if len(sources) > 1 else ""))
        axis.set_xticks(sorted({a.size for arms in lines.values() for a in arms if a.size}))
        axis.set_xlabel("samples")
        axis.grid(axis="y")
    _label_legend(figure, results, [label for label, _, _ in lines] + ["base"], style)
    return figure


def _size_lines(results: Results) -> dict[tuple[str, str, str], list[Arm]]:
    lines: dict[tuple[str, str, str], list[Arm]] = {}
    for arm in results.arms:
        if arm.size and not arm.is_base and arm.cells:
            lines.setdefault((arm.label, arm.source, arm.vlm), []).append(arm)
    return {k: sorted(arms, key=lambda a: a.size or 0) for k, arms in lines.items() if len(arms) > 1}


def _size_line(
    axis: Axes, label: str, arms: Sequence[Arm], column: Column, labels: Sequence[str], style: Style
) -> None:
    colour, marker = style.look(label, labels)
    points = [(a.size or 0, m) for a in arms if (m := a.mean(column.key))]
    axis.plot([x for x, _ in points], [m.value for _, m in points], color=colour, marker=marker, ms=5.5)
    for x, mean in points:
        axis.plot([x] * len(mean.per_seed), mean.per_seed, "_", color=colour, ms=6, mew=1.2, alpha=0.6)


# --- errors that the critic found ------------------------------------------------------------------


def draw_errors(results: Results, style: Style) -> Figure | None:
    """What the critic found and what its dialogues ask about, for each codebook."""
    found = dialogue.by_codebook(results.cells)
    if not any(c.num_errors for c in found):
        return None
    figure, axes = panels(2, style, 3.4, per_row=2)
    names = [c.name for c in found]
    categories = list(dict.fromkeys(k for c in found for k, _ in c.categories.most_common()))
    _bars(
        axes[0],
        categories,
        [[100 * c.categories[k] / c.num_answers for k in categories] for c in found],
        style,
    )
    axes[0].set_title("Errors found, per 100 rejected answers")
    words = list(dict.fromkeys(w for c in found for w, _ in c.words.most_common(12)))[:16]
    totals = [c.words.total() or 1 for c in found]
    _bars(
        axes[1],
        words,
        [[100 * c.words[w] / n for w in words] for c, n in zip(found, totals, strict=True)],
        style,
    )
    axes[1].set_title("Words of the corrective questions, %")
    handles = [Line2D([], [], color=_bar_colour(i, style), lw=7) for i in range(len(names))]
    legend_above(figure, handles, names, style)
    return figure


def _bars(axis: Axes, names: Sequence[str], series: Sequence[Sequence[float]], style: Style) -> None:
    height = 0.8 / len(series)
    for i, values in enumerate(series):
        places = np.arange(len(names)) + (i - (len(series) - 1) / 2) * height
        axis.barh(places, values, height * 0.9, color=_bar_colour(i, style))
        for y, value in zip(places, values, strict=True):
            axis.annotate(
                f"{value:.1f}", (value, y), (3, 0), textcoords="offset points", va="center", fontsize=7.5
            )
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.tick_params(axis="y", length=0, labelcolor=style.ink)
    axis.set_xticks([])
    axis.spines[["left", "bottom"]].set_visible(False)


def _bar_colour(place: int, style: Style) -> str:
    order = ["cont_sft", "gt_dpo", "nsft", "base"]
    return style.look(order[place % len(order)], order)[0]


# --- training curves -------------------------------------------------------------------------------


def draw_training(results: Results, style: Style) -> Figure | None:
    """A panel for each quantity of metrics.jsonl: the mean over seeds, and the seeds' range."""
    curves: dict[str, dict[str, list[dict[float, float]]]] = {}
    arms = _largest(results)
    for arm in arms:
        for cell in arm.cells:
            for name, points in _curves(cell.history()).items():
                curves.setdefault(name, {}).setdefault(arm.label, []).append(points)
    names = sorted((n for n in curves if n.rpartition("/")[2] not in PLAIN), key=_curve_order)[:9]
    if not names:
        return None
    figure, axes = panels(len(names), style, 2.0)
    labels = [a.label for a in results.arms]
    for axis, name in zip(axes, names, strict=True):
        for label, runs in curves[name].items():
            _curve(axis, runs, style.look(label, labels)[0])
        axis.set_title(name.replace("_", " "))
        axis.grid(axis="y")
        axis.set_xlabel("step")
    _label_legend(figure, results, [a.label for a in arms], style)
    return figure


PLAIN = {"step", "epoch", "lr", "learning_rate", "supervised_tokens", "examples"}
"""Columns of metrics.jsonl that say how far training is, not how it goes."""
CURVE_ORDER = (
    "loss",
    "valid",
    "chosen",
    "correction",
    "margin",
    "accuracy",
    "dpo",
    "sft",
    "rejected",
    "grad",
)


def _curve_order(name: str) -> tuple[int, str]:
    return next((i for i, part in enumerate(CURVE_ORDER) if part in name), len(CURVE_ORDER)), name


def _largest(results: Results) -> list[Arm]:
    """One arm a label: that of the largest size (curves of all sizes would hide one another)."""
    best: dict[str, Arm] = {}
    for arm in results.arms:
        if arm.cells and (
            arm.label not in best or (arm.size or math.inf) > (best[arm.label].size or math.inf)
        ):
            best[arm.label] = arm
    return list(best.values())


def _curves(history: Sequence[dict[str, Any]]) -> dict[str, dict[float, float]]:
    curves: dict[str, dict[float, float]] = {}
    for place, row in enumerate(history):
        for name, value in row.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                curves.setdefault(name, {})[row.get("step", place)] = float(value)
    return curves


def _curve(axis: Axes, runs: Sequence[dict[float, float]], colour: str) -> None:
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    values = np.array([[run[step] for step in steps] for run in runs])
    axis.plot(steps, values.mean(0), color=colour, lw=1.6, marker="o" if len(steps) < 8 else None, ms=3.5)
    if len(runs) > 1:
        axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.18, lw=0)


PLOTS = (
    Plot(
        "differences",
        "Differences",
        "Mean difference over seeds. Thick: bootstrap over images and seeds. Thin: Student's t over seeds. "
        "Filled: both exclude zero after Holm's correction.",
        draw_differences,
        "needs at least two methods with scores",
    ),
    Plot(
        "improvement",
        "Relative improvement over the base VLM",
        "Change in per cent of the base VLM's score, with the bootstrap interval over images and seeds.",
        draw_improvement,
        "needs the base VLM and a method with scores",
    ),
    Plot(
        "size",
        "Score against data size",
        "Mean over seeds; dashes are single seeds; the broken line is the base VLM.",
        draw_sizes,
        "needs a method at two sizes",
    ),
    Plot(
        "errors",
        "What the critic found",
        "Errors by category of the codebook, and the words that its corrective questions use most.",
        draw_errors,
        "needs a critic's corrections",
    ),
    Plot(
        "training",
        "Training",
        "Mean over seeds of what training logged; the band is the seeds' range.",
        draw_training,
        "needs the metrics of a trained method",
    ),
)
