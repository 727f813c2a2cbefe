"""Muon on the hidden matrices and AdamW on all else, as one optimizer.

Muon (Jordan et al., 2024) makes every direction of a matrix's step equally large, so that what few tokens ask
for is learnt as fast as what all do. Embeddings, output head, norms and biases keep AdamW, as is usual with
it. The step has AdamW's size ("Muon is Scalable for LLM Training", Liu et al., 2025), so one learning rate
serves both.
"""

from __future__ import annotations

from typing import Any

import torch

OUTSIDE = ("embed_tokens.weight", "lm_head.weight")
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that brings singular values near one fastest: to 0.7-1.2 in five steps (Jordan et al.)."""


def is_hidden_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon takes the parameter of this name."""
    return parameter.dim() == 2 and not name.endswith(OUTSIDE)


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Return about U V^T of a matrix U S V^T, by Newton-Schulz steps in the matrix's own precision."""
    a, b, c = COEFFICIENTS
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` but for the precision of its Newton-Schulz steps.

    torch takes bfloat16 whatever the matrix has, which a CPU without it computes ten times slower.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.1, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one step with Nesterov's momentum and decoupled weight decay; `closure` is not asked for."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = orthogonal(gradient.lerp(buffer, group["momentum"]))
        size = group["lr"] * 0.2 * max(parameter.shape) ** 0.5  # the root mean square of AdamW's steps
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-size)


class MuonAdamW(torch.optim.Optimizer):
    """`Muon` of `hidden`, groups of matrices, and `torch.optim.AdamW` of the groups `others`.

    `param_groups` are those of both, and each group's `lr` counts.
    """

    def __init__(
        self,
        hidden: list[dict[str, Any]],
        others: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
    ) -> None:
        self.inner = {
            "muon": Muon(hidden, lr=lr),
            "adamw": torch.optim.AdamW(others, lr=lr, betas=betas, fused=True),
        }
        super().__init__(self._groups(), {})

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.inner.values() for group in optimizer.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one step of both; returns what `closure`, if there is one, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.inner.values():
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Both states, by the optimizer's name."""
        return {name: optimizer.state_dict() for name, optimizer in self.inner.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take both states."""
        for name, optimizer in self.inner.items():
            optimizer.load_state_dict(state_dict[name])
        self.param_groups = self._groups()
