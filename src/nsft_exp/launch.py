"""Where a stage runs: here, or in a process of its own that gives the accelerator's memory back.

A stage that holds an accelerator is a child started from the resolved step in a file: an out-of-memory
kill then costs one cell, and the child never sees (and so never re-enters) a Hydra multirun.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from nsft_exp.cell_run import CellRun, from_order, to_order
from nsft_exp.child import end_with_parent, run_child
from nsft_exp.device import num_gpus
from nsft_exp.plan import Step
from nsft_exp.records import UserError
from nsft_exp.stages import run_step
from nsft_exp.store import StageFolder, write_atomically
from nsft_exp.torchrun import num_ranks

MODES = ("auto", "inline", "child")


def launch(step: Step, run: CellRun, mode: str = "auto") -> None:
    """Run a step in this process (`inline`), in a child (`child`), or as the machine suggests (`auto`).

    `auto` takes a child where the stage will hold an accelerator. The step's folder is noted in `run`.
    Raises UserError with the child's message where the child refused its input, RuntimeError with the
    end of its traceback where it failed.
    """
    if mode not in MODES:
        raise UserError(f"launch={mode}: there is no such mode; there are {', '.join(MODES)}")
    if mode == "inline" or (mode == "auto" and not holds_accelerator(step)):
        run_step(step, run)
        return
    _run_child(step, run)


def holds_accelerator(step: Step) -> bool:
    """True where the stage loads a model onto an accelerator of this machine."""
    trainer = step.nodes.get("trainer", {})
    if "vlm" not in step.nodes or trainer.get("accelerator") == "cpu" or num_ranks(trainer) > 1:
        return False
    return num_gpus() > 0


def _run_child(step: Step, run: CellRun) -> None:
    with tempfile.TemporaryDirectory(prefix="nsft-") as folder:
        order, reply = Path(folder) / "order.json", Path(folder) / "reply.json"
        write_atomically(order, json.dumps(to_order(step, run)))
        code, tail = run_child([sys.executable, "-m", "nsft_exp.launch", str(order), str(reply)])
        if not reply.exists():
            raise RuntimeError(f"{step.name} ended with code {code}: {''.join(tail).strip()}")
        answer = json.loads(reply.read_text("utf-8"))
    if "refused" in answer:
        raise UserError(answer["refused"])
    run.folders[step.name] = StageFolder(Path(answer["folder"]))
    run.keys[step.name] = answer["key"]


def run_order(order: Path, reply: Path) -> None:
    """The child's side: run the step that the order file describes and write where its result is."""
    end_with_parent()
    step, run = from_order(json.loads(order.read_text("utf-8")))
    try:
        folder = run_step(step, run)
    except UserError as error:
        write_atomically(reply, json.dumps({"refused": str(error)}))
        raise SystemExit(2) from error
    write_atomically(reply, json.dumps({"folder": str(folder.path), "key": run.keys[step.name]}))


if __name__ == "__main__":
    run_order(Path(sys.argv[1]), Path(sys.argv[2]))
