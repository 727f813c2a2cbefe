"""Train a model by a method's loss: from examples to an adapter (or a model) and its metrics, resumable.

A killed run goes on at the last checkpoint when the same call is made again, and ends as if it had not been
killed: the same metrics file and the same weights, byte for byte on the same machine and thread count.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from nsft_exp.batching import (
    Batch,
    EncodedExample,
    GlobalBatches,
    collate,
    encode_examples,
    global_batches,
    micro_batches,
)
from nsft_exp.checkpoint import AtomicCheckpointIO, Checkpoints, Rows, RunFiles
from nsft_exp.conversation import PROMPT
from nsft_exp.interfaces import VLM, Method
from nsft_exp.lit import TokenTraining, peak_memory
from nsft_exp.progress import StepBar
from nsft_exp.recipe import Recipe, TrainerOptions, Tuning
from nsft_exp.records import ROLES, Decoding, Example, Request, UserError
from nsft_exp.reference import Live, Reference, cached
from nsft_exp.vlm.loaded import LoadedHF, replace_folder

__all__ = ["Recipe", "TrainerOptions", "Tuning", "fit"]
PIXEL_CACHE_BYTES = 256 * 2**20
"""How much memory preprocessed images may take between epochs."""


def fit(
    *,
    vlm: VLM,
    method: Method,
    examples: Sequence[Example],
    validation: Sequence[Example],
    folder: Path,
    references: Path,
    recipe: Recipe,
    tuning: Tuning,
    trainer: TrainerOptions,
    seed: int,
    open_image: Callable[[str], Any] | None = None,
    progress: bool = True,
    parents: Sequence[Path] = (),
) -> dict[str, Any]:
    """Train and return a summary: steps, tokens, trainable parameters, models held, peak memory.

    `folder` receives `adapter/` (LoRA, in PEFT's format, with the projector if it was trained) or `model/` (a
    whole model under the hub's names), `metrics.jsonl` (a row a logged step, no times), `times.jsonl`,
    `samples.jsonl` and, while it runs, `checkpoint/`. `references` keeps cached reference log-probabilities.
    `parents` are the folders of earlier trainings that the model starts from, in order. `open_image` makes
    pictures of the examples' images; by default they are paths of files.

    Raises UserError for an example that cannot be learnt from, options that do not fit, or memory that does
    not suffice.
    """
    quiet()
    if trainer.threads:
        torch.set_num_threads(trainer.threads)
    folder.mkdir(parents=True, exist_ok=True)
    job = _prepare(vlm, method, examples, validation, recipe, tuning, trainer, seed, open_image, parents)
    reference = _reference(job, references, vlm, parents)
    peft = _make_trainable(job)
    if isinstance(reference, Live) and reference.loaded is job.loaded:
        assert peft is not None
        reference.switched_off = peft.disable_adapter
    files = RunFiles(folder)
    module = _module(job, reference, files)
    _run(job, module, files, progress)
    _save(job, peft, folder)
    return _summary(job, reference, files)


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


def quiet() -> None:
    """Keep Lightning from talking about what is meant as it is."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")


