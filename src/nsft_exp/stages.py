"""The four stages of a cell: respond, critique, train, evaluate. File to file, keyed, resumable.

Each function takes a resolved step and the folders of the steps it depends on, does what is not yet
done, and returns its folder. Plug-ins are built from their config nodes and never named here. Modules
that need torch are imported by the plug-ins only once there is work to do.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from typing import Any

from hydra.utils import instantiate

from nsft_exp.plan import Step
from nsft_exp.records import (
    Correction,
    Item,
    ItemScore,
    Preference,
    Reply,
    Request,
    Sample,
    UserError,
    from_json,
    to_json,
)
from nsft_exp.store import StageFolder, Store, digest

REVISIONS = {"respond": 1, "critique": 1, "train": 1, "evaluate": 1}
"""Raised by hand when a stage's code changes its result: old folders are then not taken for new ones."""


@dataclass
class CellRun:
    """What running one cell has produced so far: the folder and the key of each step by name."""

    store: Store
    threads: int | None = None
    """CPU threads of every stage: the same number gives the same bytes (None: as torch chooses)."""
    folders: dict[str, StageFolder] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

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
    samples = build(step.nodes["source"]).samples()
    folder = _open(step, run, without=("source.size", "source.seed"))
    inputs = {s.id: sample_digest(s, run.store) for s in samples}
    with folder.lock():
        todo = [s for s in samples if s.id not in _done(folder, inputs)]
        if todo:
            pairing = build(step.nodes["pairing"])
            vlm = load_vlm(step, run) if pairing.needs_vlm else None
            _append(folder, pairing.pairs(todo, vlm), inputs, len(todo), run)
    return folder


def critique(step: Step, run: CellRun) -> StageFolder:
    """The critic writes one Correction for every sample that has a Preference."""
    samples = build(step.nodes["source"]).samples()
    preferences = read_preferences(run.inputs(step, "respond"), samples, run.store)
    folder = _open(step, run, without=("source.size", "source.seed"))
    inputs = {s.id: correction_input(s, preferences[s.id], run.store) for s in samples if s.id in preferences}
    with folder.lock():
        done = _done(folder, inputs)
        todo = [(s, preferences[s.id]) for s in samples if s.id in inputs and s.id not in done]
        if todo:
            critic = build(step.nodes["critic"])
            _append(folder, critic.corrections(todo), inputs, len(todo), run)
    return folder


def _append(
    folder: StageFolder,
    records: Iterable[Preference | Correction],
    inputs: dict[str, str],
    total: int,
    run: CellRun,
) -> None:
    """Append records as they come, then the manifest with the counts of every status."""
    folder.reopen()
    started = time.perf_counter()
    with folder.appending() as append:
        for record in track(records, folder.path.parent.name, total):
            append({"input": inputs[record.id], **to_json(record)})
    rows = list(folder.records())
    statuses = Counter(row["status"] for row in rows)
    folder.finish(
        {"records": len(rows), "statuses": dict(sorted(statuses.items())), **circumstances(started)}
    )


def _done(folder: StageFolder, inputs: dict[str, str]) -> set[str]:
    return {row["id"] for row in folder.records() if inputs.get(row["id"]) == row["input"]}


def sample_digest(sample: Sample, store: Store) -> str:
    """Return a hash of all that a sample is: its text, history and the content of its image."""
    image = store.fingerprint(sample.image) if sample.image and Path(sample.image).exists() else sample.image
    return digest([sample.id, image, sample.question, sample.answer, to_json(sample.history)])


def read_preferences(
    folder: StageFolder | None, samples: Iterable[Sample], store: Store
) -> dict[str, Preference]:
    """Return the respond stage's records of these samples, by id."""
    return _read(folder, Preference, {s.id: sample_digest(s, store) for s in samples}) if folder else {}


def _read(folder: StageFolder | None, kind: Any, inputs: dict[str, str]) -> dict[str, Any]:
    if folder is None:
        return {}
    rows = {row["id"]: row for row in folder.records() if inputs.get(row["id"]) == row["input"]}
    return {key: from_json(kind, {k: v for k, v in row.items() if k != "input"}) for key, row in rows.items()}


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
    content = digest([_example_digest(e, run.store) for e in examples])
    folder = _open(step, run, inputs={"examples": content, "init": [run.keys[name] for name in step.init]})
    with folder.lock():
        if folder.manifest() is None:
            from nsft_exp.training import fit

            started = time.perf_counter()
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
            )
            shutil.rmtree(folder.path / "checkpoint", ignore_errors=True)
            folder.finish(
                {
                    "counts": {**item_counts(items), "examples": len(examples)},
                    **summary,
                    **circumstances(started),
                }
            )
    return folder


def _items(step: Step, run: CellRun) -> tuple[list[Item], list[Item]]:
    """The cell's items in source order, and the held-out ones after them (for the validation loss)."""
    samples = build(step.nodes["source"]).samples()
    items = read_items(samples, run.inputs(step, "respond"), run.inputs(step, "critique"), run.store)
    cut = len(items) - held_out_size(step.nodes)
    return items[:cut], items[cut:]


