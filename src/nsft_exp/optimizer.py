"""The optimizer of every training, its step, and a step's seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nsft_exp.recipe import Recipe
from nsft_exp.sharding import clip_gradients, is_shardable


def adamw(recipe: Recipe, named: Iterable[tuple[str, Any]]) -> torch.optim.Optimizer:
    """AdamW on those of the parameters that are trained, with the recipe's weight decay on matrices only.

    What may be in parts is in groups of its own: one step cannot be made on parts and whole weights together.
    """
    trained = [(is_shardable(name), p) for name, p in named if p.requires_grad]
    groups = [
        {
            "params": [p for own, p in trained if own == shardable and (p.dim() >= 2) == matrix],
            "weight_decay": recipe.weight_decay if matrix else 0.0,
        }
        for shardable in (True, False)
        for matrix in (True, False)
    ]
    betas = (recipe.betas[0], recipe.betas[1])
    return torch.optim.AdamW(groups, lr=recipe.rate(0, 1), betas=betas, fused=True)


def step_on(optimizer: Any, recipe: Recipe, rate: float) -> Tensor:
    """Clip the gradients, step at this rate and forget them. Returns the gradient's norm before clipping."""
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = clip_gradients(trained, recipe.clip_norm or float("inf"))
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return norm


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of a step's dropout: its own, so that a resumed run draws the same; another on each rank."""
    name = f"step {seed} {step}" + (f" rank {rank}" if rank else "")
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
