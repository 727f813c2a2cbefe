"""How to train, as plain values: the recipe, what is tuned, and what the machine does. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from nsft_exp.records import UserError

LANGUAGE_LINEARS = r"model\.language_model\..*\.(?:q|k|v|o|gate|up|down)_proj"
"""LLaVA's LoRA targets, kept off the vision tower, whose layers are named alike (Qwen2.5-VL's too)."""


@dataclass(frozen=True)
class Recipe:
    """What decides the result of a training, besides method and data.

    `batch_size` is the global batch and counts examples (samples); `epochs` passes are made over them. The
    rate rises linearly over `warmup_ratio` of all steps and then follows `schedule` (`cosine` to 0, `linear`
    to 0, `constant`). `optimizer`: `adamw`, or `muon` (on hidden matrices, with AdamW on the rest). Gradients
    are clipped at the norm `clip_norm` (0: never). `max_length` tokens a conversation.
    """

    name: str
    learning_rate: float
    batch_size: int
    epochs: int = 1
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    betas: Sequence[float] = (0.9, 0.999)
    clip_norm: float = 1.0
    lora_rank: int = 128
    lora_alpha: int = 256
    lora_dropout: float = 0.0
    max_length: int = 2048

    def __post_init__(self) -> None:
        _choice("recipe.optimizer", self.optimizer, ("adamw", "muon"))
        _choice("recipe.schedule", self.schedule, ("cosine", "linear", "constant"))
        for field in ("learning_rate", "batch_size", "epochs", "lora_rank", "lora_alpha", "max_length"):
            _positive(f"recipe.{field}", getattr(self, field))

    def rate(self, step: int, total: int) -> float:
        """The learning rate of optimizer step `step` (from 0) of `total`."""
        warmup = math.ceil(self.warmup_ratio * total)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, total - warmup)
        if self.schedule == "constant":
            return self.learning_rate
        left = 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * left


@dataclass(frozen=True)
class Tuning:
    """Which weights are trained.

    `lora`: adapters on the modules whose whole name matches the regular expression `targets`; `full`: the
    language model. `train_projector` adds the projector, in full. The vision tower stays as it is.
    `activation_checkpointing` makes the language model's activations again in the backward pass.
    `quantization` holds the language model under the adapters in 4 bits while it is trained (`nf4`: QLoRA).
    """

    kind: str = "lora"
    targets: str = LANGUAGE_LINEARS
    train_projector: bool = False
    activation_checkpointing: bool = False
    quantization: str | None = None

    def __post_init__(self) -> None:
        _choice("tuning.kind", self.kind, ("lora", "full"))
        if self.quantization is not None:
            self._check_quantization(self.quantization)

    def _check_quantization(self, kind: str) -> None:
        _choice("tuning.quantization", kind, ("nf4",))
        if self.kind != "lora":
            raise UserError("tuning.quantization: 4-bit weights are not trained; take tuning.kind=lora")
        if find_spec("bitsandbytes") is None:
            raise UserError("tuning=qlora needs bitsandbytes, which is not here: pip install bitsandbytes")


@dataclass(frozen=True)
class TrainerOptions:
    """What the machine does; no result depends on it beyond rounding.

    Trained is on `devices` processes (a GPU each, or CPU processes) of each of `num_nodes` machines, which
    run the same command and meet at `rendezvous` (host:port). With `strategy=ddp` each holds the whole model,
    with `fsdp2` a part of every decoder layer, its gradient and its optimizer state, with `deepspeed` a part
    of gradients and optimizer state (`zero_stage=2`), or of the layers too (3). Each runs `micro_batch`
    examples at once.
    `precision` None follows the model's type: 32-true for float32, else bf16-mixed. `reference` is how the
    reference is had: `adapter_off`, `cached`, `copy`, or `auto`. `held_out` samples are kept from training
    for the validation loss, every `validate_every` steps (0: never), with `sample_answers` answers to look
    at; every `evaluate_every` steps (0: never) the model answers about `evaluate_limit` questions of each of
    the cell's benchmarks too. `threads` of the CPU (None: as torch chooses).
    """

    accelerator: str = "auto"
    strategy: str = "ddp"
    zero_stage: int = 2
    devices: int = 1
    num_nodes: int = 1
    rendezvous: str | None = None
    precision: str | None = None
    micro_batch: int = 8
    threads: int | None = None
    num_workers: int = 0
    checkpoint_every: int = 50
    validate_every: int = 0
    log_every: int = 1
    reference: str = "auto"
    held_out: int = 0
    sample_answers: int = 0
    evaluate_every: int = 0
    evaluate_limit: int = 64

    def __post_init__(self) -> None:
        _choice("trainer.accelerator", self.accelerator, ("auto", "cpu", "gpu"))
        _choice("trainer.strategy", self.strategy, ("ddp", "fsdp2", "deepspeed"))
        _choice("trainer.zero_stage", str(self.zero_stage), ("2", "3"))
        _choice("trainer.reference", self.reference, ("auto", "adapter_off", "cached", "copy"))
        if self.precision is not None:
            _choice("trainer.precision", self.precision, ("32-true", "bf16-mixed", "bf16-true"))
        for field in (
            "micro_batch",
            "log_every",
            "checkpoint_every",
            "devices",
            "num_nodes",
            "evaluate_limit",
        ):
            _positive(f"trainer.{field}", getattr(self, field))
        if self.strategy == "deepspeed":
            self._check_deepspeed()
        if self.num_nodes > 1 and not self.rendezvous:
            raise UserError("trainer.num_nodes: several need trainer.rendezvous=<first node>:<free port>")

    def _check_deepspeed(self) -> None:
        if self.precision == "bf16-true":
            raise UserError(
                "trainer=deepspeed: weights are trained in float32; take trainer.precision=bf16-mixed"
            )
        if find_spec("deepspeed") is None:
            raise UserError(
                "trainer=deepspeed needs DeepSpeed, which is not here: pip install 'nsft_exp[deepspeed]'"
            )


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}={value}: there is no such choice; take {', '.join(choices)}")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name}={value}: must be positive")
