"""From a verb's words to a cell's folders: what was asked, what of it is finished, what is still to run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from hydra.utils import get_object

from nsft_exp import config as configs
from nsft_exp.cell_run import CellRun, build
from nsft_exp.items import read_items, sample_digests, split_items
from nsft_exp.keys import REVISIONS
from nsft_exp.launch import launch
from nsft_exp.plan import Step, make_plan, row_label
from nsft_exp.preflight import preflight
from nsft_exp.records import Example, Item, UserError
from nsft_exp.store import StageFolder, Store

MARKER = "nsft_export.json"
"""The file that says a folder was written here, and of what: only such a folder is written again."""


@dataclass(frozen=True)
class FoundCell:
    """A composed cell: its config, the chosen options, its steps, and what of them has been run."""

    words: tuple[str, ...]
    config: dict[str, Any]
    choices: dict[str, str]
    consumes: str
    plan: tuple[Step, ...]
    run: CellRun

    @property
    def label(self) -> str:
        """The cell's name for people: `nsft on toy_instruct (600) with toy, seed 0`."""
        source = f"{self.choices['source']} ({self.config['source'].get('size') or 'all'})"
        return f"{row_label(self.choices)} on {source} with {self.choices['vlm']}, seed {self.config['seed']}"

    @property
    def source(self) -> dict[str, Any]:
        """The node of the source whose samples the steps read (larger by what is held out of training)."""
        nodes = (step.nodes["source"] for step in self.plan if "source" in step.nodes)
        found: dict[str, Any] = next(nodes, self.config["source"])
        return found

    def step(self, kind: str) -> Step | None:
        """The cell's step of this kind (that of its last round), if it has one."""
        return next((step for step in reversed(self.plan) if step.kind == kind), None)


def take_words(arguments: Iterable[str], names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return a verb's own words (`to=...`) by name, and the other words, which compose the cell."""
    own: dict[str, str] = {}
    rest: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name in names:
            own[name] = value
        else:
            rest.append(argument)
    return own, rest


def compose_cell(words: Iterable[str]) -> FoundCell:
    """Return the cell that these words compose; nothing is run.

    Raises UserError for words that do not fit.
    """
    words = tuple(words)
    composed = configs.compose_config(list(words))
    choices = {g: str(o) for g, o in composed.hydra.runtime.choices.items() if "/" not in g}
    config = configs.resolved(composed)
    configs.check_belonging(config, choices)
    consumes = get_object(config["method"]["_target_"]).consumes
    plan = tuple(make_plan(config, choices, consumes))
    run = CellRun(Store(config["paths"]["runs"]), config["trainer"].get("threads"))
    return FoundCell(words, config, choices, consumes, plan, run)


def run_steps(cell: FoundCell, *kinds: str) -> None:
    """Find the cell's steps of these kinds in the store, or run them; prints where each result is.

    The rounds before the last one are run whole.
    """
    last = {step.name for kind in kinds if (step := cell.step(kind))}
    rounds = [step for step in cell.plan if step.kind != "evaluate"]
    steps = [step for step in rounds if step.name in last or step.name.partition(":")[2]]
    preflight(steps)
    for step in steps:
        launch(step, cell.run, cell.config.get("launch", "auto"))
        print(f"  {step.name:<10} {cell.run.folders[step.name].path}")


def items_of(cell: FoundCell) -> tuple[list[Item], int]:
    """The cell's items in source order, as training sees them, and how many are held out of training."""
    samples = build(cell.source).samples()
    folders = cell.run.folders
    hashes = sample_digests(samples, cell.run.store)
    items = read_items(samples, hashes, folders.get("respond"), folders.get("critique"))
    trained, held_out = split_items(items, cell.config)
    return trained, len(held_out)


def examples_of(cell: FoundCell, items: list[Item]) -> list[Example]:
    """What the cell's method trains on."""
    found: list[Example] = build(cell.config["method"]).examples(items, Random(cell.config["seed"]))
    return found


def finished_training(cell: FoundCell) -> StageFolder:
    """The folder of the cell's training. Raises UserError where no training of this cell has ended."""
    step = cell.step("train")
    assert step is not None
    store = cell.run.store
    asked = store.key("train", step.nodes)
    for path in sorted((store.root / "train").glob(f"{step.label}-*")):
        folder = StageFolder(path)
        if folder.manifest() and store.key("train", folder.read_config()["nodes"]) == asked:
            break
    else:
        raise UserError(
            f"{store.root / 'train'}: holds no finished training of {cell.label}; "
            f"run it first: nsft {' '.join(cell.words)}"
        )
    run_steps(cell, "respond", "critique", "train")
    return cell.run.folders["train"]


def finished_evaluations(cell: FoundCell) -> dict[str, dict[str, Any]]:
    """The manifests of the cell's evaluations that have ended, by the benchmark's name."""
    found = {}
    for step in cell.plan:
        if step.kind != "evaluate":
            continue
        inputs = {"init": [cell.run.keys[name] for name in step.init]}
        key = cell.run.store.key(step.kind, step.nodes, inputs, REVISIONS["evaluate"])
        manifest = cell.run.store.open(step.kind, step.label, key).manifest()
        if manifest:
            found[step.name.partition(":")[2]] = manifest
    return found


def check_target(own: dict[str, str], verb: str) -> Path:
    """The folder to write. Raises UserError where `to=` is missing or names what was not written here."""
    if not own.get("to"):
        raise UserError(f"nsft {verb} needs a folder to write: to=exports/<name>")
    folder = Path(own["to"])
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder with to=")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise UserError(f"{folder}: is not empty and was not written by nsft {verb}; name another with to=")
    return folder
