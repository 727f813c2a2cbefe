"""What torchrun starts on each rank for a test: a tiny model's layers in parts, and one backward pass."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from nsft_exp.sharding import clip_gradients, shard_layers
from nsft_exp.vlm.scratch import ScratchLlava
from nsft_exp.world import World


def loss(decoder: Any, row: torch.Tensor) -> torch.Tensor:
    hidden = decoder(inputs_embeds=decoder.get_input_embeddings()(row)).last_hidden_state
    weight = torch.linspace(-1, 1, hidden.numel()).view_as(
        hidden
    )  # the sum of squares alone is the norm's own
    return (hidden * weight).sum()


def main(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    world = World(torch.distributed.get_rank(), torch.distributed.get_world_size())
    decoder = ScratchLlava().load().model.model.language_model
    layers = sum(p.numel() for p in decoder.layers.parameters())
    ids = [torch.arange(7)[None] + 11 * rank for rank in range(world.size)]
    for row in ids:  # alone: the gradient of both ranks' rows
        loss(decoder, row).backward()
    first = decoder.layers[0].self_attn.q_proj.weight
    expected = float(first.grad.norm())
    grown = [p for p in decoder.parameters() if p.grad is not None]
    whole_norm = float(torch.nn.utils.get_total_norm([p.grad for p in grown]))
    decoder.zero_grad()
    shard_layers(decoder, torch.device("cpu"), world)
    loss(decoder, ids[world.rank]).backward()
    world.sum_gradients(list(decoder.parameters()))
    gradient = float(decoder.layers[0].self_attn.q_proj.weight.grad.full_tensor().norm())
    held = sum(p.to_local().numel() for p in decoder.layers.parameters() if isinstance(p, DTensor))
    norm = float(clip_gradients(list(decoder.parameters()), 1e9))
    found = {"layers": layers, "held": held, "gradient": gradient, "expected": expected}
    found |= {"norm": norm, "whole_norm": whole_norm}
    (folder / f"rank{world.rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    import os

    os._exit(0)  # gloo's threads can abort a process that Python shuts down
