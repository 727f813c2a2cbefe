"""A train stage on several processes: started with torchrun, one for each device, from the resolved step."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from nsft_exp.child import run_child
from nsft_exp.records import UserError
from nsft_exp.store import write_atomically


def num_ranks(trainer: dict[str, Any]) -> int:
    """How many processes a `trainer` node asks for, over all nodes."""
    return int(trainer.get("devices") or 1) * int(trainer.get("num_nodes") or 1)


def run_ranks(order: dict[str, Any], folder: Path, trainer: dict[str, Any]) -> dict[str, Any]:
    """Train on this node's processes (and those of the other nodes) and return the training's summary.

    Raises UserError with a rank's message where it refused its input, RuntimeError with the end of the
    traceback where one failed or was killed: torchrun then ends the others.
    """
    with tempfile.TemporaryDirectory(prefix="nsft-") as place:
        asked, reply = Path(place) / "order.json", Path(place) / "reply.json"
        write_atomically(asked, json.dumps({**order, "folder": str(folder)}))
        words = torchrun_words(trainer, [str(asked), str(reply)])
        code, tail = run_child([sys.executable, "-m", "nsft_exp.torchrun", *words], _environment(trainer))
        answer = json.loads(reply.read_text("utf-8")) if reply.exists() else {}
    if "refused" in answer:
        raise UserError(answer["refused"])
    if code or "summary" not in answer:
        raise RuntimeError(f"training on several processes ended with code {code}: {_cause(tail)}")
    summary: dict[str, Any] = answer["summary"]
    return summary


def torchrun_words(trainer: dict[str, Any], words: list[str]) -> list[str]:
    """Return torchrun's own arguments and those of each process.

    Raises UserError for several nodes without a place to meet.
    """
    nodes, place = int(trainer.get("num_nodes") or 1), trainer.get("rendezvous")
    if nodes > 1 and not place:
        raise UserError("trainer.num_nodes: several need trainer.rendezvous=<first node>:<free port>")
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={place}"] if nodes > 1 else ["--standalone"]
    size = [f"--nnodes={nodes}", f"--nproc-per-node={trainer['devices']}", "--max-restarts=0"]
    return [*size, *meet, "-m", "nsft_exp.rank", *words]


def _environment(trainer: dict[str, Any]) -> dict[str, str]:
    """This process's environment; where no threads are named each rank takes its part of the cores."""
    threads = trainer.get("threads") or max(1, (os.cpu_count() or 1) // int(trainer["devices"]))
    return {"OMP_NUM_THREADS": str(threads), **os.environ}


def _cause(tail: list[str]) -> str:
    """The line that says what went wrong: the last exception but torchrun's own, else the last line."""
    lines = [line.strip() for line in tail if line.strip()]
    named = [line for line in lines if "Error" in line or "what():" in line]  # Python's, or C++'s last word
    ours = [line for line in named if "ChildFailedError" not in line]
    return (ours or lines or ["no word of it"])[-1][:500]


if __name__ == "__main__":
    from torch.distributed.run import main

    from nsft_exp.child import end_with_parent

    end_with_parent()
    main(sys.argv[1:])
