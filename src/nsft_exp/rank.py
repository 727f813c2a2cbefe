"""One process of a training on several: what torchrun starts on each device."""

from __future__ import annotations

import json
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch

from nsft_exp.cell_run import from_order
from nsft_exp.records import UserError
from nsft_exp.stages import train_rank
from nsft_exp.store import write_atomically
from nsft_exp.world import World

TIMEOUT = timedelta(hours=2)
"""How long a rank waits for the others: one of them may be making the cached reference of a large set."""


def main(order: Path, reply: Path) -> None:
    """Train this rank's share; each node's first process writes the reply."""
    asked = json.loads(order.read_text("utf-8"))
    step, run = from_order(asked)
    world = World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    gpu = step.nodes["trainer"].get("accelerator") != "cpu" and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(world.local_rank)
    torch.distributed.init_process_group("nccl" if gpu else "gloo", timeout=TIMEOUT)
    try:
        summaries = world.gathered(train_rank(step, run, Path(asked["folder"]), world))
    except UserError as error:
        write_atomically(reply, json.dumps({"refused": str(error)}))
        raise SystemExit(2) from error
    if world.local_rank == 0:
        write_atomically(reply, json.dumps({"summary": summaries[0]}))
    torch.distributed.destroy_process_group()


def _leave(code: int) -> None:
    """End at once: a thread of gloo's that frees a tensor while Python shuts down would abort the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except SystemExit as error:
        _leave(error.code if isinstance(error.code, int) else 1)
    except BaseException as error:
        traceback.print_exc()
        _leave(130 if isinstance(error, KeyboardInterrupt) else 1)
    _leave(0)
