"""A cell's stages: respond, critique, train; evaluate is in evaluating.py. File to file, keyed, resumable.

Each function takes a resolved step and the folders of the steps it depends on, does what is not yet
done, and returns its folder. Plug-ins are built from their config nodes and never named here. Modules
that need torch are imported by the plug-ins only once there is work to do.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from hydra.utils import get_object

from nsft_exp.answering import answering, served
from nsft_exp.cell_run import CellRun, build, open_folder, to_order
from nsft_exp.evaluating import evaluate
from nsft_exp.items import (
    correction_inputs,
    example_digest,
    item_counts,
    read_items,
    read_preferences,
    split_items,
)
from nsft_exp.keys import digest
from nsft_exp.output import append_records, circumstances, done_ids
from nsft_exp.plan import Step
from nsft_exp.records import Example, Item, UserError
from nsft_exp.store import StageFolder
from nsft_exp.torchrun import num_ranks, run_ranks
from nsft_exp.watching import watched_benchmarks

if TYPE_CHECKING:
    from nsft_exp.world import World


def run_step(step: Step, run: CellRun) -> StageFolder:
    """Run one step (or find it done), note its folder in `run` and return it."""
    folder = {"respond": respond, "critique": critique, "train": train, "evaluate": evaluate}[step.kind](
        step, run
    )
    run.folders[step.name] = folder
    return folder


# --- respond ---------------------------------------------------------------------------------------


def respond(step: Step, run: CellRun) -> StageFolder:
    """The VLM answers (the base, or in later rounds what was trained): one Preference for every sample."""
    samples = run.samples(step)
    folder = open_folder(step, run, answered_by(step, run))
    inputs = run.sample_digests(step)
    with folder.lock():
        done = done_ids(folder, inputs)
        todo = [s for s in samples if s.id not in done]
        if todo or folder.manifest() is None:  # a kill may have come between the last record and the manifest
            run.begin()
            pairing = build(step.nodes["pairing"])
            with answering(step, run) if todo and pairing.needs_vlm else nullcontext() as vlm:
                pairs = vlm.pairs(pairing, todo) if vlm else pairing.pairs(todo, None) if todo else ()
                append_records(folder, pairs, inputs, len(todo), partial(_asked, step))
        _check_pairs(build(step.nodes["pairing"]), folder, inputs)
    return folder


def _asked(step: Step, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a server's answers behind these preferences have cost, for the manifest."""
    return served(step, [key for row in rows for key in row["details"].get("requests", ())])


def _check_pairs(pairing: Any, folder: StageFolder, inputs: Mapping[str, str]) -> None:
    """Have a pairing that can tell say whether this cell's preferences are fit to be trained on."""
    if hasattr(pairing, "check"):
        pairing.check(list(read_preferences(folder, inputs).values()))


def critique(step: Step, run: CellRun) -> StageFolder:
    """The critic writes one Correction for every sample that has a Preference."""
    samples = run.samples(step)
    hashes = run.sample_digests(step)
    preferences = read_preferences(run.inputs(step, "respond"), hashes)
    inputs = correction_inputs(hashes, preferences)
    pairs = [(s, preferences[s.id]) for s in samples if s.id in inputs]
    folder = open_folder(step, run, criticised(step, run, list(inputs.values())))
    with folder.lock():
        done = done_ids(folder, inputs)
        todo = [(s, preference) for s, preference in pairs if s.id not in done]
        if todo or folder.manifest() is None:
            run.begin()
            critic = build(step.nodes["critic"])
            if surveys(step):
                critic.survey(pairs)
            append_records(folder, critic.corrections(todo), inputs, len(todo), partial(_used, critic))
    return folder


def surveys(step: Step) -> bool:
    """Whether the step's critic reads all pairs before it criticises one."""
    return hasattr(get_object(step.nodes["critic"]["_target_"]), "survey")


def criticised(step: Step, run: CellRun, inputs: Sequence[str]) -> Any:
    """What a critique is made from, for the stage's key: `inputs` are the pairs' hashes, in order."""
    pairs = {"pairs": digest(list(inputs))} if surveys(step) else {}  # each correction depends on all pairs
    return {**(answered_by(step, run) or {}), **pairs} or None


