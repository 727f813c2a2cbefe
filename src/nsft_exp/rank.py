"""One process of a training on several: what torchrun starts on each device."""

from __future__ import annotations

import json
import os
import sys
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
