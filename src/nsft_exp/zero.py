"""DeepSpeed's ZeRO (`trainer=deepspeed`): every rank has a part of the optimizer's state and of the gradients
(stage 2), and of the decoder's layers (stage 3).

DeepSpeed is given the trained weights, not the training: what passes are made, and what their losses are
divided by, `TokenTraining` says as for any strategy. Gradients are reduced after every backward pass, so all
ranks make as many. Checkpoints are whole, as those of the other strategies.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nsft_exp.records import UserError
from nsft_exp.sharding import is_zero_part, make_whole
from nsft_exp.strategies import SummedGradients

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of a weight, besides the step."""

BUCKET = 500_000_000
"""Most gradients that are sent at once: DeepSpeed's own number, for which it makes a buffer of 2 GB."""


class ZeroStages(SummedGradients):
    """The strategy: DeepSpeed's engine reduces the gradients and makes the step.

    With `layers` (stage 3) these modules' weights are in parts; all else is whole on every rank.
    """

    def __init__(self, clip_norm: float, layers: nn.Module | None) -> None:
        super().__init__()
        self.clip_norm, self.layers = clip_norm, layers
        self.engine: Any = None
        self.trained: list[Any] = []

    # --- what Lightning asks for -------------------------------------------------------------------

    def setup_optimizers(self, trainer: Any) -> None:
        """Give the module's optimizer to DeepSpeed."""
        super().setup_optimizers(trainer)
        (optimizer,) = self.optimizers
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.shapes = [p.shape for p in self.trained]
        self.groups = optimizer.state_dict()["param_groups"]
        self.engine = start(Given(self.trained, self.layers), optimizer, self.clip_norm, self.root_device)

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One backward pass. DeepSpeed averages over the ranks what is to be summed."""
        self.engine.backward(closure_loss * self.world_size, scale_wrt_gas=False)
        return closure_loss

    def optimizer_step(
        self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Clip the gradients and step."""
        result = closure()
        self.engine.step()
        return result

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of whole weights, on the rank that writes it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        step = next(iter(optimizer.state.values()))["step"].cpu()
        state: dict[int, dict[str, Any]] = {}
        for number, parameter in enumerate(self.trained):
            found = {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
            if self.is_global_zero:
                shape = self.shapes[number]
                moments = {name: value.detach().cpu().view(shape) for name, value in found.items()}
                state[number] = {"step": step.clone(), **moments}
        return {"state": state, "param_groups": self.groups}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's part of a whole state."""
        (optimizer,), (whole,) = self.optimizers, checkpoint["optimizer_states"]
        self._link_moments(optimizer)
        for number, values in whole["state"].items():
            for name in MOMENTS:
                set_part(self.trained[number], name, values[name])
        step = max(float(values["step"]) for values in whole["state"].values())
        for values in optimizer.state.values():
            values["step"].fill_(step)

    def on_train_end(self) -> None:
        """Put whole weights in place of the parts, on the rank that writes them."""
        if self.layers is not None:
            assert self.lightning_module is not None
            make_whole(self.lightning_module, keep=self.is_global_zero)

    def teardown(self) -> None:
        """Take DeepSpeed's hooks off."""
        if self.engine is not None:
            self.engine.destroy()
        super().teardown()

    def _link_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Have stage 2 note whose each part of the state is, as after any step: by one of no effect."""
        if self.layers is None:
            with no_rate(optimizer):
                nothing = self.engine(lambda: torch.stack([0.0 * p.sum() for p in self.trained]).sum())
                self.engine.backward(nothing)
                self.engine.step()

    # --- what the training asks for ----------------------------------------------------------------

    def run(self, call: Callable[[], Any]) -> Any:
        """Make one pass, forward; what is in parts is put together for it."""

        def at_precision() -> Any:  # DeepSpeed leaves the trainer's
            with self.precision_plugin.forward_context():
                return call()

        return self.engine(at_precision)

    def norm(self) -> Tensor:
        """The gradient's norm before clipping, at the last step."""
        return torch.as_tensor(self.engine.get_global_grad_norm())


class Given(nn.Module):
    """What DeepSpeed is given: the layers that are to be in parts, and all other weights that are trained."""

    def __init__(self, trained: Sequence[nn.Parameter], layers: nn.Module | None) -> None:
        super().__init__()
        self.layers = layers
        inside = set() if layers is None else {id(p) for p in layers.parameters()}
        self.rest = nn.ParameterList(p for p in trained if id(p) not in inside)

    def forward(self, call: Callable[[], Any]) -> Any:
        """Make one pass: DeepSpeed takes this for a model's."""
        return call()


def start(given: Given, optimizer: torch.optim.Optimizer, clip_norm: float, device: torch.device) -> Any:
    """Return DeepSpeed's engine over these weights, which it steps by this optimizer.

    Raises UserError where the layers' weights are not in float32.
    """
    deepspeed = imported(device)
    stage = 2 if given.layers is None else 3
    if any(p.dtype != torch.float32 for p in given.parameters()):
        raise UserError(
            "trainer.zero_stage=3: a layer in parts has weights of one type; take trainer.zero_stage=2, "
            "tuning=full or vlm.dtype=float32"
        )
    sizes = [p.numel() for p in given.parameters() if p.requires_grad]
    options = {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,  # a step is made when it is asked for
        "gradient_clipping": clip_norm,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "reduce_bucket_size": min(BUCKET, sum(sizes)),
            "stage3_param_persistence_threshold": 0,
        },
        "steps_per_print": 2**62,
    }
    with no_rate(optimizer):  # it may make steps
        engine, *_ = deepspeed.initialize(model=given, optimizer=optimizer, config=options)
    if stage == 3:
        keep_whole(engine, list(given.rest))
        parts = engine.optimizer.fp32_partitioned_groups_flat
    else:
        parts = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.state.update({part: no_moments(part) for part in parts})
    return engine


