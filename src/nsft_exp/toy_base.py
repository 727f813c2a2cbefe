"""Puts a freshly trained toy base where `vlm=toy` finds it, with its model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from nsft_exp.config import PACKAGE
from nsft_exp.records import UserError
from nsft_exp.store import StageFolder
from nsft_exp.toy.card import write_card

BASE = PACKAGE / "toy" / "base"


def install(outcome: dict[str, Any], folder: Path = BASE) -> Path:
    """Copy the model of a `toy_base` cell and write its card; returns the folder.

    Raises UserError where the cell trained no whole model or the folder cannot be written.
    """
    trained = Path(outcome["folders"]["train"])
    model, manifest = trained / "model", StageFolder(trained).manifest()
    if manifest is None or not model.is_dir():
        raise UserError(f"{trained}: holds no whole model; the toy base needs tuning=scratch")
    try:
        shutil.copytree(model, folder, dirs_exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error}); run it in a checkout") from error
    config = outcome["config"]
    recipe = {name: value for name, value in config["recipe"].items() if not name.startswith("_")}
    test = config["benchmark"]
    write_card(
        folder,
        parameters=manifest["parameters"],
        command="make toy-base",
        recipe={"scenes": config["source"]["size"], "steps": manifest["steps"], **recipe},
        about=f"{test['scenes']} scenes of the {test['split']} split, seed {test['seed']}.",
        scores=scores(outcome["folders"]),
    )
    return folder


def scores(folders: dict[str, str]) -> dict[str, float]:
    """Every metric of the cell's evaluations as `<benchmark>/<metric>`."""
    found: dict[str, float] = {}
    for name, path in folders.items():
        if name.startswith("evaluate:"):
            manifest = StageFolder(Path(path)).manifest() or {"metrics": {}}
            member = name.partition(":")[2]
            found |= {f"{member}/{m}": v for m, v in manifest["metrics"].items() if v is not None}
    return found