def _prepare(
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
) -> Job:
    device = _device(trainer)
    loaded: Any = vlm.load(parents, device=str(device))  # type: ignore[call-arg]
    loaded.opener = open_image
    limit = min(recipe.max_length, loaded.max_length)
    train, counts = encode_examples(examples, loaded.chat, loaded.num_image_tokens, limit)
    held, _ = encode_examples(validation, loaded.chat, loaded.num_image_tokens, limit)
    if not train:
        raise UserError(
            f"no example fits within {limit} tokens ({counts['dropped']} dropped); raise recipe.max_length"
        )
    precision = trainer.precision or ("32-true" if loaded.model.dtype == torch.float32 else "bf16-mixed")
    size = loaded.preprocessing.size
    pixels = lru_cache(maxsize=max(1, PIXEL_CACHE_BYTES // (12 * size * size)))(loaded.pixels)
    return Job(
        loaded=loaded,
        method=method,
        examples=[*train, *held],
        num_trained=len(train),
        dropped=counts,
        steps=global_batches(len(train), recipe.batch_size, recipe.epochs, seed),
        pixels=pixels,
        recipe=recipe,
        tuning=tuning,
        trainer=trainer,
        seed=seed,
        precision=precision,
        device=device,
        validation=validation,
    )


def _device(trainer: TrainerOptions) -> torch.device:
    if trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu: there is no GPU here; take trainer.accelerator=cpu")
    gpu = trainer.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda:0" if gpu else "cpu")


# --- the reference ---------------------------------------------------------------------------------


def reference_mode(needs: str, tuning: Tuning, asked: str) -> str:
    """Return how the reference is had: `none`, `adapter_off`, `cached` or `copy`.

    `auto` switches adapters off where there are any; else it caches log-probabilities, or copies the model
    for a distribution. Raises UserError for a way that cannot work.
    """
    if needs == "nothing":
        return "none"
    if asked == "auto":
        return "adapter_off" if tuning.kind == "lora" else "cached" if needs == "logp" else "copy"
    if asked == "adapter_off" and tuning.kind != "lora":
        raise UserError(
            f"trainer.reference=adapter_off needs tuning=lora, not {tuning.kind}; take cached or copy"
        )
    if asked == "cached" and needs == "distribution":
        raise UserError(
            "trainer.reference=cached keeps no distributions, which the KL needs; take adapter_off or copy"
        )
    return asked


def _reference(job: Job, folder: Path, vlm: VLM, parents: Sequence[Path]) -> Reference | None:
    """The reference, made before the policy gets its adapters: the model that training starts from."""
    mode = reference_mode(job.method.needs.reference, job.tuning, job.trainer.reference)
    if mode == "none":
        return None
    if mode == "adapter_off":
        return Live(job.loaded)
    if mode == "copy":
        other: Any = vlm.load(parents, device=str(job.device))  # type: ignore[call-arg]
        other.model.requires_grad_(False)
        return Live(other)
    numbers = range(len(job.examples))
    return cached(job.loaded, job.examples, lambda: job.batches(numbers), folder, job.context)


# --- what is trained -------------------------------------------------------------------------------


def _make_trainable(job: Job) -> PeftModel | None:
    """Freeze and unfreeze, or put LoRA on the model (returned then). Trained weights are held in float32."""
    model, tuning = job.loaded.model, job.tuning
    model.requires_grad_(False)
    peft = _with_lora(job) if tuning.kind == "lora" else None
    if tuning.kind == "scratch":
        model.requires_grad_(True)
    if tuning.kind == "full":
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
        model.model.multi_modal_projector.requires_grad_(tuning.train_projector)
    if job.precision != "bf16-true":
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if tuning.activation_checkpointing:
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    return peft


def _with_lora(job: Job) -> PeftModel:
    recipe, tuning = job.recipe, job.tuning
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=tuning.targets,
        modules_to_save=["multi_modal_projector"] if tuning.train_projector else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        try:
            return get_peft_model(job.loaded.model, config)
        except ValueError as error:
            raise UserError(
                f"tuning.targets={tuning.targets}: no module has such a name ({error})"
            ) from error


# --- running ---------------------------------------------------------------------------------------


def _module(job: Job, reference: Reference | None, files: RunFiles) -> TokenTraining:
    projector_or_tower_trained = job.tuning.kind != "lora" or job.tuning.train_projector
    held = range(job.num_trained, len(job.examples))
    return TokenTraining(
        job.loaded,
        job.method,
        reference,
        job.recipe,
        len(job.steps),
        job.seed,
        record=files.metrics.append,
        record_time=files.times.append,
        log_every=job.trainer.log_every,
        validate_every=job.trainer.validate_every if held else 0,
        validate=lambda: job.batches(held),
        look=partial(_look, job, files.samples),
        shared_features=not projector_or_tower_trained,
    )


def _run(job: Job, module: TokenTraining, files: RunFiles, progress: bool) -> None:
    """Train from the checkpoint, if there is one, to the last step."""
    done = files.resume_step()
    files.cut_after(done)
    if done == len(job.steps):
        module.load_state_dict(files.read_checkpoint()["state_dict"], strict=False)
        return
    callbacks: list[Any] = [Checkpoints(files.checkpoint, job.trainer.checkpoint_every, len(job.steps))]
    if progress:
        callbacks.append(StepBar(len(job.steps)))
    trainer = L.Trainer(
        accelerator="gpu" if job.device.type == "cuda" else "cpu",
        devices=1,
        precision=job.precision,  # type: ignore[arg-type]
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        deterministic="warn" if job.device.type == "cuda" else True,
        default_root_dir=files.folder,
        plugins=[AtomicCheckpointIO()],
        callbacks=callbacks,
    )
    loader = GlobalBatches(
        job.examples,
        job.steps,
        job.trainer.micro_batch,
        job.pixels,
        job.loaded.pad_id,
        job.trainer.num_workers,
    )
    trainer.fit(
        module, train_dataloaders=loader, ckpt_path=files.checkpoint if done else None, weights_only=True
    )
    if trainer.interrupted:
        raise KeyboardInterrupt


# --- afterwards ------------------------------------------------------------------------------------


def _look(job: Job, rows: Rows, step: int) -> None:
    """Answer the first held-out questions greedily and write the answers down."""
    requests = [_question(example) for example in job.validation[: job.trainer.sample_answers]]
    for name, replies in job.loaded.generate(requests):
        rows.append({"step": step, "id": name, "answer": replies[0].text, "finish": replies[0].finish})


def _question(example: Example) -> Request:
    """The question before an example's first supervised answer."""
    conversation = example.conversations[0]
    answers = (n for n, turn in enumerate(conversation.turns) if n % 2 and turn.role != ROLES[PROMPT])
    turns = conversation.turns[: next(answers)]
    return Request(
        example.id, conversation.image, turns, conversation.view, decoding=Decoding(max_new_tokens=128)
    )


def _save(job: Job, peft: PeftModel | None, folder: Path) -> None:
    """Write what was trained, whole or not at all."""
    if peft is None:
        replace_folder(folder / "model", job.loaded.save)
    else:
        replace_folder(folder / "adapter", partial(_save_adapter, peft))


def _save_adapter(peft: PeftModel, folder: Path) -> None:
    peft.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def _summary(job: Job, reference: Reference | None, files: RunFiles) -> dict[str, Any]:
    trained = [p for p in job.loaded.model.parameters() if p.requires_grad]
    supervised = sum(job.examples[n].supervised for step in job.steps for n in step)
    rows = files.metrics.read()
    models = {job.loaded.model.lm_head.weight.data_ptr()}
    if isinstance(reference, Live):
        models.add(reference.loaded.model.lm_head.weight.data_ptr())
    return {
        "steps": len(job.steps),
        "epochs": job.recipe.epochs,
        "trained_examples": job.num_trained,
        "conversations": sum(len(e.conversations) for e in job.examples[: job.num_trained]),
        **job.dropped,
        "supervised_tokens": supervised,
        "trainable_parameters": sum(p.numel() for p in trained),
        "parameters": sum(p.numel() for p in job.loaded.model.parameters()),
        "models_held": len(models),
        "reference": reference_mode(job.method.needs.reference, job.tuning, job.trainer.reference),
        "precision": job.precision,
        "peak_memory_bytes": peak_memory(job.device),
        "final_loss": next((row["loss"] for row in reversed(rows) if "loss" in row), None),
    }