def imported(device: torch.device) -> Any:
    """Import DeepSpeed for this kind of device. Raises UserError where it is not installed."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It calls torch's functions by names that torch gives up: of no use to whoever trains.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.", category=FutureWarning)
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(f"trainer=deepspeed: DeepSpeed cannot be imported ({error})") from error
    # Its messages between CPU processes would be compiled at first use; torch's own do, and need no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def no_moments(part: Tensor) -> dict[str, Tensor]:
    """AdamW's state before the first step: a checkpoint's is put into it, and DeepSpeed's stage 2 notes whose
    each part of it is.
    """
    return {"step": torch.zeros((), device=part.device)} | {name: torch.zeros_like(part) for name in MOMENTS}


def keep_whole(engine: Any, parameters: list[Any]) -> None:
    """Have DeepSpeed's stage 3 keep these weights whole on every rank, as it does with small ones.

    Of embeddings, head and projector the messages between ranks would depend on what tokens a rank has.
    """
    for parameter in parameters:
        parameter.ds_persist = True
    engine.optimizer.persistent_parameters.extend(parameters)
    if parameters:
        parameters[0].all_gather(parameters)


@contextmanager
def no_rate(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let a step inside the block change no weight."""
    rate = optimizer.param_groups[0]["lr"]  # all groups have one; DeepSpeed takes empty groups off
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    try:
        yield
    finally:
        for group in optimizer.param_groups:
            group["lr"] = rate


def set_part(parameter: Any, name: str, whole: Tensor) -> None:
    """Put this rank's part of a whole moment in its place."""
    from deepspeed.utils import safe_get_local_optimizer_state, safe_set_full_optimizer_state

    if not is_zero_part(parameter):  # stage 2
        safe_set_full_optimizer_state(parameter, whole, name)
        return
    part = safe_get_local_optimizer_state(parameter, name)
    size, rank = part.numel(), torch.distributed.get_rank()
    flat = whole.flatten()[size * rank : size * (rank + 1)]
    part.view(-1)[: len(flat)].copy_(flat)
