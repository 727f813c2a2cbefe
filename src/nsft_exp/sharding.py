"""Weights of which every rank holds a part (FSDP2, and ZeRO-3): the decoder layers'; all else is whole.

A layer is put together for its own pass alone. Embeddings, head, projector and tower stay whole, so that no
message between ranks depends on how many tokens or images a rank has; their gradients are summed as with
whole weights. What is written is whole: a checkpoint goes on with any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from nsft_exp.world import World

SHARDED = "language_model."
WHOLE = "embed_tokens."


def is_shardable(name: str) -> bool:
    """Whether `shard_layers` may cut the parameter of this name."""
    return SHARDED in name and WHOLE not in name


def is_used_always(name: str) -> bool:
    """Whether every pass makes a gradient of the parameter of this name; a projector waits for images."""
    return SHARDED in name or "lm_head." in name


def shard_layers(language_model: Any, device: torch.device, world: World) -> None:
    """Give every rank its part of each decoder layer, in place. Gradients are summed over the ranks."""
    mesh = init_device_mesh(device.type, (world.size,))
    for layer in language_model.layers:
        fully_shard(layer, mesh=mesh)
    embedding = language_model.get_input_embeddings().weight
    fully_shard(language_model, mesh=mesh, ignored_params={embedding})
    for module in language_model.modules():
        if isinstance(module, FSDPModule):  # terms are divided by their weight over all ranks already
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def is_part(tensor: Any) -> bool:
    """Whether this is a rank's part of a tensor."""
    return isinstance(tensor, DTensor) or is_zero_part(tensor)


def is_zero_part(tensor: Any) -> bool:
    """Whether this is a weight that DeepSpeed's ZeRO has taken charge of (stage 3)."""
    return hasattr(tensor, "ds_id")


def whole(tensor: Tensor, keep: bool = True) -> Tensor:
    """Return a part's whole tensor on the CPU; without `keep` nothing of it. All ranks call this together."""
    if not is_part(tensor):
        return tensor.detach()
    full = tensor.full_tensor().detach() if isinstance(tensor, DTensor) else _gathered(tensor)
    return full.cpu() if keep else full.new_empty(0)


def _gathered(parameter: Tensor) -> Tensor:
    import deepspeed

    if parameter.ds_persist:  # type: ignore[attr-defined]  # it is whole, and would be cut at the block's end
        return parameter.detach().clone()
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor, cut as `like` is; the tensor itself where that is whole."""
    if not isinstance(like, DTensor):
        return full
    there = full.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


def make_whole(model: nn.Module, keep: bool) -> None:
    """Put whole weights in place of the parts, on the CPU, on the ranks that `keep` them.

    All ranks call this together, after the last pass: the model cannot be run any more.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if is_part(parameter):
                full = whole(parameter, keep)
                if keep:
                    module.register_parameter(name, nn.Parameter(full, parameter.requires_grad))


def whole_state(state: dict[str, Any], keep: bool) -> dict[str, Any]:
    """Return an optimizer's state with whole tensors, for a checkpoint. All ranks call this together."""
    found = {
        number: {name: whole(v, keep) if isinstance(v, Tensor) else v for name, v in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": found}


def state_part(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return this rank's part of an optimizer's state with whole tensors."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found = {
        number: {
            name: part_of(v, parameters[number]) if isinstance(v, Tensor) and v.dim() else v
            for name, v in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": found}


def clip_gradients(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Scale the gradients so that their norm over all weights is at most `limit`; returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    if not parts:
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    squares = torch.stack([part.float().square().sum() for part in parts]).sum()
    torch.distributed.all_reduce(squares)
    rest = [g for g in gradients if not isinstance(g, DTensor)]
    squares = squares + sum(g.float().square().sum() for g in rest)
    norm = squares.sqrt()
    scale = torch.clamp(limit / (norm + 1e-6), max=1.0)  # as torch's clip_grad_norm_
    for gradient in [*parts, *rest]:
        gradient.mul_(scale.to(gradient.dtype))
    return norm
