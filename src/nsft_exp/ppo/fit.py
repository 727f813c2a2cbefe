"""Train a policy by PPO: from prompts and a reward model to an adapter and its metrics, resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nsft_exp.checkpoint import RunFiles
from nsft_exp.interfaces import VLM
from nsft_exp.job import device_of, pixel_cache, precision_of
from nsft_exp.ppo.experience import micro_batched
from nsft_exp.ppo.models import Models, load_models
from nsft_exp.ppo.module import PPOTraining
from nsft_exp.ppo.rollout import Iterations, Prompt, encode_prompts
from nsft_exp.recipe import Recipe, TrainerOptions, Tuning
from nsft_exp.records import Example, UserError
from nsft_exp.resources import peak_memory
from nsft_exp.running import begin, run
from nsft_exp.store import replace_folder
from nsft_exp.training import Listener, heard, save_adapter
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
    method.fits(recipe, tuning, trainer)
    begin(trainer, folder)
    device = device_of(trainer, World())
    models = load_models(vlm, parents, reward, method.copies, recipe, tuning, device, seed)
    for part in models.parts:
        part.loaded.opener = open_image
    asked = _encode(examples, validation, models, recipe)
    size = recipe.batch_size * method.steps_per_rollout
    iterations = Iterations(len(asked.prompts), size, recipe.epochs, seed)
    files, num_steps = RunFiles(folder), iterations.num_steps(recipe.batch_size, method.inner_epochs)
    module = _module(models, method, asked, num_steps, recipe, trainer, seed, device, files, listen)
    precision = precision_of(trainer, models.policy.loaded)
    module.engine = _engine(method, vlm, parents, recipe)
    with nullcontext() if module.engine is None else closing(module.engine):
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
    _save(models, folder)
    summary = _summary(models, module, files, asked.dropped)
    return summary | {"epochs": recipe.epochs, "trained_examples": len(asked.prompts), "precision": precision}


@dataclass(frozen=True)
class _Asked:
    """The prompts to train on and the held-out ones, that leave room for an answer within `max_length`."""

    prompts: list[Prompt]
    held_out: list[Prompt]
    dropped: dict[str, int]
    max_length: int


def _encode(
    examples: Sequence[Example], validation: Sequence[Example], models: Models, recipe: Recipe
) -> _Asked:
    """The prompts of both sets. Raises UserError where none to train on leaves room for an answer."""
    loaded = models.policy.loaded
    max_length = min(recipe.max_length, loaded.max_length)
    prompts, dropped = encode_prompts(examples, loaded, max_length)
    held_out, _ = encode_prompts(validation, loaded, max_length)
    if not prompts:
        raise UserError(
            f"no prompt leaves room for an answer within {max_length} tokens; raise recipe.max_length"
        )
    return _Asked(prompts, held_out, dropped, max_length)


def _module(
    models: Models,
    method: Any,
    asked: _Asked,
    num_steps: int,
    recipe: Recipe,
    trainer: TrainerOptions,
    seed: int,
    device: torch.device,
    files: RunFiles,
    listen: Listener | None,
) -> PPOTraining:
    """The module that answers and learns; its rows go to the files and to who listens."""
    loaded = models.policy.loaded
    return PPOTraining(
        models,
        method,
        recipe,
        asked.prompts,
        asked.held_out,
        num_steps,
        seed,
        asked.max_length,
        micro_batched(trainer.micro_batch, pixel_cache(loaded), loaded.pad_id, device),
        record=heard(files.metrics, listen),
        record_time=heard(files.times, listen, "time/"),
        record_answer=files.samples.append,
        record_held_out=files.held_out.append,
        validate_every=trainer.validate_every,
        sample_answers=trainer.sample_answers,
    )


def _engine(method: Any, vlm: Any, parents: Sequence[Path], recipe: Recipe) -> VllmEngine | None:
    """What answers in place of the policy's own model, if anything does."""
    if method.rollouts == "hf":
        return None
    return VllmEngine(vlm, parents, lora_rank=recipe.lora_rank, memory=method.rollouts_memory)


def _save(models: Models, folder: Path) -> None:
    """Write the policy's adapter."""
    models.policy.switch.to(models.policy.adapters)
    replace_folder(folder / "adapter", partial(save_adapter, models.peft))


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
