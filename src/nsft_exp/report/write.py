"""Write a study's report: tables, figures and the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nsft_exp.report import class_table, dialogue_words, form, inputs, moved, table, totals, wording
from nsft_exp.report.analysis import make_results
from nsft_exp.report.cell import Cell
from nsft_exp.report.figure import draw_all
from nsft_exp.report.page import to_html
from nsft_exp.store import write_atomically

SECTIONS = (table, class_table, form, dialogue_words, totals, moved, inputs)
"""Of table.md, each with `to_markdown(results)`."""


def write_report(cells: Sequence[Cell], study: dict[str, Any], folder: Path) -> None:
    """Write index.html, table.md, .csv and .tex, comparisons.csv, summary.json, figures/*.png and *.svg.

    Also classes.csv and totals.csv, where there are such. Failed cells are named with their logs; a figure
    with nothing to draw is removed and named in the page.
    `study`: name, title, and optionally description, compare_to (labels) and columns (headline columns).
    """
    results = make_results(cells, study)
    drawn, missing = draw_all(results)
    files: dict[str, str | bytes] = {
        "table.md": "".join(part.to_markdown(results) for part in SECTIONS),
        "table.csv": table.to_csv(results),
        **class_table.to_files(results),
        **totals.to_files(results),
        "comparisons.csv": table.comparisons_to_csv(results),
        "table.tex": table.to_latex(results),
        "summary.json": json.dumps(wording.summary(results), indent=1, ensure_ascii=False) + "\n",
        "index.html": to_html(results, drawn, missing),
    }
    for figure in drawn:
        files[f"figures/{figure.plot.name}.png"] = figure.png
        files[f"figures/{figure.plot.name}.svg"] = figure.wide
    for plot in missing:
        for suffix in ("png", "svg"):
            (folder / "figures" / f"{plot.name}.{suffix}").unlink(missing_ok=True)
    for name, content in files.items():
        write_atomically(folder / name, content)
