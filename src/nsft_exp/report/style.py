"""The look of figures: two themes, two widths, one colour and one marker for each label."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

KNOWN = {"base": 0, "cont_sft": 1, "gt_dpo": 2, "nsft": 3}
LIGHT = ["#6b7280", "#2563a8", "#c2660c", "#0f8a66", "#8b4fb3", "#b33a5b", "#64790f", "#0e7f95", "#8a5a2b"]
DARK = ["#9aa3b2", "#6eaaea", "#f0a253", "#3ecb9d", "#c39ae6", "#f08ba6", "#b3cb5c", "#5cc6da", "#d1a679"]
MARKERS = ["o", "s", "D", "^", "v", "P", "X", "p", "h"]
FONTS = ["Inter", "Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"]


@dataclass(frozen=True)
class Style:
    """How a figure is drawn: `narrow` is for a phone, `dark` for a dark page."""

    dark: bool = False
    narrow: bool = False

    @property
    def width(self) -> float:
        """Inches; the page shows an inch as about 72 pixels."""
        return 4.9 if self.narrow else 10.0

    @property
    def ink(self) -> str:
        """Colour of text and lines."""
        return "#e6e8ec" if self.dark else "#1d2330"

    @property
    def faint(self) -> str:
        """Colour of grids and of what is beside the point."""
        return "#3a404d" if self.dark else "#d9dde4"

    @property
    def muted(self) -> str:
        """Colour of secondary text."""
        return "#a3abba" if self.dark else "#5b6474"

    @property
    def paper(self) -> str:
        """Background."""
        return "#161a22" if self.dark else "#ffffff"

    def look(self, label: str, labels: Sequence[str]) -> tuple[str, str]:
        """Return (colour, marker) of a label; the paper's methods keep theirs in every study."""
        others = [x for x in dict.fromkeys(labels) if x not in KNOWN]
        place = KNOWN[label] if label in KNOWN else len(KNOWN) + others.index(label)
        colours = DARK if self.dark else LIGHT
        return colours[place % len(colours)], MARKERS[place % len(MARKERS)]


@contextmanager
def drawing(style: Style) -> Iterator[None]:
    """Set matplotlib up for a style; without a display, and the same bytes for the same data."""
    installed = set(font_manager.fontManager.get_font_names())
    settings = {
        "font.family": next((f for f in FONTS if f in installed), "sans-serif"),
        "font.size": 9.5,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": style.muted,
        "axes.linewidth": 0.8,
        "axes.labelcolor": style.muted,
        "axes.axisbelow": True,
        "axes.facecolor": style.paper,
        "figure.facecolor": style.paper,
        "savefig.facecolor": style.paper,
        "text.color": style.ink,
        "xtick.color": style.muted,
        "ytick.color": style.muted,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "grid.color": style.faint,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "svg.hashsalt": "nsft",
        "svg.fonttype": "path",
    }
    with matplotlib.rc_context(settings):
        yield


def panels(num: int, style: Style, height: float, per_row: int = 3) -> tuple[Figure, list[Axes]]:
    """Return a figure with `num` panels, as many a row as its width carries."""
    columns = 1 if style.narrow else min(per_row, num)
    rows = -(-num // columns)
    figure = Figure(figsize=(style.width, rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for extra in axes[num:]:
        extra.remove()
    return figure, axes[:num]


def legend_above(figure: Figure, handles: Sequence[object], names: Sequence[str], style: Style) -> None:
    """Put one legend above all panels."""
    columns = 2 if style.narrow else min(len(names), 5)
    figure.legend(
        handles, names, loc="outside upper left", ncols=columns, handletextpad=0.5, columnspacing=1.6
    )  # type: ignore[arg-type]


def label_legend(figure: Figure, labels: Sequence[str], wanted: Sequence[str], style: Style) -> None:
    """Put a legend of the wanted labels above all panels; `labels` are all of the study, in order."""
    shown = [label for label in dict.fromkeys(labels) if label in wanted]
    looks = [style.look(label, labels) for label in shown]
    handles = [Line2D([], [], color=colour, marker=marker, lw=1.8, ms=6) for colour, marker in looks]
    legend_above(figure, handles, shown, style)


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG text, the same for the same data."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG at 200 dots an inch."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=200, metadata={"Software": None})
    return out.getvalue()
