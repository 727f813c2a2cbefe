"""The four stages of a cell: respond, critique, train, evaluate. File to file, keyed, resumable.

Each function takes a resolved step and the folders of the steps it depends on, does what is not yet
done, and returns its folder. Plug-ins are built from their config nodes and never named here. Modules
that need torch are imported by the plug-ins only once there is work to do.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hydra.utils import instantiate

from nsft_exp.items import (
    correction_input,
    example_digest,
    item_counts,
    read_items,
    read_preferences,
    sample_digest,
)
from nsft_exp.output import append_records, circumstances, done_ids, track
from nsft_exp.plan import Step
from nsft_exp.records import Item, Reply, Request, Sample, UserError, from_json, to_json
from nsft_exp.scoring import score_answers
from nsft_exp.store import StageFolder, Store, digest

REVISIONS = {"respond": 1, "critique": 1, "train": 1, "evaluate": 1}
"""Raised by hand when a stage's code changes its result: old folders are then not taken for new ones."""


class Unfinished(Exception):
    """A stage has work left, in a run that only looks."""


@dataclass
class CellRun:
    """What running one cell has produced so far: the folder and the key of each step by name."""

    store: Store
    threads: int | None = None
    """CPU threads of every stage: the same number gives the same bytes (None: as torch chooses)."""
    folders: dict[str, StageFolder] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    stream: dict[str, Any] | None = None
    """The `logger` that training streams its rows to, and the `run` there; plain values, for a child too."""

    looking: bool = False
    """Find out whether all is done, and do nothing."""

    drawn: dict[str, Sequence[Sample]] = field(default_factory=dict)
    """The samples of each source node, read once."""

    def samples(self, step: Step) -> Sequence[Sample]:
        """The samples of the step's source, as often as they are asked for."""
        name = repr(step.nodes["source"])
        if name not in self.drawn:
            self.drawn[name] = list(build(step.nodes["source"]).samples())
        return self.drawn[name]

    def begin(self) -> None:
        """Called where a stage's work begins. Raises Unfinished in a run that only looks."""
        if self.looking:
            raise Unfinished

    def inputs(self, step: Step, kind: str) -> StageFolder | None:
        """The folder of the input step of this kind, if the step has one."""
        return next((self.folders[name] for name in step.inputs if name.split(":")[0] == kind), None)


def run_step(step: Step, run: CellRun) -> StageFolder:
    """Run one step (or find it done), note its folder in `run` and return it."""
    folder = {"respond": respond, "critique": critique, "train": train, "evaluate": evaluate}[step.kind](
        step, run
    )
    run.folders[step.name] = folder
    return folder


# --- respond ---------------------------------------------------------------------------------------


def respond(step: Step, run: CellRun) -> StageFolder:
    """The base VLM answers: one Preference for every sample, appended by id."""
    samples = run.samples(step)
    folder = _open(step, run, without=("source.size", "source.seed"))
    inputs = {s.id: sample_digest(s, run.store) for s in samples}
    with folder.lock():
        done = done_ids(folder, inputs)
        todo = [s for s in samples if s.id not in done]
        if todo:
            run.begin()
            pairing = build(step.nodes["pairing"])
            vlm = load_vlm(step, run) if pairing.needs_vlm else None
            append_records(folder, pairing.pairs(todo, vlm), inputs, len(todo))
    return folder


def critique(step: Step, run: CellRun) -> StageFolder:
    """The critic writes one Correction for every sample that has a Preference."""
    samples = run.samples(step)
    preferences = read_preferences(run.inputs(step, "respond"), samples, run.store)
    folder = _open(step, run, without=("source.size", "source.seed"))
    inputs = {s.id: correction_input(s, preferences[s.id], run.store) for s in samples if s.id in preferences}
    with folder.lock():
        done = done_ids(folder, inputs)
        todo = [(s, preferences[s.id]) for s in samples if s.id in inputs and s.id not in done]
        if todo or folder.manifest() is None:  # a kill may have come between the last record and the manifest
            run.begin()
            critic = build(step.nodes["critic"])
            append_records(folder, critic.corrections(todo), inputs, len(todo))
            if hasattr(critic, "usage"):  # what its calls have cost, those of earlier runs included
                folder.finish({**(folder.manifest() or {}), "usage": critic.usage(folder.records())})
    return folder


# --- train -----------------------------------------------------------------------------------------


