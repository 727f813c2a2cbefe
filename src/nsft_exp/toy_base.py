"""Makes the toy base VLM: tokenizer, tower with projector, then LLaVA's second stage in two trainings."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nsft_exp.cell_run import build
from nsft_exp.config import PACKAGE
from nsft_exp.records import UserError
from nsft_exp.store import StageFolder, replace_folder
from nsft_exp.toy.card import write_card

BASE = PACKAGE / "toy" / "base"
PIECES = 958
"""At most so many pieces for the tokenizer; the world's texts yield fewer."""
SEES = {
    f"vqa/detailed/{kind}": 90.0
    for kind in ("color", "size", "position", "relation", "count", "total", "naming", "scene")
} | {"chair/recall": 90.0}
"""Scores that a base must exceed to be of use: one that sees badly shows nothing about what texts do."""


def prepare(vlm: dict[str, Any], tower: dict[str, Any]) -> None:
    """Train the tokenizer, the tower and the projector that `vlm` names, unless they are there already."""
    import torch

    from nsft_exp.toy.source import tokenizer_texts
    from nsft_exp.toy.tower import train_tower
    from nsft_exp.vlm.tokenizer import train_llama_tokenizer

    if not Path(vlm["tokenizer"]).is_dir():
        tokenizer = train_llama_tokenizer(tokenizer_texts(), PIECES)
        replace_folder(Path(vlm["tokenizer"]), tokenizer.save_pretrained)  # type: ignore[arg-type]
    model, pieces = build(vlm | {"tower": None}).base(torch.device("cpu"), None)
    train_tower(Path(vlm["tower"]), model, pieces, build(tower))


def trained(outcome: dict[str, Any]) -> Path:
    """The whole model that a cell trained. Raises UserError where it trained none."""
    model = Path(outcome["folders"]["train"]) / "model"
    if not model.is_dir():
        raise UserError(f"{model.parent}: holds no whole model; the toy base needs tuning=full")
    return model.resolve()


def install(first: dict[str, Any], last: dict[str, Any], folder: Path = BASE) -> Path:
    """Copy the model of the last of two trainings and write its card; returns the folder.

    Raises UserError where the cell trained no whole model, the folder cannot be written, or the model sees
    badly: then the folder stays as it was.
    """
    model, found = trained(last), scores(last["folders"])
    if bad := {name: found.get(name) for name, least in SEES.items() if not found.get(name, 0.0) > least}:
        raise UserError(
            f"{model}: sees badly ({bad}) and is not put into {folder}; take another seed (seed=1)"
        )
    try:
        shutil.copytree(model, folder, dirs_exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error}); run it in a checkout") from error
    test = last["config"]["benchmark"]
    write_card(
        folder,
        parameters=manifest_of(last)["parameters"],
        command="make toy-base",
        recipe=recipe(first, last),
        about=f"{test['scenes']} scenes of the {test['split']} split, seed {test['seed']}.",
        scores=found,
    )
    return folder


def manifest_of(outcome: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a cell's training."""
    manifest = StageFolder(Path(outcome["folders"]["train"])).manifest()
    assert manifest is not None
    return manifest


def recipe(first: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    """What the card says of the trainings: the tower's, then those of language model and projector."""
    config = last["config"]
    found = {f"tower: {name}": value for name, value in asdict(build(config["tower"])).items()}
    for part, outcome in (("lookups", first), ("texts", last)):
        found[f"{part}: scenes"] = outcome["config"]["source"]["size"]
        found[f"{part}: steps"] = manifest_of(outcome)["steps"]
    return found | {n: v for n, v in config["recipe"].items() if not n.startswith(("_", "lora"))}


def scores(folders: dict[str, str]) -> dict[str, float]:
    """Every metric of the cell's evaluations as `<benchmark>/<metric>`."""
    found: dict[str, float] = {}
    for name, path in folders.items():
        if name.startswith("evaluate:"):
            manifest = StageFolder(Path(path)).manifest() or {"metrics": {}}
            member = name.partition(":")[2]
            found |= {f"{member}/{m}": v for m, v in manifest["metrics"].items() if v is not None}
    return found
