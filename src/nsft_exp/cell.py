"""One cell: from a composed config to an outcome that a report reads. A failure is an outcome too."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from nsft_exp import config as configs
from nsft_exp.cell_run import CellRun
from nsft_exp.launch import launch
from nsft_exp.plan import benchmark_members, make_plan, row_label
from nsft_exp.preflight import preflight
from nsft_exp.records import UserError
from nsft_exp.store import Store

log = logging.getLogger(__name__)
console = Console(stderr=True, highlight=False)


def run_cell(config: DictConfig) -> dict[str, Any]:
    """Run every step of the composed cell and return its outcome (`status` is `ok` or `failed`).

    Nothing is raised but KeyboardInterrupt: the traceback of a failure goes to the job's log.
    """
    choices = configs.current_choices()
    outcome = new_outcome(choices, HydraConfig.get().runtime.output_dir)
    run: CellRun | None = None
    try:
        plain = configs.resolved(config)
        outcome |= {"config": plain, "seed": plain["seed"]}
        configs.check_belonging(plain, choices)
        trainer = plain["trainer"]
        run = CellRun(Store(plain["paths"]["runs"]), trainer.get("threads"), trainer.get("devices", 1))
        if plain["trainer"].get("evaluate_every"):
            run.watched = benchmark_members(plain["benchmark"])
        if plain["logger"]:
            from nsft_exp.study import stream_of  # brings the report's modules along

            run.stream = stream_of(outcome)
        plan = make_plan(plain, choices, get_object(plain["method"]["_target_"]).consumes)
        _say(f"[bold]{escape(outcome['label'])}[/] seed {plain['seed']}")
        for line in preflight(plan):
            _say(f"  {line}")
        for step in plan:
            launch(step, run, plain.get("launch", "auto"))
            _say(f"  {step.name:<18} {run.folders[step.name].path}")
        outcome["status"] = "ok"
    except UserError as error:
        _fail(outcome, str(error))
        log.exception("refused")
        outcome["refused"] = True
    except Exception as error:
        _fail(outcome, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        log.exception("failed")
    outcome["folders"] = {name: str(folder.path) for name, folder in run.folders.items()} if run else {}
    return outcome


def new_outcome(choices: dict[str, str], folder: str) -> dict[str, Any]:
    """Return the outcome of a cell that has not run yet, with its log in the job's folder."""
    return {
        "label": row_label(choices),
        "choices": choices,
        "status": "failed",
        "error": "",
        "log": str(Path(folder) / "nsft.log"),
        "folders": {},
    }


def _fail(outcome: dict[str, Any], message: str) -> None:
    outcome["error"] = message
    _say(f"  [red]failed[/] {escape(message)}")


def _say(line: str) -> None:
    console.print(line, soft_wrap=True)
    log.info(Text.from_markup(line).plain)
