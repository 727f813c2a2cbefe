"""Finds the cells of a sweep that are finished, before any of them is started."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from nsft_exp import config as configs
from nsft_exp.cell import new_outcome
from nsft_exp.cell_run import CellRun, Loaded
from nsft_exp.keys import digest
from nsft_exp.plan import make_plan
from nsft_exp.records import UserError
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
        file = Path(sweep.paths.runs) / "studies" / str(sweep.study.name) / "cells.json"
        outcomes = json.loads(file.read_text("utf-8")) if file.exists() else []
        self.ended_well = {digest(o["config"]) for o in outcomes if o["status"] == "ok"}

    def find(self, job: DictConfig, folder: str) -> dict[str, Any] | None:
        """Return the outcome of a job (with its `hydra` node) that is finished; None: it has to be run.

        `folder` is the job's own.
        """
        with suppress(UserError):
            plain = configs.resolved(job)
            if digest(plain) in self.ended_well:
                return self._look(plain, new_outcome(configs.choices_of(job.hydra), folder))
        return None

    def _look(self, plain: dict[str, Any], outcome: dict[str, Any]) -> dict[str, Any] | None:
        """Complete a new outcome from what is there. Whatever is wrong with it counts as work: running it
        will tell."""
        try:
            run = CellRun(self.store, looking=True, loaded=self.loaded)
            plan = make_plan(plain, outcome["choices"], get_object(plain["method"]["_target_"]).consumes)
            for step in plan:
                run_step(step, run)
        except Exception:
            return None
        folders = {name: str(folder.path) for name, folder in run.folders.items()}
        return outcome | {"config": plain, "seed": plain["seed"], "status": "ok", "folders": folders}
