"""What the tests of the model side share: pictures, items, and short trainings of a random model."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from nsft_exp.recipe import Recipe, TrainerOptions, Tuning
from nsft_exp.records import Correction, Exchange, Item, Preference, Sample
from nsft_exp.training import fit
from nsft_exp.vlm.scratch import ScratchLlava


def draw(folder: Path, count: int) -> list[str]:
    """Write small random pictures of different shapes and return their paths."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        pixels = rng.integers(0, 256, (24 + number, 40, 3), dtype=np.uint8)
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return paths


def make_items(folder: Path, count: int = 8) -> list[Item]:
    """Items of different lengths: every second with a history, every third without a correction."""
    items = []
    for n, image in enumerate(draw(folder / "images", count)):
        history = (Exchange("Hello?", "Yes."),) * (n % 2)
        sample = Sample(
            f"s{n}", image, f"What is number {n}?", "It is a cat" + " and a dog" * (n % 4) + ".", history
        )
        pair = Preference(sample.id, "ok", sample.answer, "A red box" + ", a red box" * (n % 3) + ".")
        dialogue = (Exchange("Is there a cat?", "Yes, there is."), Exchange("Is there a box?", "No."))
        items.append(Item(sample, pair, Correction(sample.id, "ok", dialogue=dialogue) if n % 3 else None))
    return items


def train(
    method: Any, items: list[Item], folder: Path, held_out: list[Item] | None = None, **changes: Any
) -> dict[str, Any]:
    """Train the random model briefly; `changes` are fields of the recipe, the tuning or the trainer."""
    recipe: dict[str, Any] = {
        "name": "t",
        "learning_rate": 5e-3,
        "batch_size": 4,
        "epochs": 2,
        "lora_rank": 4,
        "lora_alpha": 8,
    }
    options: dict[str, Any] = {"accelerator": "cpu", "micro_batch": 4, "threads": 1}
    tuning: dict[str, Any] = {}
    seed, vlm = changes.pop("seed", 0), changes.pop("vlm", None) or ScratchLlava(device="cpu")
    watched = changes.pop("watched", ())
    for name, value in changes.items():
        group = next(
            g
            for g, k in ((recipe, Recipe), (tuning, Tuning), (options, TrainerOptions))
            if name in k.__dataclass_fields__
        )
        group[name] = value
    return fit(
        vlm=vlm,
        method=method,
        examples=method.examples(items, Random(seed)),
        validation=method.examples(held_out or [], Random(seed)),
        folder=folder,
        references=folder.parent / "reference",
        recipe=Recipe(**recipe),
        tuning=Tuning(**tuning),
        trainer=TrainerOptions(**options),
        seed=seed,
        progress=False,
        watched=watched,
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a training."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def adapter(folder: Path) -> dict[str, Any]:
    """The trained weights of a LoRA training."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")
