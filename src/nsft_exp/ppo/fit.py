"""Train a policy by PPO: from prompts and a reward model to an adapter and its metrics, resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nsft_exp.checkpoint import RunFiles
from nsft_exp.interfaces import VLM
from nsft_exp.job import device_of, pixel_cache, precision_of
from nsft_exp.lit import peak_memory
from nsft_exp.ppo.experience import micro_batched
from nsft_exp.ppo.models import Models, load_models
from nsft_exp.ppo.module import PPOTraining
from nsft_exp.ppo.rollout import Iterations, encode_prompts
from nsft_exp.recipe import Recipe, TrainerOptions, Tuning
from nsft_exp.records import Example, UserError
from nsft_exp.store import replace_folder
from nsft_exp.training import Listener, heard, quiet, run, save_adapter
from nsft_exp.vlm.vllm_engine import VllmEngine
from nsft_exp.world import World


def fit_ppo(
    *,
    vlm: VLM,
    method: Any,
    examples: Sequence[Example],
    validation: Sequence[Example],
    folder: Path,
    reward: Path,
    recipe: Recipe,
    tuning: Tuning,
    trainer: TrainerOptions,
    seed: int,
    open_image: Callable[[str], Any] | None = None,
    progress: bool = True,
    parents: Sequence[Path] = (),
    listen: Listener | None = None,
) -> dict[str, Any]:
    """Train and return a summary, as `nsft_exp.training.fit` does; `reward` is a reward model's folder.

    The batch of the recipe counts answers, its epochs are passes over the prompts. `folder` receives the
    policy's `adapter/`, `metrics.jsonl` (a row an iteration), `times.jsonl`, `samples.jsonl` and, while it
    runs, `checkpoint/`, written after every iteration.

    Raises UserError for options that do not fit, prompts without room for an answer, a reward model that is
    not there, a policy that leaves its reference, or memory that does not suffice.
    """
    quiet()
    method.fits(recipe, tuning, trainer)
    if trainer.threads:
        torch.set_num_threads(trainer.threads)
    folder.mkdir(parents=True, exist_ok=True)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    device = device_of(trainer, World())
    models = load_models(vlm, parents, reward, method.copies, recipe, tuning, device, seed)
    for part in models.parts:
        part.loaded.opener = open_image
    loaded = models.policy.loaded
    max_length = min(recipe.max_length, loaded.max_length)
    prompts, dropped = encode_prompts(examples, loaded, max_length)
    held_out, _ = encode_prompts(validation, loaded, max_length)
    if not prompts:
        raise UserError(
            f"no prompt leaves room for an answer within {max_length} tokens; raise recipe.max_length"
        )
    iterations = Iterations(len(prompts), recipe.batch_size * method.steps_per_rollout, recipe.epochs, seed)
    engine = _engine(method, vlm, parents, recipe)
    files, num_steps = RunFiles(folder), iterations.num_steps(recipe.batch_size, method.inner_epochs)
    module = PPOTraining(
        models,
        method,
        recipe,
        prompts,
        held_out,
        num_steps,
        seed,
        max_length,
        micro_batched(trainer.micro_batch, pixel_cache(loaded), loaded.pad_id, device),
        record=heard(files.metrics, listen),
        record_time=heard(files.times, listen, "time/"),
        record_answer=files.samples.append,
        record_held_out=files.held_out.append,
        validate_every=trainer.validate_every,
        sample_answers=trainer.sample_answers,
        engine=engine,
    )
    precision = precision_of(trainer, loaded)
    with nullcontext() if engine is None else closing(engine):
        run(
            module,
            iterations,
            files,
            num_steps,
            trainer,
            device,
            precision,
            World(),
            progress,
            checkpoint_every=1,
        )
    models.policy.switch.to(models.policy.adapters)
    replace_folder(folder / "adapter", partial(save_adapter, models.peft))
    summary = _summary(models, module, files, dropped)
    return summary | {"epochs": recipe.epochs, "trained_examples": len(prompts), "precision": precision}


def _engine(method: Any, vlm: Any, parents: Sequence[Path], recipe: Recipe) -> VllmEngine | None:
    """What answers in place of the policy's own model, if anything does."""
    if method.rollouts == "hf":
        return None
    return VllmEngine(vlm, parents, lora_rank=recipe.lora_rank, memory=method.rollouts_memory)


def _summary(models: Models, module: PPOTraining, files: RunFiles, dropped: dict[str, int]) -> dict[str, Any]:
    rows = [row for row in files.metrics.read() if "loss" in row]
    device = models.policy.loaded.device
    return {
        "steps": module.num_steps,
        **dropped,
        "left_out_answers": sum(row["left_out"] for row in rows),
        "supervised_tokens": sum(row["supervised_tokens"] for row in rows),
        "trainable_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in module.policy.parameters()),
        "models_held": models.held,
        "reference": "copy" if models.held > 1 else "adapter_off",
        "peak_memory_bytes": peak_memory(device),
        "kl_exploded": any("kl_exploded" in row for row in rows),
        "final_kl": rows[-1].get("kl") if rows else None,
        "final_loss": rows[-1]["loss"] if rows else None,
    }
