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
from nsft_exp.launch import launch
from nsft_exp.plan import Step, benchmark_members, make_plan, row_label
from nsft_exp.records import Request, UserError
from nsft_exp.stages import CellRun, build, run_step
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
        preflight(plan)
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


def find_finished(
    plain: dict[str, Any], outcome: dict[str, Any], store: Store, drawn: dict[str, Any]
) -> bool:
    """Complete a new outcome where all of its cell's stages are done already; False: there is work left.

    Whatever is wrong with a cell also counts as work: running it will tell. `drawn` keeps samples from one
    look to the next.
    """
    try:
        run = CellRun(store, looking=True, drawn=drawn)
        plan = make_plan(plain, outcome["choices"], get_object(plain["method"]["_target_"]).consumes)
        for step in plan:
            run_step(step, run)
    except Exception:
        return False
    folders = {name: str(folder.path) for name, folder in run.folders.items()}
    outcome |= {"config": plain, "seed": plain["seed"], "status": "ok", "folders": folders}
    return True


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


def _check_engine(step: Step) -> None:
    """Refuse an engine that cannot answer as the pairing asks: about noised images, or in bound beams."""
    engine = step.nodes["vlm"].get("engine", "hf")
    if getattr(build(step.nodes["pairing"]), "needs_hf", False) and engine != "hf":
        raise UserError(
            f"vlm.engine={engine}: this pairing asks for what only the model in this process does (noise on "
            "the vision tower's input, answers that look at one another's tokens); take vlm.engine=hf"
        )


def _check_parts(step: Step) -> None:
    """Refuse what the constructors of a step's VLM, pairing or critic refuse, and a server that would have to
    answer for what is trained here.
    """
    parts = {group: build(step.nodes[group]) for group in ("vlm", "pairing", "critic") if group in step.nodes}
    if hasattr(parts.get("vlm"), "check_served"):
        parts["vlm"].check_served(step.init)


def _engine(step: Step) -> str:
    """What answers: `hf`, `vllm` or `server` (vlm=server has no choice)."""
    vlm = step.nodes["vlm"]
    return str(vlm.get("engine", "server" if vlm.get("server") else "hf"))


def _check_server(step: Step, benchmark: Any) -> None:
    """Refuse a benchmark that another program asks where the model is not served."""
    if hasattr(benchmark, "command") and _engine(step) != "server":
        raise UserError(
            f"benchmark {benchmark.name}: asks the model's server itself; serve it (nsft export-model, vllm "
            "serve) and take vlm=server, or the base with vlm.engine=server"
        )


def _check_beams(step: Step, requests: list[Request]) -> None:
    """Refuse a benchmark whose answers are searched with beams where the model is not in this process."""
    name = step.nodes["benchmark"].get("name")
    if _engine(step) != "hf" and any(request.decoding.num_beams > 1 for request in requests):
        raise UserError(
            f"benchmark {name}: its beam search is Hugging Face's only; take vlm.engine=hf, or num_beams=1 "
            "of the benchmark (another protocol), or leave it out of the suite"
        )


def _check_training(step: Step) -> None:
    """Refuse options of training that do not exist or that the method cannot be trained with."""
    method, *options = (build(step.nodes[group]) for group in ("method", "recipe", "tuning", "trainer"))
    if hasattr(method, "fits"):
        method.fits(*options)


def preflight(plan: list[Step]) -> None:
    """Refuse bad input before any expensive work: the samples, their images, the benchmarks' files."""
    seen: set[str] = set()
    for step in plan:
        if step.kind == "train":
            _check_training(step)
        if step.kind == "respond":
            _check_engine(step)
        _check_parts(step)
        for group in ("source", "benchmark"):
            node = step.nodes.get(group)
            if not node or repr(node) in seen:
                continue
            seen.add(repr(node))
            plugin = build(node)
            if group == "benchmark":
                _check_server(step, plugin)
            plugin.samples() if group == "source" else _check_beams(step, plugin.requests())
            for what, number in getattr(plugin, "counts", {}).items():
                if number and ("broken" in what or "benchmark" in what):
                    _say(f"  {group}: {number} {what} left out")
