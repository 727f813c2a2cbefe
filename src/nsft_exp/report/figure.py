"""The figures of a study. Each is a function of the results; it returns None with nothing to draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from nsft_exp.report.bar import draw_errors, draw_words
from nsft_exp.report.curve import draw_sizes, draw_training
from nsft_exp.report.forest import draw_differences, draw_improvement
from nsft_exp.report.results import Results
from nsft_exp.report.style import Style, drawing, settle, to_png, to_svg


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
    """A drawn figure on white: wide and narrow as SVG, wide as PNG."""

    plot: Plot
    wide: str
    narrow: str
    png: bytes


def draw_all(results: Results) -> tuple[list[Drawn], list[Plot]]:
    """Return the drawn figures and the plots that had nothing to draw."""
    drawn, missing = [], []
    with drawing():
        for plot in PLOTS:
            wide, narrow = (plot.draw(results, Style(narrow)) for narrow in (False, True))
            if wide is None or narrow is None:
                missing.append(plot)
            else:
                settle(wide)
                drawn.append(Drawn(plot, to_svg(wide), to_svg(settle(narrow)), to_png(wide)))
    return drawn, missing


PLOTS = (
    Plot(
        "differences",
        "Differences",
        "Mean difference over seeds. Thick: bootstrap over images and seeds. Thin: Student's t over seeds. "
        "Filled: both exclude zero after Holm's correction. Areas under ROC curves count in hundredths. "
        "A number at the edge is a difference beyond the panel.",
        draw_differences,
        "needs at least two methods with scores",
    ),
    Plot(
        "improvement",
        "Relative improvement over the base VLM",
        "Change in per cent of the base VLM's score, with the bootstrap interval over images and seeds. "
        "Filled: significant after Holm's correction. A number at the edge is a change beyond the panel.",
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
        "words",
        "Words of the corrective dialogues",
        "The most frequent words of nSFT's corrective questions and answers, in per cent of all their words; "
        "function words are not shown but counted. Objects: those of CHAIR's synonym table.",
        draw_words,
        "needs nsft with and without codebook, and a CHAIR benchmark",
    ),
    Plot(
        "training",
        "Training",
        "Mean over seeds of what training logged, smoothed over a twentieth of the steps; the band is the "
        "seeds' range. Broken lines: held-out samples. Losses of different objectives are not comparable.",
        draw_training,
        "needs the metrics of a trained method",
    ),
)