def read_items(
    samples: Iterable[Sample], responses: StageFolder | None, critiques: StageFolder | None, store: Store
) -> list[Item]:
    """Return each sample with its preference and correction from these folders, in the samples' order."""
    samples = list(samples)
    preferences = read_preferences(responses, samples, store)
    inputs = {s.id: correction_input(s, preferences[s.id], store) for s in samples if s.id in preferences}
    corrections = _read(critiques, Correction, inputs)
    return [Item(s, preferences.get(s.id), corrections.get(s.id)) for s in samples]


def correction_input(sample: Sample, preference: Preference, store: Store) -> str:
    """Return a hash of all that a correction is made from."""
    return digest([sample_digest(sample, store), to_json(preference)])


def item_counts(items: list[Item]) -> dict[str, Any]:
    """What went into training: samples, pairs that differ, equal pairs, corrections by status."""
    pairs = Counter(i.preference.status for i in items if i.preference)
    corrections = Counter(i.correction.status for i in items if i.correction)
    counts: dict[str, Any] = {"samples": len(items)}
    if pairs:
        counts |= {
            "pairs": pairs["ok"],
            "equal": pairs["equal"],
            "pairs_by_status": dict(sorted(pairs.items())),
        }
    if corrections:
        counts["corrections"] = dict(sorted(corrections.items()))
    return counts


def held_out_size(nodes: dict[str, Any]) -> int:
    """How many samples at the end of the source are kept from training, for the validation loss."""
    return int(nodes["trainer"].get("held_out", 0) or 0)


def _example_digest(example: Any, store: Store) -> str:
    rows = to_json(example)
    for conversation in rows["conversations"]:
        image = conversation["image"]
        if image and Path(image).exists():
            conversation["image"] = store.fingerprint(image)
    return digest(rows)


# --- evaluate --------------------------------------------------------------------------------------


def evaluate(step: Step, run: CellRun) -> StageFolder:
    """The model answers a benchmark's questions and is scored: per-item records, then the metrics."""
    benchmark = build(step.nodes["benchmark"])
    requests = benchmark.requests()[: step.nodes.get("limit")]
    folder = _open(step, run, inputs={"init": [run.keys[name] for name in step.init]})
    with folder.lock():
        if folder.manifest() is None:
            started = time.perf_counter()
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


def score_answers(
    benchmark: Any, requests: list[Request], answers: dict[str, Reply], folder: StageFolder
) -> dict[str, Any]:
    """Score answers by the benchmark's rule; write `records.jsonl` (in request order) and return the summary.

    A request without an answer, or whose answer has no score, is counted and left out of the metrics.
    """
    scores = {r.id: benchmark.score(r, answers[r.id]) for r in requests if r.id in answers}
    scored = [score for score in scores.values() if score]
    if hasattr(benchmark, "combine"):  # items that count only together (MME's pairs, MMBench's circles)
        scored = benchmark.combine(scored)
        scores |= {score.id: score for score in scored}
    (folder.path / "records.jsonl").unlink(missing_ok=True)
    with folder.appending() as append:
        for request in requests:
            append(_item_row(request, answers.get(request.id), scores.get(request.id)))
    totals: Counter[str] = Counter()
    for score in scored:
        totals.update(score.counts)
    counts = {
        "scored": len(scored),
        "unscored": len(scores) - len(scored),
        "unanswered": len(requests) - len(scores),
        "unparseable": sum(score.unparseable for score in scored),
        "cut": sum(reply.finish == "length" for reply in answers.values()),
    }
    from nsft_exp.statistics import rank_metrics

    metrics = {**benchmark.metrics(totals), **rank_metrics(scored)}
    return {
        "benchmark": benchmark.name,
        "protocol": benchmark.protocol,
        "n": len(requests),
        "counts": counts,
        "complete": counts["scored"] == len(requests),
        "metrics": {
            name: None if value is None or value != value else float(value) for name, value in metrics.items()
        },
        "summed": {name: float(value) for name, value in sorted(totals.items())},
    }


def _item_row(request: Request, reply: Reply | None, score: ItemScore | None) -> dict[str, Any]:
    return {
        "id": request.id,
        "question": request.turns[-1].text,
        "answer": reply.text if reply else None,
        "finish": reply.finish if reply else None,
        "score": to_json(score) if score else None,
        "reason": "" if score else ("no answer" if reply is None else "cannot be scored"),
    }


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


def track(items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
    """Yield the items under a progress bar (on a terminal; silent in a file)."""
    from rich.console import Console
    from rich.progress import track as bar

    console = Console(stderr=True)
    yield from bar(
        items, f"  {title}", total, console=console, transient=True, disable=not console.is_terminal
    )


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


def circumstances(started: float) -> dict[str, Any]:
    """What a manifest says of how it came about: seconds, versions, git revision."""
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "python": platform.python_version(),
        "versions": {
            name: _version(name) for name in ("nsft-exp", "torch", "transformers", "lightning", "peft")
        },
        "git": git_revision(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """The revision of the source tree, with `+` when it has changes; None outside a repository."""
    here = Path(__file__).parent
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None
