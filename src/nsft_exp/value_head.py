"""A scalar at every token: the head of a reward or value model on the last hidden states."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nsft_exp.records import UserError

FILE = "value_head.safetensors"
"""Its file, beside the adapter of its training."""


class ScalarHead(nn.Module):
    """w . h + b in float32, whatever the precision of the hidden states.

    `weight` [H] is drawn with standard deviation 1/sqrt(H + 1) (as LLaVA-RLHF's reward head), `bias` is 0.
    """

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        noise = torch.randn(width, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(noise * (width + 1) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        """Return value_BT: at each token, of the text up to and with it. A product and a sum, so that
        autocast leaves them in float32."""
        return (hidden_BTH.float() * self.weight).sum(-1) + self.bias

    def save(self, folder: Path) -> None:
        """Write the head to a training's folder."""
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()},
            folder / FILE,
        )


def read_head(folder: Path) -> ScalarHead:
    """Return the head that a training wrote to its folder. Raises UserError where there is none."""
    if not (folder / FILE).is_file():
        raise UserError(f"{folder}: holds no {FILE}; it is not the folder of a reward model's training")
    state = load_file(folder / FILE)
    head = ScalarHead(len(state["weight"]))
    head.load_state_dict(state)
    return head