def train(step: Step, run: CellRun) -> StageFolder:
    """Train the method on the cell's items; the folder holds the adapter (or model) and its metrics."""
    items, held_out = _items(step, run)
    method = build(step.nodes["method"])
    seed = step.nodes["seed"]
    examples = method.examples(items, Random(seed))
    if not examples:
        raise UserError(
            f"{step.label}: {len(items)} samples give no example to train on; "
            f"see the statuses in the respond stage's manifest"
        )
    content = digest([example_digest(e, run.store) for e in examples])
    folder = _open(step, run, inputs={"examples": content, "init": [run.keys[name] for name in step.init]})
    with folder.lock():
        if folder.manifest() is None:
            run.begin()
            from nsft_exp.training import fit

            started = time.perf_counter()
            with _streaming(run) as listen:
                summary = fit(
                    vlm=build(step.nodes["vlm"]),
                    method=method,
                    examples=examples,
                    validation=method.examples(held_out, Random(seed)) if held_out else [],
                    folder=folder.path,
                    references=run.store.root / "reference",
                    recipe=build(step.nodes["recipe"]),
                    tuning=build(step.nodes["tuning"]),
                    trainer=build(step.nodes["trainer"]),
                    seed=seed,
                    open_image=getattr(build(step.nodes["source"]), "open_image", None),
                    parents=[run.folders[name].path for name in step.init],
                    listen=listen,
                )
            shutil.rmtree(folder.path / "checkpoint", ignore_errors=True)
            folder.finish(
                {
                    "counts": {**item_counts(items), "examples": len(examples), **_left_out(method, items)},
                    **summary,
                    **circumstances(started),
                }
            )
    return folder


def _left_out(method: Any, items: list[Item]) -> dict[str, Any]:
    """What a method that chooses among its items did not train on, by reason."""
    return {"left_out": method.left_out(items)} if hasattr(method, "left_out") else {}


def _streaming(run: CellRun) -> AbstractContextManager[Any]:
    """The block in which the cell's logger listens to the training; where nothing streams, nobody does."""
    return build(run.stream["logger"]).stream(run.stream["run"]) if run.stream else nullcontext()


def _items(step: Step, run: CellRun) -> tuple[list[Item], list[Item]]:
    """The cell's items in source order, and the held-out ones after them (for the validation loss)."""
    samples = run.samples(step)
    items = read_items(samples, run.inputs(step, "respond"), run.inputs(step, "critique"), run.store)
    cut = len(items) - held_out_size(step.nodes)
    return items[:cut], items[cut:]


def held_out_size(nodes: dict[str, Any]) -> int:
    """How many samples at the end of the source are kept from training, for the validation loss."""
    return int(nodes["trainer"].get("held_out", 0) or 0)


# --- evaluate --------------------------------------------------------------------------------------


def evaluate(step: Step, run: CellRun) -> StageFolder:
    """The model answers a benchmark's questions and is scored: per-item records, then the metrics."""
    benchmark = build(step.nodes["benchmark"])
    benchmark.files()  # those that are made when missing are there from here on, for the key
    folder = _open(step, run, inputs={"init": [run.keys[name] for name in step.init]})
    with folder.lock():
        if folder.manifest() is None:
            run.begin()
            started = time.perf_counter()
            requests = benchmark.requests()[: step.nodes.get("limit")]
            answers = _answers(requests, folder, step, run)
            scores = score_answers(benchmark, requests, answers, folder)
            folder.finish({**scores, **circumstances(started)})
    return folder


CHUNK = 512
"""Requests that are answered together. A killed chunk is asked again whole: an answer's last digits depend on
the batch that it was in, and a resumed run must give the same bytes as one that was not killed."""


def _answers(requests: list[Request], folder: StageFolder, step: Step, run: CellRun) -> dict[str, Reply]:
    done = {row["id"]: row["reply"] for row in folder.records("answers.jsonl")}
    chunks = [requests[start : start + CHUNK] for start in range(0, len(requests), CHUNK)]
    todo = [chunk for chunk in chunks if any(request.id not in done for request in chunk)]
    if todo:
        vlm = load_vlm(step, run)
        replies = (reply for chunk in todo for reply in vlm.generate(chunk))
        with folder.appending("answers.jsonl") as append:
            for key, (reply, *_) in track(replies, "evaluate", sum(map(len, todo))):
                done[key] = to_json(reply)
                append({"id": key, "reply": done[key]})
    return {key: from_json(Reply, row) for key, row in done.items()}


# --- shared ----------------------------------------------------------------------------------------


def build(node: dict[str, Any]) -> Any:
    """Return the object that a config node describes: its `_target_` called with its other keys."""
    return instantiate(node, _convert_="all")


def load_vlm(step: Step, run: CellRun) -> Any:
    """Load the step's VLM with what the train steps of its `init` trained; sets the number of threads."""
    if run.threads:
        import torch

        torch.set_num_threads(run.threads)
    return build(step.nodes["vlm"]).load([run.folders[name].path for name in step.init])


def _open(step: Step, run: CellRun, inputs: Any = None, without: tuple[str, ...] = ()) -> StageFolder:
    """The folder of a step, its key noted; `without` names leaves that this stage's key leaves out."""
    nodes = {group: dict(node) if isinstance(node, dict) else node for group, node in step.nodes.items()}
    for name in without:
        group, leaf = name.split(".")
        nodes[group].pop(leaf, None)
    key = run.store.key(step.kind, nodes, inputs, REVISIONS[step.kind])
    folder = run.store.open(step.kind, step.label, key)
    run.keys[step.name] = key
    folder.write_config({"kind": step.kind, "name": step.name, "nodes": step.nodes})
    return folder
