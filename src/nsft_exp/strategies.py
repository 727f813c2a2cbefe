"""How the processes of a training come together, as Lightning's strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy

from nsft_exp.sharding import state_part, whole_state


class SummedGradients(DDPStrategy):
    """Lightning's DDP without its wrapper: the module itself sums the gradients, once a global batch.

    Terms are already divided by their weight over all processes, so gradients are summed, not averaged; and a
    process may have fewer micro-batches than another, or none.
    """

    def configure_ddp(self) -> None:
        """Leave the module as it is."""

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """An optimizer's state for a checkpoint: whole, on the rank that writes it."""
        return whole_state(super().optimizer_state(optimizer), self.is_global_zero)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take from a checkpoint what this rank has of the optimizers' states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state_part(state, optimizer))
