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


def is_hidden_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon takes the parameter of this name."""
    return parameter.dim() == 2 and not name.endswith(OUTSIDE)


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` of `hidden`, groups of matrices, and `torch.optim.AdamW` of the groups `others`.

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
            "muon": torch.optim.Muon(hidden, lr=lr, adjust_lr_fn="match_rms_adamw"),
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
