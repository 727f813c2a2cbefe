"""Write a study's report: tables, figures and the page; print its table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from nsft_exp.report import table
from nsft_exp.report.analysis import make_results
from nsft_exp.report.cell import Cell
from nsft_exp.report.figure import draw_all
from nsft_exp.report.page import to_html
from nsft_exp.report.results import Results

_made: dict[int, tuple[Sequence[Cell], Results]] = {}


def results_of(cells: Sequence[Cell], study: dict[str, Any]) -> Results:
    """Return the results of these cells; the last ones are remembered, so that printing follows writing."""
    known = _made.get(id(cells))
    if known is None or known[0] is not cells or known[1].study != study:
        _made.clear()
        _made[id(cells)] = (cells, make_results(cells, study))
    return _made[id(cells)][1]


def write_report(cells: Sequence[Cell], study: dict[str, Any], folder: Path) -> None:
    """Write table.md, table.csv, comparisons.csv, table.tex, figures/*.png and *.svg, and index.html.

    Failed cells are named with their logs; a figure with nothing to draw is removed and named in the page.
    `study`: name, title, and optionally description, compare_to (labels) and columns (headline columns).
    """
    results = results_of(cells, study)
    drawn, missing = draw_all(results)
    files: dict[str, str | bytes] = {
        "table.md": table.to_markdown(results),
        "table.csv": table.to_csv(results),
        "comparisons.csv": table.comparisons_to_csv(results),
        "table.tex": table.to_latex(results),
        "index.html": to_html(results, drawn, missing),
    }
    for figure in drawn:
        files[f"figures/{figure.plot.name}.png"] = figure.png
        files[f"figures/{figure.plot.name}.svg"] = figure.light
    for plot in missing:
        for suffix in ("png", "svg"):
            (folder / "figures" / f"{plot.name}.{suffix}").unlink(missing_ok=True)
    for name, content in files.items():
        _write(folder / name, content)


def print_table(cells: Sequence[Cell], study: dict[str, Any], console: Console | None = None) -> None:
    """Print the main table, what was compared with what, and the cells that failed."""
    (console or Console()).print(table.to_terminal(results_of(cells, study)))


def _write(file: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(file)
