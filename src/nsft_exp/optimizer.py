"""The optimizer of every training, its step, and a step's seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from nsft_exp.muon import MuonAdamW, is_hidden_matrix
from nsft_exp.recipe import Recipe
from nsft_exp.sharding import clip_gradients, is_shardable


def optimizer_of(recipe: Recipe, named: Iterable[tuple[str, Any]]) -> torch.optim.Optimizer:
    """The recipe's optimizer of those of the parameters that are trained; weight decay on matrices only.

    `adamw`: what may be in parts is in groups of its own, as one step cannot be made on parts and whole
    weights together. `muon`: see `MuonAdamW`.
    """
    trained = [(name, p) for name, p in named if p.requires_grad]
    rate, betas = recipe.rate(0, 1), (recipe.betas[0], recipe.betas[1])
    if recipe.optimizer == "muon":
        hidden = [(name, p) for name, p in trained if is_hidden_matrix(name, p)]
        others = [(name, p) for name, p in trained if not is_hidden_matrix(name, p)]
        return MuonAdamW(_groups(recipe, hidden, [True]), _groups(recipe, others), rate, betas)
    groups = [
        group
        for shardable in (True, False)
        for group in _groups(recipe, [(n, p) for n, p in trained if is_shardable(n) == shardable])
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)


def _groups(
    recipe: Recipe, named: list[tuple[str, Any]], matrices: Sequence[bool] = (True, False)
) -> list[dict[str, Any]]:
    return [
        {
            "params": [p for _, p in named if (p.dim() >= 2) == matrix],
            "weight_decay": recipe.weight_decay if matrix else 0.0,
        }
        for matrix in matrices
    ]


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
