"""`nsft export-model`: a finished cell's model as a folder for transformers and vLLM, merged and proven."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nsft_exp.cell_run import build
from nsft_exp.export.card import model_card
from nsft_exp.export.finding import (
    MARKER,
    FoundCell,
    check_target,
    compose_cell,
    finished_evaluations,
    finished_training,
    items_of,
    take_words,
)
from nsft_exp.export.folder import replace, write_json
from nsft_exp.output import circumstances
from nsft_exp.records import UserError

USAGE = """\
nsft export-model to=<folder> [python=<interpreter with vLLM>|none] <the words of a finished cell>

Merges what was trained (adapter and projector, or the whole model) into the base, writes a Hugging Face
folder and proves it: read back by transformers, its logits are those of the trained model; its greedy answers
too; and vLLM's answers where vLLM is installed here or for the named interpreter.

  nsft export-model method=nsft to=exports/model
  nsft export-model method=base vlm=llava15_7b to=exports/base   (its processor gives TRL our tokens)"""


def export_model(arguments: list[str]) -> int:
    """`nsft export-model`: returns the exit code.

    Raises UserError for a cell that is not finished, a training that changed nothing, or a folder whose
    logits or answers are not the trained model's; then nothing is left behind.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    own, words = take_words(arguments, ("to", "python"))
    folder = check_target(own, "export-model")
    cell = compose_cell(words)
    print(f"export-model {cell.label}")
    trained = finished_training(cell).path if cell.step("train") else None
    made_from = _made_from(cell)
    if _is_done(folder, made_from):
        print(f"  written and proven already: {folder}")
        return 0
    facts: dict[str, Any] = {"made_from": made_from}
    replace(folder, lambda partial: _write(partial, cell, trained, own.get("python"), facts))
    print(f"  {folder}")
    return 0


def _made_from(cell: FoundCell) -> dict[str, Any]:
    """What decides the folder's weights: the training's key, and the base where nothing was trained."""
    if "train" in cell.run.keys:
        return {"train": cell.run.keys["train"]}
    return {"base": cell.run.store.key("export", {"vlm": cell.config["vlm"]})}


def _is_done(folder: Path, made_from: dict[str, Any]) -> bool:
    marker = folder / MARKER
    return marker.is_file() and json.loads(marker.read_text("utf-8")).get("made_from") == made_from


def _write(
    folder: Path, cell: FoundCell, trained: Path | None, python: str | None, facts: dict[str, Any]
) -> None:
    from nsft_exp.export.merge import MergedModel

    items, _ = items_of(cell)
    open_image = getattr(build(cell.source), "open_image", None)
    step = cell.step("train")
    parents = [cell.run.folders[name].path for name in step.init] if step else []
    merged = MergedModel(folder, cell.config["vlm"], trained, items, open_image, python, parents)
    facts["proof"] = merged.write()
    _check_files(folder)
    about = circumstances(0.0)
    manifest = cell.run.folders["train"].manifest() if trained else None
    evaluations = finished_evaluations(cell)
    card = {"trained": manifest, "evaluations": evaluations, "proof": facts["proof"]}
    (folder / "README.md").write_text(model_card(cell, card), "utf-8")
    marker = facts | {"words": list(cell.words), "choices": cell.choices}
    write_json(folder / MARKER, marker | {"versions": about["versions"], "git": about["git"]})


NEEDED: Sequence[Sequence[str]] = (
    ("config.json",),
    ("generation_config.json",),
    ("processor_config.json", "preprocessor_config.json"),
    ("chat_template.jinja",),
    ("tokenizer.json",),
)
"""The files that the programs that load the folder need, each by one of its names."""


def _check_files(folder: Path) -> None:
    missing = [names[0] for names in NEEDED if not any((folder / name).is_file() for name in names)]
    if missing:
        raise UserError(f"{folder}: {', '.join(missing)} was not written; the base lacks it")
    for file in folder.glob("*.safetensors"):  # written for the owner alone
        shutil.copymode(folder / "config.json", file)
