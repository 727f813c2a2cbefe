"""Muon on hidden matrices, AdamW on the rest: as torch makes both, and over a restart."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from nsft_exp.job import prepare
from nsft_exp.muon import MuonAdamW, orthogonal
from nsft_exp.optimizer import optimizer_of, step_on
from nsft_exp.recipe import Recipe, TrainerOptions, Tuning
from nsft_exp.records import UserError

RECIPE = Recipe("r", 0.1, 4, optimizer="muon", weight_decay=0.01, betas=(0.9, 0.95), clip_norm=0.0)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(5, 4)
        self.up = nn.Linear(4, 6)
        self.lm_head = nn.Linear(6, 5, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(torch.tanh(self.up(self.embed_tokens(ids))))


def backward(model: Model, number: int) -> None:
    """Of all five words, so that no direction of a matrix has a gradient of nothing but rounding."""
    targets = torch.arange(5).roll(number + 1)
    nn.functional.cross_entropy(model(torch.arange(5)), targets).backward()


def step(model: Model, optimizer: torch.optim.Optimizer, number: int, rate: float = 0.1) -> None:
    backward(model, number)
    step_on(optimizer, RECIPE, rate)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_each_weight_moves_as_its_own_optimizer_moves_it_at_the_steps_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch's Muon rounds to it
    ours, theirs = Model(), Model()
    both = optimizer_of(RECIPE, ours.named_parameters())
    matrices = [theirs.embed_tokens.weight, theirs.lm_head.weight]
    muon = torch.optim.Muon([theirs.up.weight], lr=0.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": [theirs.up.bias], "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    for number, rate in enumerate((0.1, 0.05, 0.02)):
        step(ours, both, number, rate)
        backward(theirs, number)
        for optimizer in (muon, adamw):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
    for name, value in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], value, msg=name)


@pytest.mark.parametrize("shape", [(6, 6), (20, 7), (7, 20)])
def test_every_direction_of_a_step_is_about_equally_large(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.diagonal(u.T @ orthogonal(matrix, steps=8) @ v.T)
    assert values.min() > 0.65
    assert values.max() < 1.25
    assert orthogonal(matrix).dtype == torch.float64


def test_only_what_is_trained_is_stepped() -> None:
    model = Model()
    model.up.weight.requires_grad_(False)
    before = weights(model)
    step(model, optimizer_of(RECIPE, model.named_parameters()), 0)
    moved = {name for name, value in weights(model).items() if not value.equal(before[name])}
    assert moved == {"embed_tokens.weight", "up.bias", "lm_head.weight"}


@pytest.mark.parametrize("saved", [1, 3])
def test_it_goes_on_from_its_state_as_if_nothing_had_been(saved: int) -> None:
    whole = Model()
    optimizer = optimizer_of(RECIPE, whole.named_parameters())
    for number in range(5):
        if number == saved:
            state, then = copy.deepcopy(optimizer.state_dict()), weights(whole)
        step(whole, optimizer, number)
    again = Model()
    again.load_state_dict(then)
    resumed = optimizer_of(RECIPE, again.named_parameters())
    assert isinstance(resumed, MuonAdamW)
    resumed.load_state_dict(state)
    for number in range(saved, 5):
        step(again, resumed, number, rate=0.1)
    assert all(value.equal(weights(again)[name]) for name, value in weights(whole).items())


def test_it_is_refused_where_matrices_are_in_parts_before_a_model_is_read() -> None:
    unread: Any = None
    trainer = TrainerOptions(strategy="fsdp2")
    with pytest.raises(UserError, match=r"trainer=fsdp2: Muon steps on whole matrices; take"):
        prepare(unread, unread, [], [], RECIPE, Tuning(), trainer, 0, None, [], unread)
