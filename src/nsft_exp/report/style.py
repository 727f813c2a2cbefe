"""The look of figures: two themes, two widths, one colour and one marker for each label."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

KNOWN = {"base": 0, "cont_sft": 1, "gt_dpo": 2, "nsft": 3}
INK, MUTED, FAINT, PAPER = "#1d2330", "#5b6474", "#d9dde4", "#ffffff"
"""Text and axes, secondary text, grids, background."""
COLOURS = ["#6b7280", "#2563a8", "#c2660c", "#0f8a66", "#8b4fb3", "#b33a5b", "#64790f", "#0e7f95", "#8a5a2b"]
DARK = {
    **{INK: "#e6e8ec", MUTED: "#a3abba", FAINT: "#3a404d", PAPER: "#161a22", "#6b7280": "#9aa3b2"},
    **{"#2563a8": "#6eaaea", "#c2660c": "#f0a253", "#0f8a66": "#3ecb9d", "#8b4fb3": "#c39ae6"},
    **{"#b33a5b": "#f08ba6", "#64790f": "#b3cb5c", "#0e7f95": "#5cc6da", "#8a5a2b": "#d1a679"},
}
"""What each colour becomes on a dark page. Figures use no colour but these."""
MARKERS = ["o", "s", "D", "^", "v", "P", "X", "p", "h"]
FONTS = ["Inter", "Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"]


@dataclass(frozen=True)
class Style:
    """How a figure is drawn: `narrow` is for a phone."""

    narrow: bool = False

    @property
    def width(self) -> float:
        """Inches; the page shows an inch as 72 pixels or more."""
        return 4.3 if self.narrow else 10.0


def look(label: str, labels: Sequence[str]) -> tuple[str, str]:
    """Return (colour, marker) of a label; the paper's methods keep theirs in every study."""
    others = [x for x in dict.fromkeys(labels) if x not in KNOWN]
    place = KNOWN[label] if label in KNOWN else len(KNOWN) + others.index(label)
    turn = place // len(COLOURS)  # the tenth label has the first one's colour and another marker
    return COLOURS[place % len(COLOURS)], MARKERS[(place + turn) % len(MARKERS)]


@contextmanager
def drawing() -> Iterator[None]:
    """Set matplotlib up: our fonts and colours, and the same bytes for the same data."""
    installed = set(font_manager.fontManager.get_font_names())
    settings: dict[Any, Any] = {
        "font.family": next((f for f in FONTS if f in installed), "sans-serif"),
        "font.size": 9.5,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.8,
        "axes.labelcolor": MUTED,
        "axes.axisbelow": True,
        "axes.facecolor": PAPER,
        "figure.facecolor": PAPER,
        "savefig.facecolor": PAPER,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "grid.color": FAINT,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "figure.autolayout": False,  # a settled figure has no layout engine, whatever the user's file says
        "figure.constrained_layout.use": False,
        "svg.hashsalt": "nsft",
        "svg.fonttype": "path",
    }
    with matplotlib.rc_context(settings):
        yield


def panels(
    num: int, style: Style, height: float, per_row: int = 3, narrow_heights: Sequence[float] = ()
) -> tuple[Figure, list[Axes]]:
    """Return a figure with `num` panels, as many a row as its width carries.

    `height` is a row's in inches; `narrow_heights` are those of single panels where they stand in a column.
    """
    columns = 1 if style.narrow else min(per_row, num)
    rows = -(-num // columns)
    heights = list(narrow_heights) if style.narrow and narrow_heights else [height] * rows
    figure = Figure(figsize=(style.width, sum(heights)), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, height_ratios=heights).ravel())
    for extra in axes[num:]:
        extra.remove()
    return figure, axes[:num]


def legend_above(figure: Figure, handles: Sequence[Artist], names: Sequence[str], style: Style) -> None:
    """Put one legend above all panels."""
    columns = 2 if style.narrow else min(len(names), 5)
    figure.legend(
        handles, names, loc="outside upper left", ncols=columns, handletextpad=0.5, columnspacing=1.6
    )


def label_legend(figure: Figure, labels: Sequence[str], wanted: Sequence[str], style: Style) -> None:
    """Put a legend of the wanted labels above all panels; `labels` are all of the study, in order."""
    shown = [label for label in dict.fromkeys(labels) if label in wanted]
    looks = [look(label, labels) for label in shown]
    handles = [Line2D([], [], color=colour, marker=marker, lw=1.8, ms=6) for colour, marker in looks]
    legend_above(figure, handles, shown, style)


def settle(figure: Figure) -> Figure:
    """Lay a figure out once and for all: each file would do it again."""
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.execute(figure)  # without drawing, which takes as long again
    figure.set_layout_engine(None)  # with an engine, each file is drawn twice
    for axes in figure.axes:  # the layout's last digits differ from one time to the next
        axes.set_position(Bbox(axes.get_position().get_points().round(6)))
    return figure


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG text, the same for the same data."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return re.sub(r' d="[^"]*"', _shorten, out.getvalue())


def darkened(svg: str) -> str:
    """Return a figure's SVG with every colour as it is on a dark page."""
    return re.sub("|".join(DARK), lambda colour: DARK[colour[0]], svg)


def _shorten(path: re.Match[str]) -> str:
    """Cut the coordinates of a path to hundredths of a point: the files are embedded four times."""
    return re.sub(r"(\.\d\d)\d+", r"\1", path[0])


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG at 200 dots an inch."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=200, metadata={"Software": None})
    return out.getvalue()
