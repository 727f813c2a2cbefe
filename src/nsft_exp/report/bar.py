"""Bars: what the critic found and asked, and the words of its dialogues, for each codebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nsft_exp.report import dialogue, dialogue_words
from nsft_exp.report.results import Results
from nsft_exp.report.style import COLOURS, INK, MUTED, Style, legend_above, panels


def draw_errors(results: Results, style: Style) -> Figure | None:
    """What the critics found and what their dialogues ask about, for each codebook."""
    found = [c for c in dialogue.by_codebook(results.cells) if c.num_errors]  # a control finds none
    if not found:
        return None
    categories = list(dict.fromkeys(k for c in found for k, _ in c.categories.most_common()))
    words = list(dict.fromkeys(w for c in found for w, _ in c.words.most_common(12)))[:16]
    heights = [0.7 + len(names) * max(0.2, 0.13 * len(found)) for names in (categories, words)]
    figure, axes = panels(2, style, max(heights), per_row=2, narrow_heights=heights)
    errors = [[100 * c.categories[k] / c.num_answers for k in categories] for c in found]
    _bars(axes[0], categories, errors, 0 if style.narrow else len(words))
    axes[0].set_title("Errors found, per 100 rejected answers")
    _bars(axes[1], words, [[100 * c.words[w] / (c.words.total() or 1) for w in words] for c in found], 0)
    axes[1].set_title("Words of the corrective questions, %")
    legend_above(
        figure, [Patch(color=COLOURS[i + 1]) for i in range(len(found))], [c.name for c in found], style
    )
    return figure


RANKED = 20


def draw_words(results: Results, style: Style) -> Figure | None:
    """The words of nSFT's corrective dialogues with and without codebook, ranked; objects in colour."""
    found = dialogue_words.with_and_without(results.cells)
    if not found:
        return None
    rankings = [words.ranked(RANKED) for words in found]
    rows = max(map(len, rankings))
    figure, axes = panels(len(found), style, 0.7 + 0.19 * rows)
    for axis, words, ranked in zip(axes, found, rankings, strict=True):
        colours = [COLOURS[3] if word in words.object_words else MUTED for word, _ in ranked]
        _bars(axis, [word for word, _ in ranked], [[share for _, share in ranked]], rows, colours)
        axis.set_title(f"codebook {words.codebook}: {words.object_share:.1f} % of its words name objects")
    patches = [Patch(color=COLOURS[3]), Patch(color=MUTED)]
    legend_above(figure, patches, ["names an object", "any other word"], style)
    return figure


def _bars(
    axis: Axes,
    names: Sequence[str],
    series: Sequence[Sequence[float]],
    least: int,
    colours: Sequence[str] | None = None,
) -> None:
    """Draw groups of bars with room for at least `least` groups, so that few are not fat.

    `colours` are those of single bars; None: a colour a series.
    """
    height = 0.8 / len(series)
    text: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 7.5}
    for i, values in enumerate(series):
        places = np.arange(len(names)) + (i - (len(series) - 1) / 2) * height
        axis.barh(places, values, height * 0.9, color=colours or COLOURS[i + 1])
        for y, value in zip(places, values, strict=True):
            if value:
                axis.annotate(f"{value:.1f}", (value, y), (3, 0), **text)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(max(len(names), least) - 0.5, -0.5)
    axis.margins(x=0.12)
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.set_xticks([])
    axis.spines[["left", "bottom"]].set_visible(False)
