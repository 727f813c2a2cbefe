"""Train a model by a method's loss: from examples to an adapter (or a model) and its metrics, resumable.

A killed run goes on at the last checkpoint when the same call is made again, and ends as if it had not been
killed: the same metrics file and the same weights, byte for byte on the same machine and thread count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import Strategy
from peft import PeftModel

from nsft_exp.batching import GlobalBatches
from nsft_exp.checkpoint import Rows, RunFiles
from nsft_exp.interfaces import VLM, Method, Watched
from nsft_exp.job import Job, make_reference, make_trainable, prepare
from nsft_exp.lit import TokenTraining
from nsft_exp.looking import look, watch
from nsft_exp.recipe import Recipe, TrainerOptions, Tuning
from nsft_exp.records import Example
from nsft_exp.reference import Live, Reference, reference_mode
from nsft_exp.resources import peak_memory
from nsft_exp.running import begin, run
from nsft_exp.sharding import make_whole, shard_layers
from nsft_exp.store import replace_folder
from nsft_exp.strategies import SummedGradients
from nsft_exp.value_head import ScalarHead
from nsft_exp.world import World
from nsft_exp.zero import ZeroStages

__all__ = ["Recipe", "TrainerOptions", "Tuning", "fit"]

Listener = Callable[[dict[str, Any]], None]
"""Takes a row with its `step`."""


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
    listen: Listener | None = None,
    world: World | None = None,
    watched: Sequence[Watched] = (),
) -> dict[str, Any]:
    """Train and return a summary: steps, tokens, trainable parameters, models held, peak memory.

    `folder` receives `adapter/` (LoRA, in PEFT's format, with the projector if it was trained) or `model/` (a
    whole model under the hub's names), `value_head.safetensors` (of a reward model), `metrics.jsonl` (a row a
    logged step, no times), `times.jsonl`, `samples.jsonl`, `held_out.jsonl` (a row an example and validation:
    what the method moves, see losses.optimised) and, while it runs, `checkpoint/`. `references` keeps cached
    log-probabilities. `parents` are the folders of earlier trainings that the model starts from, in order.
    `open_image` makes pictures of the examples' images; by default they are paths of files. `listen` is told
    every row of the metrics and, its names under `time/`, of the times, once it is written. The `watched`
    benchmarks are answered every `trainer.evaluate_every` steps, which changes nothing in what is trained. In
    a `world` of several processes the first one writes the files and returns the summary; the others return
    nothing.

    Raises UserError for an example that cannot be learnt from, options that do not fit, or memory that does
    not suffice.
    """
    begin(trainer, folder)
    world = world or World()
    job = prepare(
        vlm, method, examples, validation, recipe, tuning, trainer, seed, open_image, parents, world
    )
    reference = make_reference(job, references, vlm, parents)
    peft = make_trainable(job)
    if isinstance(reference, Live) and reference.loaded is job.loaded:
        assert peft is not None
        reference.switched_off = peft.disable_adapter
    if job.sharded and trainer.strategy == "fsdp2":
        shard_layers(job.loaded.model.model.language_model, job.device, world)
    files = RunFiles(folder)
    module = _module(job, reference, files, listen, watched)
    _run(job, module, files, progress)
    if job.sharded and trainer.strategy == "fsdp2":
        make_whole(job.loaded.model, keep=world.first)
    if not world.first:
        return {}
    if module.value_head is not None:
        module.value_head.save(folder)
    _save(job, peft, folder)
    return _summary(job, module, reference, files)


# --- running ---------------------------------------------------------------------------------------


def _module(
    job: Job,
    reference: Reference | None,
    files: RunFiles,
    listen: Listener | None,
    watched: Sequence[Watched],
) -> TokenTraining:
    record = heard(files.metrics, listen) if job.world.first else unheard
    features_change = job.tuning.train_projector
    num_held, rank, size = len(job.examples) - job.num_trained, job.world.rank, job.world.size
    mine = range(job.num_trained + rank, len(job.examples), size)
    first = job.world.first
    # A reward model gives scores, not answers. Layers in parts are run by all ranks, or by none.
    answers = (first or job.sharded) and not job.method.needs.values
    return TokenTraining(
        job.loaded,
        job.method,
        reference,
        job.recipe,
        len(job.steps),
        job.seed,
        record=record,
        record_time=heard(files.times, listen, "time/") if job.world.first else unheard,
        log_every=job.trainer.log_every,
        validate_every=job.trainer.validate_every if num_held else 0,
        validate=lambda: job.batches(mine),
        look=partial(look, job, files.samples.append if first else unheard) if answers else lambda step: None,
        evaluate_every=job.trainer.evaluate_every if watched else 0,
        evaluate=partial(watch, job, watched, record, files.samples),
        record_held_out=lambda row: files.held_out.append(
            {**row, "example": job.examples[row["example"]].id}
        ),
        shared_features=not features_change,
        world=job.world,
        value_head=_value_head(job) if job.method.needs.values else None,
        filler=(lambda: next(job.batches([0]))) if job.in_step else None,
    )


def _value_head(job: Job) -> ScalarHead:
    return ScalarHead(job.loaded.model.lm_head.in_features, job.seed).to(job.device)


def unheard(row: dict[str, Any]) -> None:
    """What a process that is not the first does with a row: the first one writes it."""


def heard(rows: Rows, listen: Listener | None, prefix: str = "") -> Listener:
    """What writes a row and then tells the listener of it."""
    if listen is None:
        return rows.append

    def record(row: dict[str, Any]) -> None:
        rows.append(row)
        listen({name if name == "step" else prefix + name: value for name, value in row.items()})

    return record


def _run(job: Job, module: TokenTraining, files: RunFiles, progress: bool) -> None:
    lengths = [example.length for example in job.examples]
    loader = GlobalBatches(
        job.examples,
        [job.world.share(step, lengths) for step in job.steps],
        job.trainer.micro_batch,
        job.pixels,
        job.loaded.pad_id,
        job.trainer.num_workers,
    )
    run(
        module,
        loader,
        files,
        len(job.steps),
        job.trainer,
        job.device,
        job.precision,
        job.world,
        progress,
        strategy=_strategy(job),
    )


def _strategy(job: Job) -> str | Strategy:
    """How the processes come together, in Lightning's words."""
    if job.world.size == 1:
        return "auto"
    if job.trainer.strategy != "deepspeed":
        return SummedGradients()
    decoder = job.loaded.model.model.language_model
    return ZeroStages(job.recipe.clip_norm, decoder.layers if job.sharded else None)


# --- afterwards ------------------------------------------------------------------------------------


def _save(job: Job, peft: PeftModel | None, folder: Path) -> None:
    """Write what was trained, whole or not at all."""
    if peft is None:
        replace_folder(folder / "model", job.loaded.save)
    else:
        replace_folder(folder / "adapter", partial(save_adapter, peft))


def save_adapter(peft: PeftModel, folder: Path) -> None:
    """Write the model's first adapter in PEFT's format."""
    peft.save_pretrained(str(folder), selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def _summary(job: Job, module: TokenTraining, reference: Reference | None, files: RunFiles) -> dict[str, Any]:
    trained = [p for p in module.parameters() if p.requires_grad]
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
