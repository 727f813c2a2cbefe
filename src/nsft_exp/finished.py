"""Finds the cells of a sweep that are finished, before any of them is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from nsft_exp import config as configs
from nsft_exp.cell import new_outcome
from nsft_exp.cell_run import CellRun, Loaded
from nsft_exp.keys import digest
from nsft_exp.plan import make_plan
from nsft_exp.stages import run_step
from nsft_exp.store import Store


class FinishedCells:
    """The cells of a sweep whose stages are all done.

    It looks at those that ended well the last time. What has not run yet, or failed, is run, so that
    whatever it does to its process it does to itself. What cells read alike is read once.
    """

    def __init__(self, sweep: DictConfig) -> None:
        self.store = Store(sweep.paths.runs)
        self.loaded = Loaded()
        self.ended_well = ended_well(
            Path(sweep.paths.runs) / "studies" / str(sweep.study.name) / "cells.json"
        )

    def find(self, job: DictConfig, folder: str) -> dict[str, Any] | None:
        """Return the outcome of a job (with its `hydra` node) that is finished; None: it has to be run.

        `folder` is the job's own. Whatever is wrong with a cell counts as work: running it will tell.
        """
        try:
            plain = configs.resolved(job)
            if digest(plain) not in self.ended_well:
                return None
            return self._look(plain, new_outcome(configs.choices_of(job.hydra), folder))
        except Exception:  # work left (Unfinished) or a fault: the cell is run, and counted by how it ends
            return None

    def _look(self, plain: dict[str, Any], outcome: dict[str, Any]) -> dict[str, Any]:
        """Complete a new outcome from what is there. Raises Unfinished where a stage has work left."""
        run = CellRun(self.store, looking=True, loaded=self.loaded)
        plan = make_plan(plain, outcome["choices"], get_object(plain["method"]["_target_"]).consumes)
        for step in plan:
            run_step(step, run)
        folders = {name: str(folder.path) for name, folder in run.folders.items()}
        return outcome | {"config": plain, "seed": plain["seed"], "status": "ok", "folders": folders}


def ended_well(file: Path) -> set[str]:
    """Return the digests of the configs that ended well, from a study's outcomes; none where it has none, or
    where the file is damaged (its cells are then run, and find their stages done)."""
    try:
        return {digest(o["config"]) for o in json.loads(file.read_text("utf-8")) if o["status"] == "ok"}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
