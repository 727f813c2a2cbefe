"""The pilot: the first records of every respond and critique pass, made for real and kept.

They go into the passes' own folders, whose keys leave the number of samples out: the run that follows finds
them done, and asks for none of them again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from nsft_exp.cell_run import CellRun, stage_folder
from nsft_exp.estimate.sweep import Cell
from nsft_exp.launch import launch
from nsft_exp.plan import Step
from nsft_exp.stages import answered_by, surveys
from nsft_exp.store import StageFolder, Store, write_atomically

FILE = "pilot.json"
"""In a stage's folder: how long its pilot took."""


def fly(cells: Iterable[Cell], store: Store, size: int) -> None:
    """Answer and criticise the first `size` samples of each distinct pass of the cells.

    Passes that wait for a training are left out. Raises UserError for what the run itself would refuse.
    """
    done: set[tuple[str, ...]] = set()
    for cell in cells:
        run = CellRun(store, cell.config["trainer"].get("threads"))
        for step in cell.plan:
            if step.init or step.kind not in ("respond", "critique"):
                continue
            if step.kind == "respond" or not surveys(step):  # one that reads all pairs asks nobody
                _fly(_cut(step, size), run, str(cell.config.get("launch", "auto")), done)


def _fly(step: Step, run: CellRun, mode: str, done: set[tuple[str, ...]]) -> None:
    run.samples(step)  # files that are made when missing are there from here on, for the key
    folder = stage_folder(step, run, answered_by(step, run))
    name = (str(folder.path), *(str(run.folders[n].path) for n in step.inputs))
    run.folders[step.name] = folder
    if name in done:
        return
    done.add(name)
    before, started = sum(1 for _ in folder.records()), time.perf_counter()
    launch(step, run, mode)
    wall = time.perf_counter() - started
    if made := sum(1 for _ in folder.records()) - before:
        manifest = folder.manifest() or {}
        seconds = manifest.get("seconds", wall)
        timing = {"records": made, "seconds": seconds, "setup": round(max(0.0, wall - seconds), 1)}
        write_atomically(folder.path / FILE, json.dumps(timing) + "\n")


def _cut(step: Step, size: int) -> Step:
    """The step over the first `size` samples: a source's draw begins as a smaller one's."""
    source = step.nodes["source"]
    return replace(
        step, nodes={**step.nodes, "source": {**source, "size": min(size, source["size"] or size)}}
    )


def timing_of(folder: StageFolder) -> dict[str, Any] | None:
    """What a pass's pilot took: `records` made in `seconds`, after `setup` seconds; None without a pilot."""
    file = folder.path / FILE
    return json.loads(file.read_text("utf-8")) if file.exists() else None
