"""A trained LoRA as a fixed part of its layer, where merging it into weights of low precision would lose it.

What is trained later then has the earlier rounds inside its base layer: with its own adapter switched off the
model is the one that the earlier rounds made.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import functional

from nsft_exp.records import UserError


class StackedLinear(nn.Linear):
    """W x + b + up(down(x)), the low-rank part in its own precision, as PEFT computes an adapter.

    `down` is [R, in], `up` [out, R] with LoRA's scale in it; neither is trained.
    """

    down: Tensor
    up: Tensor

    def __init__(self, linear: nn.Linear, down: Tensor, up: Tensor) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        if isinstance(linear, StackedLinear):
            down, up = torch.cat([linear.down, down]), torch.cat([linear.up, up], dim=1)
        self.register_buffer("down", down)
        self.register_buffer("up", up)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] of x [..., in] in the weights' precision."""
        base = super().forward(x)
        low_rank = functional.linear(functional.linear(x.to(self.down.dtype), self.down), self.up)
        return (base + low_rank).to(base.dtype)


def stack(adapted: PeftModel) -> Any:
    """Return the base model with the adapter as part of its layers, a trained projector in its place.

    Raises UserError for a layer whose weights are quantized.
    """
    model = adapted.get_base_model()
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            model.set_submodule(name, _stacked(module))
        elif isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model


def _stacked(layer: Any) -> StackedLinear:
    base, (adapter, *_) = layer.get_base_layer(), layer.active_adapters
    if type(base) not in (nn.Linear, StackedLinear):
        raise UserError(
            "tuning.quantization: nothing can be trained on top of what was trained before while the weights "
            "are in 4 bits; take tuning=lora"
        )
    down = layer.lora_A[adapter].weight.detach()
    up = layer.lora_B[adapter].weight.detach() * layer.scaling[adapter]
    return StackedLinear(base, down, up)


def is_stacked(model: nn.Module) -> bool:
    """True where adapters are fixed parts of the model's layers."""
    return any(isinstance(module, StackedLinear) for module in model.modules())
