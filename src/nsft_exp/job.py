"""What one training is made of: the model, the encoded examples, the order of the steps, what is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from nsft_exp.batching import Batch, collate, global_batches, micro_batches
from nsft_exp.encoding import EncodedExample, encode_examples
from nsft_exp.interfaces import VLM, Method
from nsft_exp.recipe import Recipe, TrainerOptions, Tuning
from nsft_exp.records import Example, UserError
from nsft_exp.reference import Live, Reference, cached, reference_mode
from nsft_exp.vlm.loaded import LoadedHF
from nsft_exp.vlm.stacked import is_stacked
from nsft_exp.world import World

PIXEL_CACHE_BYTES = 256 * 2**20
"""How much memory preprocessed images may take between epochs."""


@dataclass
class Job:
    """Everything that one training is made of."""

    loaded: LoadedHF
    method: Method
    examples: list[EncodedExample]
    """Those that are trained on, then those of the validation set."""
    num_trained: int
    dropped: dict[str, int]
    steps: list[list[int]]
    pixels: Callable[[str, str], torch.Tensor]
    recipe: Recipe
    tuning: Tuning
    trainer: TrainerOptions
    seed: int
    precision: str
    device: torch.device
    validation: Sequence[Example]
    world: World = field(default_factory=World)

    @property
    def sharded(self) -> bool:
        """Whether each rank holds a part of the layers."""
        stage_3 = self.trainer.strategy == "deepspeed" and self.trainer.zero_stage == 3
        return self.world.size > 1 and (self.trainer.strategy == "fsdp2" or stage_3)

    @property
    def in_step(self) -> bool:
        """Whether all ranks must make as many backward passes."""
        return self.world.size > 1 and self.trainer.strategy in ("fsdp2", "deepspeed")

    def batches(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """Micro-batches of these examples."""
        lengths = [example.length for example in self.examples]
        for some in micro_batches(numbers, lengths, self.trainer.micro_batch):
            yield collate(self.examples, some, self.pixels, self.loaded.pad_id)

    def context(self) -> AbstractContextManager[Any]:
        """The block in which the model runs at the job's precision."""
        if self.precision == "bf16-mixed":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def prepare(
    vlm: VLM,
    method: Method,
    examples: Sequence[Example],
    validation: Sequence[Example],
    recipe: Recipe,
    tuning: Tuning,
    trainer: TrainerOptions,
    seed: int,
    open_image: Callable[[str], Any] | None,
    parents: Sequence[Path],
    world: World,
) -> Job:
    """Load the model and encode the examples. Raises UserError where nothing fits or is there to learn."""
    if trainer.strategy == "fsdp2" and tuning.quantization:
        raise UserError("trainer=fsdp2: weights in 4 bits cannot be in parts; take trainer=ddp")
    if trainer.strategy != "ddp" and recipe.optimizer == "muon":
        raise UserError(
            f"trainer={trainer.strategy}: Muon steps on whole matrices; "
            "take recipe.optimizer=adamw or trainer=ddp"
        )
    device = device_of(trainer, world)
    loaded = load_model(vlm, parents, device, tuning)
    loaded.opener = open_image
    limit = min(recipe.max_length, loaded.max_length)
    train, counts = encode_examples(examples, loaded.chat, loaded.layout, limit)
    held, _ = encode_examples(validation, loaded.chat, loaded.layout, limit)
    if not train:
        raise UserError(
            f"no example fits within {limit} tokens ({counts['dropped']} dropped); raise recipe.max_length"
        )
    return Job(
        loaded=loaded,
        method=method,
        examples=[*train, *held],
        num_trained=len(train),
        dropped=counts,
        steps=global_batches(len(train), recipe.batch_size, recipe.epochs, seed),
        pixels=pixel_cache(loaded),
        recipe=recipe,
        tuning=tuning,
        trainer=trainer,
        seed=seed,
        precision=precision_of(trainer, loaded),
        device=device,
        validation=validation,
        world=world,
    )


def precision_of(trainer: TrainerOptions, loaded: LoadedHF) -> str:
    """Lightning's word for the precision: the trainer's, or what follows from the weights' type."""
    return trainer.precision or ("32-true" if loaded.model.dtype == torch.float32 else "bf16-mixed")


def pixel_cache(loaded: LoadedHF) -> Callable[[str, str], torch.Tensor]:
    """The model's reader of images, which remembers as many of them as the cache takes."""
    return lru_cache(maxsize=max(1, PIXEL_CACHE_BYTES // loaded.preprocessing.max_bytes))(loaded.pixels)


def load_model(vlm: VLM, parents: Sequence[Path], device: torch.device, tuning: Tuning) -> LoadedHF:
    """The model that training starts from, on its device."""
    options = {"quantization": tuning.quantization} if tuning.quantization else {}
    loaded: Any = vlm.load(parents, device=str(device), **options)  # type: ignore[call-arg]
    return loaded


def device_of(trainer: TrainerOptions, world: World) -> torch.device:
    """Where this process trains. Raises UserError where a GPU is asked for and there is none."""
    if trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu: there is no GPU here; take trainer.accelerator=cpu")
    gpu = trainer.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device(f"cuda:{world.local_rank}" if gpu else "cpu")


def make_reference(job: Job, folder: Path, vlm: VLM, parents: Sequence[Path]) -> Reference | None:
    """The reference, made before the policy gets its adapters: the model that training starts from."""
    mode = reference_mode(job.method.needs.reference, job.tuning, job.trainer.reference)
    if mode == "none":
        return None
    if mode == "adapter_off":
        return Live(job.loaded)
    if mode == "copy":
        other = load_model(vlm, parents, job.device, job.tuning)
        other.model.requires_grad_(False)
        return Live(other)
    mine = range(job.world.rank, len(job.examples), job.world.size)
    return cached(job.loaded, job.examples, lambda: job.batches(mine), folder, job.context, job.world)


# --- what is trained -------------------------------------------------------------------------------


def make_trainable(job: Job) -> PeftModel | None:
    """Freeze and unfreeze, or put LoRA on the model (returned then). Trained weights are held in float32."""
    model, tuning = job.loaded.model, job.tuning
    model.requires_grad_(False)
    peft = with_lora(job.loaded, job.recipe, tuning, job.seed) if tuning.kind == "lora" else None
    if tuning.kind == "full":
        if is_stacked(model):
            raise UserError(
                "tuning=full: adapters that were trained before are beside the weights in lower precision; "
                "take vlm.dtype=float32, where they are merged"
            )
        trained: tuple[str, ...] = ("model.language_model.", "lm_head.")
        trained += job.loaded.family.projector_parts if tuning.train_projector else ()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(trained))
    if job.precision != "bf16-true":
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if tuning.activation_checkpointing:
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    return peft


def with_lora(loaded: LoadedHF, recipe: Recipe, tuning: Tuning, seed: int) -> PeftModel:
    """Put a new LoRA, drawn from the seed, on the model. Raises UserError where no module has such a name."""
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=tuning.targets,
        modules_to_save=[loaded.family.projector] if tuning.train_projector else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(loaded.model, config)
        except ValueError as error:
            raise UserError(
                f"tuning.targets={tuning.targets}: no module has such a name ({error})"
            ) from error
