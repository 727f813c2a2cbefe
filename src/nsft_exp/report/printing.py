"""Print a study's main table on a terminal; nothing that draws figures is imported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from nsft_exp.report import moved, terminal
from nsft_exp.report.analysis import make_results
from nsft_exp.report.cell import Cell


def print_table(
    cells: Sequence[Cell],
    study: dict[str, Any],
    folder: Path | None = None,
    console: Console | None = None,
) -> None:
    """Print the main table, the cells that failed and, from `folder`, what its last report compared."""
    console = console or Console()
    results = make_results(cells, study, replicates=0)
    console.print(terminal.to_terminal(results))
    for line in moved.to_lines(results):
        console.print(line, soft_wrap=True, highlight=False)
    if folder is not None and (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
        console.print(terminal.readings_to_terminal(summary))
