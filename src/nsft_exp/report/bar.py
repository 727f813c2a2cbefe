"""Bars: what the critic found and asked, for each codebook."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nsft_exp.report import dialogue
from nsft_exp.report.results import Results
from nsft_exp.report.style import INK, Style, legend_above, look, panels


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
    handles = [Patch(color=_bar_colour(i, style)) for i in range(len(names))]
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
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.set_xticks([])
    axis.spines[["left", "bottom"]].set_visible(False)


def _bar_colour(place: int, style: Style) -> str:
    order = ["cont_sft", "gt_dpo", "nsft", "base"]
    return look(order[place % len(order)], order)[0]
