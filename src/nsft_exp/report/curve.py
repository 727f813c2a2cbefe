"""Curves: score against data size, and what training logged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nsft_exp.report import wording
from nsft_exp.report.results import Arm, Column, Results, largest
from nsft_exp.report.style import Style, label_legend, look, panels


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
            axis.axhline(base.value, color=look("base", labels)[0], ls=(0, (4, 3)), lw=1.3)
        axis.set_title(wording.title(column) + (f" · {source}" if len(sources) > 1 else ""))
        axis.set_xticks(sorted({a.size for arms in lines.values() for a in arms if a.size}))
        axis.set_xlabel("samples")
        axis.grid(axis="y")
    label_legend(figure, [a.label for a in results.arms], [label for label, _, _ in lines] + ["base"], style)
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
    colour, marker = look(label, labels)
    points = [(a.size or 0, m) for a in arms if (m := a.mean(column.key))]
    axis.plot([x for x, _ in points], [m.value for _, m in points], color=colour, marker=marker, ms=5.5)
    for x, mean in points:
        axis.plot([x] * len(mean.per_seed), mean.per_seed, "_", color=colour, ms=6, mew=1.2, alpha=0.6)


def draw_training(results: Results, style: Style) -> Figure | None:
    """A panel for each quantity of metrics.jsonl: the mean over seeds, and the seeds' range."""
    curves: dict[str, dict[tuple[str, bool], list[dict[float, float]]]] = {}
    for arm in largest(results.arms):
        for cell in arm.cells:
            for name, points in _curves(cell.history()).items():
                held_out = name.startswith(VALIDATION)
                panel = curves.setdefault(name.removeprefix(VALIDATION), {})
                panel.setdefault((arm.label, held_out), []).append(points)
    names = sorted((n for n in curves if n not in PLAIN), key=_curve_order)[:9]
    if not names:
        return None
    figure, axes = panels(len(names), style, 2.0)
    labels = [a.label for a in results.arms]
    for axis, name in zip(axes, names, strict=True):
        for place, ((label, held_out), runs) in enumerate(curves[name].items()):
            _curve(axis, runs, *look(label, labels), place, "--" if held_out else "-")
        axis.set_title(NAMES.get(name, name.replace("_", " ").replace("/", ": ")))
        axis.grid(axis="y")
        axis.set_xlabel("step")
    label_legend(figure, labels, [label for name in names for label, _ in curves[name]], style)
    return figure


VALIDATION = "validation/"
BENCHMARK = "benchmark/"
"""Before the metrics of the benchmarks that a training was watched with: too many for one figure."""
PLAIN = {"step", "epoch", "lr", "learning_rate", "supervised_tokens", "examples", "conversations"}
"""Columns of metrics.jsonl that say how far training is, not how it goes."""
NAMES = {
    "logp/chosen": "log-probability of chosen",
    "logp/rejected": "log-probability of rejected",
    "logp/correction": "log-probability of corrections",
    "grad_norm": "gradient norm",
}
CURVE_ORDER = ("loss", "margin", "accuracy", "chosen", "rejected", "correction", "kl", "grad")


def _curve_order(name: str) -> tuple[int, str]:
    return next((i for i, part in enumerate(CURVE_ORDER) if part in name), len(CURVE_ORDER)), name


def _curves(history: Sequence[dict[str, Any]]) -> dict[str, dict[float, float]]:
    curves: dict[str, dict[float, float]] = {}
    for place, row in enumerate(history):
        for name, value in row.items():
            if name.startswith(BENCHMARK) or isinstance(value, bool):
                continue
            if isinstance(value, (int, float)) and math.isfinite(value):
                curves.setdefault(name, {})[row.get("step", place)] = float(value)
    return curves


def _curve(
    axis: Axes, runs: Sequence[dict[float, float]], colour: str, marker: str, place: int, dashes: str
) -> None:
    steps = np.array(sorted(set.intersection(*(set(run) for run in runs))))
    values = np.array([smooth(np.array([run[step] for step in steps])) for run in runs])
    every = max(1, len(steps) // 6)  # a marker now and then tells apart what overlaps
    marks: dict[str, Any] = {
        "marker": marker,
        "ms": 4,
        "markevery": (place * every // 4, every),
    }
    axis.plot(steps, values.mean(0), color=colour, lw=1.6, ls=dashes, **marks)
    if len(runs) > 1:
        axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.16, lw=0)


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the running mean over a twentieth of the steps (none below 40); shorter at the ends."""
    half = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