def _used(critic: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a critic's calls have cost, those of earlier runs included, for the manifest."""
    return {"usage": critic.usage(rows)} if hasattr(critic, "usage") else {}


def answered_by(step: Step, run: CellRun) -> Any:
    """The keys of the trainings whose model answers, for the stage's key; None for the base."""
    return {"init": [run.keys[name] for name in step.init]} if step.init else None


# --- train -----------------------------------------------------------------------------------------


def train(step: Step, run: CellRun) -> StageFolder:
    """Train the method on the cell's items; the folder holds the adapter (or model) and its metrics."""
    items, examples, held_out = examples_of(step, run)
    if not examples:
        raise UserError(
            f"{step.label}: {len(items)} samples give no example to train on; "
            f"see the statuses in the respond stage's manifest"
        )
    folder = open_folder(step, run, made_from(examples, step, run))
    # The machines of one training are in it together: a lock would keep all but one of them out.
    with folder.lock() if step.nodes["trainer"].get("num_nodes", 1) == 1 else nullcontext():
        if folder.manifest() is None:
            run.begin()
            started = time.perf_counter()
            if num_ranks(step.nodes["trainer"]) > 1:
                summary = run_ranks(to_order(step, run), folder.path, step.nodes["trainer"])
            else:
                summary = _fit(step, run, folder.path, examples, held_out)
            shutil.rmtree(folder.path / "checkpoint", ignore_errors=True)
            left_out = _left_out(build(step.nodes["method"]), items)
            counts = {**item_counts(items), "examples": len(examples), **left_out}
            folder.finish({"counts": counts, **summary, **circumstances(started)})
    _check_trained(build(step.nodes["method"]), folder)
    return folder


def made_from(examples: Sequence[Example], step: Step, run: CellRun) -> dict[str, Any]:
    """What a training is made from, for the stage's key: its examples, the trainings before it, and the
    reward model that it reads."""
    content = digest([example_digest(e, run.store) for e in examples])
    judges = [run.keys[name] for name in step.inputs if name.startswith("train")]
    reward = {"reward": judges[0]} if judges else {}
    return {"examples": content, "init": [run.keys[name] for name in step.init], **reward}


def _check_trained(method: Any, folder: StageFolder) -> None:
    """Have a method that can tell say whether its training came to something."""
    if hasattr(method, "check"):
        method.check(list(folder.records("metrics.jsonl")))


def train_rank(step: Step, run: CellRun, folder: Path, world: World) -> dict[str, Any]:
    """One process's part of a training on several: the first one's summary, nothing from the others.

    The process that started it holds the folder's lock and writes the manifest.
    """
    _, examples, held_out = examples_of(step, run)
    return _fit(step, run, folder, examples, held_out, world)


def examples_of(step: Step, run: CellRun) -> tuple[list[Item], list[Example], list[Example]]:
    """The items that are trained on, their examples, and those of the validation set."""
    items, held_out = _items(step, run)
    method, seed = build(step.nodes["method"]), step.nodes["seed"]
    validation = method.examples(held_out, Random(seed)) if held_out else []
    return items, method.examples(items, Random(seed)), validation


def _fit(
    step: Step,
    run: CellRun,
    folder: Path,
    examples: list[Example],
    validation: list[Example],
    world: World | None = None,
) -> dict[str, Any]:
    method, reward = build(step.nodes["method"]), run.inputs(step, "train")
    first = world is None or world.first
    last_round = step.name == "train"  # a logger's steps only go up
    with _streaming(run) if first and last_round else nullcontext() as listen:
        options: dict[str, Any] = {
            "vlm": build(step.nodes["vlm"]),
            "method": method,
            "examples": examples,
            "validation": validation,
            "folder": folder,
            "recipe": build(step.nodes["recipe"]),
            "tuning": build(step.nodes["tuning"]),
            "trainer": build(step.nodes["trainer"]),
            "seed": step.nodes["seed"],
            "open_image": getattr(build(step.nodes["source"]), "open_image", None),
            "parents": [run.folders[name].path for name in step.init],
            "listen": listen,
        }
        if method.needs.rollouts:
            from nsft_exp.ppo.fit import fit_ppo

            assert reward is not None
            return fit_ppo(**options, reward=reward.path)
        from nsft_exp.training import fit

        limit = options["trainer"].evaluate_limit
        watched = watched_benchmarks(run.watched, limit) if run.watched else ()
        return fit(**options, references=run.store.root / "reference", world=world, watched=watched)


def _left_out(method: Any, items: list[Item]) -> dict[str, Any]:
    """What a method that chooses among its items did not train on, by reason."""
    return {"left_out": method.left_out(items)} if hasattr(method, "left_out") else {}


def _streaming(run: CellRun) -> AbstractContextManager[Any]:
    """The block in which the cell's logger listens to the training; where nothing streams, nobody does."""
    return build(run.stream["logger"]).stream(run.stream["run"]) if run.stream else nullcontext()


def _items(step: Step, run: CellRun) -> tuple[list[Item], list[Item]]:
    """The cell's items in source order, and the held-out ones (for the validation loss)."""
    folders = run.inputs(step, "respond"), run.inputs(step, "critique")
    items = run.loaded.items(
        repr([step.nodes["source"], *folders]),
        lambda: read_items(run.samples(step), run.sample_digests(step), *folders),
    )
    return split_items(items, step.nodes)
