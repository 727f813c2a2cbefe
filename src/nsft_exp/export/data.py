"""`nsft export`: what a cell's respond or critique stage made, as a data set for other trainers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsft_exp.cell_run import build
from nsft_exp.export.card import data_card
from nsft_exp.export.finding import (
    MARKER,
    FoundCell,
    check_target,
    compose_cell,
    examples_of,
    items_of,
    run_steps,
    take_words,
)
from nsft_exp.export.folder import ImageFiles, replace, write_json, write_rows
from nsft_exp.export.rows import (
    Row,
    completion_rows,
    conversation_rows,
    dataset_info,
    llama_factory_row,
    preference_rows,
    supervised,
    trl_row,
)
from nsft_exp.items import item_counts
from nsft_exp.output import circumstances, track
from nsft_exp.records import UserError

FORMATS = ("trl", "llama_factory")
KINDS = ("auto", "sft", "prompt_completion", "preference")
USAGE = """\
nsft export to=<folder> [format=trl] [kind=auto] <the words of a cell>

Writes what a cell trains on as a data set, running the stages before training that are not done yet.
  format  trl            TRL's conversational vision formats; datasets.load_dataset(folder) opens it
          llama_factory  ShareGPT form with dataset_info.json
  kind    auto               preference for a method that trains on pairs, else sft
          sft                whole conversations (nsft: chosen answer and corrective dialogue)
          prompt_completion  conversations with the last answer apart, the only one trained on
          preference         prompt, chosen, rejected

  nsft export method=gt_dpo to=exports/pairs
  nsft export method=nsft to=exports/nsft_sft format=llama_factory"""


@dataclass(frozen=True)
class Export:
    """What is written: rows of one kind in one format, with what was left out and what to know of it."""

    format: str
    kind: str
    rows: Sequence[Row]
    counts: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def export(arguments: list[str]) -> int:
    """`nsft export`: returns the exit code. Raises UserError for words that do not fit or broken images."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    own, words = take_words(arguments, ("to", "format", "kind"))
    folder = check_target(own, "export")
    form = _choice("format", own.get("format", "trl"), FORMATS)
    cell = compose_cell(words)
    kind = _kind(cell, form, _choice("kind", own.get("kind", "auto"), KINDS))
    print(f"export {cell.label}")
    run_steps(cell, "respond", *(() if kind == "preference" else ("critique",)))
    found = collect(cell, form, kind)
    replace(folder, lambda partial: _write(partial, folder.name, cell, found))
    made = json.loads((folder / MARKER).read_text("utf-8"))
    print(f"  {made['rows']} rows ({kind}) with {made['images']} images: {folder}")
    for note in found.notes:
        print(f"  note: {note}")
    return 0


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UserError(f"{name}={value}: there is no such choice; take {', '.join(choices)}")
    return value


def _kind(cell: FoundCell, form: str, kind: str) -> str:
    method = cell.choices["method"]
    if kind == "auto":
        kind = "preference" if cell.consumes == "preference" else "sft"
    if kind == "preference":
        if not cell.step("respond"):
            raise UserError(f"method={method} has no preferences to export; choose method=gt_dpo or nsft")
        return kind
    if cell.consumes not in ("sample", "correction"):
        raise UserError(f"method={method} trains on no conversations; choose method=cont_sft or nsft")
    if kind == "prompt_completion" and form != "trl":
        raise UserError("kind=prompt_completion is TRL's; for LLaMA-Factory take kind=sft and mask_history")
    return kind


def collect(cell: FoundCell, form: str, kind: str) -> Export:
    """The rows of a cell whose stages have run. Raises UserError where there are none."""
    items, held_out = items_of(cell)
    counts: dict[str, Any] = item_counts(items) | {"held_out": held_out}
    left_out = Counter[str]()
    if kind == "preference":
        rows, left_out = preference_rows(items)
    else:
        examples = examples_of(cell, items)
        rows = conversation_rows(examples) if kind == "sft" else completion_rows(examples)
    if not rows:
        raise UserError(f"{cell.label}: no row to export ({_listed(left_out) or 'no example'})")
    return Export(form, kind, rows, counts, _notes(cell, kind, rows, left_out, held_out))


def _notes(
    cell: FoundCell, kind: str, rows: Sequence[Row], left_out: Counter[str], held_out: int
) -> list[str]:
    """What a user of the rows must know: what is not in them, and where other trainers do otherwise."""
    notes = []
    if left_out:
        notes.append(f"{left_out.total()} samples have no pair and are left out ({_listed(left_out)})")
    if held_out:
        notes.append(f"{held_out} samples are held out of training and are left out")
    given = sum(not all(supervised(row)) for row in rows) if kind == "sft" else 0
    if given:
        cure = " (TRL: kind=prompt_completion keeps them out; LLaMA-Factory: mask_history)"
        notes.append(
            f"{given} rows hold earlier answers that the method only reads; SFT on whole conversations "
            f"trains on them{cure if cell.consumes == 'sample' else ''}"
        )
    if kind == "sft" and cell.consumes == "correction":
        notes.append(
            "the method averages chosen answers and corrections apart; others average all tokens together"
        )
    weighted = sum(any(turn.spans for turn in (*row.turns, *row.answers.values())) for row in rows)
    if weighted:
        notes.append(f"{weighted} rows have answers with weighted words; the weights are not written")
    return notes


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


def _write(folder: Path, name: str, cell: FoundCell, found: Export) -> None:
    open_image = getattr(build(cell.source), "open_image", None)
    counts = write_data(folder, name, found.rows, found.format, found.kind, open_image)
    marker = _marker(cell, found) | counts
    (folder / "README.md").write_text(data_card(name, cell, found, marker), "utf-8")
    write_json(folder / MARKER, marker)


def write_data(
    folder: Path,
    name: str,
    rows: Sequence[Row],
    form: str,
    kind: str,
    open_image: Callable[[str], Any] | None = None,
) -> dict[str, int]:
    """Write rows and the images that they share to a folder; returns how many of each (`rows`, `images`).

    `name` is the data set's for LLaMA-Factory. Raises UserError for an image that cannot be read.
    """
    images = ImageFiles(folder, open_image)
    write = trl_row if form == "trl" else llama_factory_row
    written = (write(row, images.add(row.id, row.image)) for row in track(rows, "export", len(rows)))
    count = write_rows(folder / ("metadata.jsonl" if form == "trl" else "data.jsonl"), written)
    if form == "llama_factory":
        write_json(folder / "dataset_info.json", dataset_info(name, kind))
    return {"rows": count, "images": len(images)}


def _marker(cell: FoundCell, found: Export) -> dict[str, Any]:
    """How the folder came about, for programs; no time, so that the same cell gives the same bytes."""
    steps = {step.name: cell.run.keys[step.name] for step in cell.plan if step.name in cell.run.keys}
    about = circumstances(0.0)
    return {
        "format": found.format,
        "kind": found.kind,
        "words": list(cell.words),
        "choices": cell.choices,
        "stages": steps,
        "counts": found.counts,
        "notes": found.notes,
        "versions": about["versions"],
        "git": about["git"],
    }
