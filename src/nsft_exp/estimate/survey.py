"""Walks the cells of a sweep over the store: which stages there are after sharing, and what is left of each.

Nothing is written. Keys are those of the stages themselves. What depends on a training that does not exist
yet (its examples are not known, so neither is its key) gets a key made from all that decides it instead: it
matches no folder, and is shared by the cells that will share the stage.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nsft_exp.cell_run import CellRun, Loaded, build, stage_folder
from nsft_exp.estimate.calls import Askings
from nsft_exp.evaluating import answers_folder, is_evaluated
from nsft_exp.items import correction_input, held_out_size
from nsft_exp.judging import first_calls
from nsft_exp.keys import LEFT_OUT, digest
from nsft_exp.plan import Step
from nsft_exp.records import Preference, Request, Sample, from_json
from nsft_exp.stages import answered_by, criticised, examples_of, made_from, surveys
from nsft_exp.store import StageFolder, Store

LONG = "an answer of more words than a short one has, which says what cannot be known before it is given"
"""Stands for a VLM's answer that is not there yet, where a critic decides by its length."""


@dataclass
class Pass:
    """One distinct stage of a sweep (a folder), and what is left of it."""

    step: Step
    folder: StageFolder
    like: str
    """Passes of one kind that differ only in their samples, or in what was trained before, share this."""
    ready: bool
    """The trainings that it starts from exist."""
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The records that are there, by the hash of what each is made from."""
    wanted: set[str] = field(default_factory=set)
    """What records are wanted for: hashes; of a pair that does not exist yet, its sample's and its folder."""
    finished: bool = False
    num: int = 0
    """Optimizer steps of a training, questions of an evaluation."""
    num_left: int = 0
    exact: bool = True

    @property
    def left(self) -> set[str]:
        """The wanted records that are not there."""
        return self.wanted - self.rows.keys()


class Survey:
    """What the cells that were added come to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.passes: dict[str, Pass] = {}
        self.askings = Askings()
        self.num_cells = self.num_finished = 0
        self._loaded = Loaded()
        self._digests: dict[str, dict[str, Sample]] = {}
        self._requests: dict[str, tuple[Any, list[Request]]] = {}
        self._pairs: dict[str, Counter[str]] = {}
        self._unknown: list[tuple[Pass, Any, str, Sample]] = []

    def add(self, plan: list[Step]) -> None:
        """Look at one cell. Raises UserError for input that the cell would refuse."""
        run = CellRun(self.store, loaded=self._loaded)
        look = {
            "respond": self._respond,
            "critique": self._critique,
            "train": self._train,
            "evaluate": self._evaluate,
        }
        self.num_cells += 1
        done = [look[step.kind](step, run) for step in plan]  # all of them, also after one that is not
        self.num_finished += all(done)

    def of(self, kind: str) -> list[Pass]:
        """The distinct stages of a kind."""
        return [entry for entry in self.passes.values() if entry.step.kind == kind]

    # --- respond and critique ----------------------------------------------------------------------

    def _respond(self, step: Step, run: CellRun) -> bool:
        samples = self._samples(step, run)  # first: files that are made when missing are in the key
        entry = self._pass(step, run, stage_folder(step, run, answered_by(step, run)))
        pairing = build(step.nodes["pairing"])
        if hasattr(pairing, "calls"):
            for key in samples.keys() - entry.wanted:
                self.askings.add("editor", pairing.calls([samples[key]]), needed=key not in entry.rows)
        entry.wanted |= samples.keys()
        entry.finished = not entry.left
        return not samples.keys() - entry.rows.keys()

    def _critique(self, step: Step, run: CellRun) -> bool:
        answers = self.passes[str(run.inputs(step, "respond").path)]  # type: ignore[union-attr]
        entry = self._pass(step, run, stage_folder(step, run, self._criticised(step, run, answers)))
        critic = build(step.nodes["critic"])
        pairs: dict[str, tuple[Sample, Preference]] = {}
        mine = set()
        for key, sample in self._samples(step, run).items():
            row = answers.rows.get(key)
            if row is None:
                name = f"{key} {answers.folder.path}"
                if name not in entry.wanted and hasattr(critic, "calls"):
                    self._unknown.append((entry, critic, name, sample))
            else:
                preference = from_json(Preference, {k: v for k, v in row.items() if k != "input"})
                name = correction_input(key, preference)
                if name not in entry.wanted:
                    pairs[name] = (sample, preference)
            mine.add(name)
        entry.wanted |= mine
        if hasattr(critic, "calls"):
            self._count(entry, critic, pairs)
        entry.finished = not entry.left and entry.folder.manifest() is not None
        return not mine - entry.rows.keys() and entry.folder.manifest() is not None

    def _criticised(self, step: Step, run: CellRun, answers: Pass) -> Any:
        """What the critique is made from; where it depends on pairs that are to come, on whose."""
        if not surveys(step):
            return criticised(step, run, ())
        samples = self._samples(step, run)
        if samples.keys() - answers.rows.keys():
            return {"to come": digest([sorted(samples), run.keys[step.inputs[0]]])}
        inputs = []
        for key in samples:
            row = {k: v for k, v in answers.rows[key].items() if k != "input"}
            inputs.append(correction_input(key, from_json(Preference, row)))
        return criticised(step, run, inputs)

    def _count(self, entry: Pass, critic: Any, pairs: dict[str, tuple[Sample, Preference]]) -> None:
        """Note the calls about pairs that exist, and what share of the possible ones they are."""
        counts = self._pairs.setdefault(entry.like, Counter())
        for key, pair in pairs.items():
            calls = list(critic.calls([pair]))
            self.askings.add("critic", calls, needed=key not in entry.rows)
            counts["asked"] += bool(calls)
            counts["possible"] += bool(_possible(critic, pair[0]))

    def close(self) -> None:
        """Count the calls about pairs that do not exist yet; to be called after the last cell."""
        for entry, critic, _, sample in self._unknown:
            counts = self._pairs.get(entry.like, Counter())
            share = counts["asked"] / counts["possible"] if counts["possible"] else None
            for client, call in _possible(critic, sample):
                self.askings.of("critic", client, call).add_unknown(1, share)

    # --- train and evaluate ------------------------------------------------------------------------

    def _train(self, step: Step, run: CellRun) -> bool:
        known = self._inputs_known(step, run)
        samples = self._samples(step, run)
        if known:
            examples = examples_of(step, run)[1]
            number, inputs = len(examples), made_from(examples, step, run)
        else:
            number = max(0, len(samples) - held_out_size(step.nodes))
            decides = [sorted(samples), [run.keys[name] for name in step.inputs]]
            inputs = {"examples": None, "to come": digest(decides), "init": [run.keys[n] for n in step.init]}
        entry = self._pass(step, run, stage_folder(step, run, inputs))
        recipe = build(step.nodes["recipe"])
        entry.num, entry.exact = recipe.epochs * math.ceil(number / recipe.batch_size), known
        entry.finished = entry.folder.manifest() is not None
        entry.num_left = 0 if entry.finished else entry.num
        return entry.finished

    def _inputs_known(self, step: Step, run: CellRun) -> bool:
        """Whether all records are there that the step's examples are made from."""
        samples = self._samples(step, run)
        for name in step.inputs:
            entry = self.passes[str(run.folders[name].path)]
            if name.startswith("respond") and samples.keys() - entry.rows.keys():
                return False
            if name.startswith("critique") and entry.left:
                return False
        return True

    def _evaluate(self, step: Step, run: CellRun) -> bool:
        benchmark, requests = self._questions(step)
        inputs = {"init": [run.keys[name] for name in step.init]}
        folder = stage_folder(step, run, inputs)
        if str(folder.path) in self.passes:
            return self._pass(step, run, folder).finished
        entry = self._pass(step, run, folder)
        entry.num, entry.finished = len(requests), is_evaluated(folder)
        place = answers_folder(step, run) if hasattr(benchmark, "judge") else folder
        answers = {row["id"]: row["reply"]["text"] for row in place.records("answers.jsonl")}
        entry.num_left = 0 if entry.finished else sum(request.id not in answers for request in requests)
        if hasattr(benchmark, "judge"):
            self._judge(benchmark, requests, answers, entry)
        return entry.finished

    def _judge(self, benchmark: Any, requests: list[Request], answers: dict[str, str], entry: Pass) -> None:
        """Note what the judge is asked: about answers that are there, and about those still to be given."""
        folder = entry.folder.path
        there = {r.id: answers[r.id] for r in requests if r.id in answers}
        self.askings.add("judge", first_calls(benchmark, there, folder), needed=not entry.finished)
        coming = {} if entry.finished else {r.id: "" for r in requests if r.id not in answers}
        for client, call in first_calls(benchmark, coming, folder):
            self.askings.of("judge", client, call).add_unknown(1, 1.0)

    # --- shared ------------------------------------------------------------------------------------

    def _pass(self, step: Step, run: CellRun, folder: StageFolder) -> Pass:
        run.folders[step.name] = folder
        name = str(folder.path)
        if name not in self.passes:
            ready = all(run.folders[n].manifest() is not None for n in step.init)
            rows = {row["input"]: row for row in folder.records()} if step.kind in PER_SAMPLE else {}
            self.passes[name] = Pass(step, folder, likeness(step.kind, step.nodes), ready, rows)
        return self.passes[name]

    def _samples(self, step: Step, run: CellRun) -> dict[str, Sample]:
        """The step's samples by their hashes."""
        name = repr(step.nodes["source"])
        if name not in self._digests:
            hashes = run.sample_digests(step)
            self._digests[name] = {hashes[s.id]: s for s in run.samples(step)}
        return self._digests[name]

    def _questions(self, step: Step) -> tuple[Any, list[Request]]:
        """A benchmark and its requests; its files are made where they are made when missing, for the key."""
        name = repr([step.nodes["benchmark"], step.nodes.get("limit")])
        if name not in self._requests:
            benchmark = build(step.nodes["benchmark"])
            benchmark.files()
            self._requests[name] = (benchmark, benchmark.requests()[: step.nodes.get("limit")])
        return self._requests[name]


PER_SAMPLE = ("respond", "critique")


def likeness(kind: str, nodes: dict[str, Any]) -> str:
    """What a stage's time and calls depend on, as a hash: passes that have it alike are compared.

    Of a training that is what is computed in a step, not on which samples and how often.
    """
    wanted: dict[str, Any] = {k: v for k, v in nodes.items() if k not in ("seed", "recipe")}
    for leaf in (*LEFT_OUT[kind], "source.size", "source.seed"):
        group, name = leaf.split(".")
        if isinstance(wanted.get(group), dict):
            wanted[group] = {k: v for k, v in wanted[group].items() if k != name}
    if kind == "train":
        recipe = nodes["recipe"]
        wanted["recipe"] = {name: recipe.get(name) for name in ("batch_size", "max_length", "lora_rank")}
    return digest([kind, wanted])


def _possible(critic: Any, sample: Sample) -> Iterable[Any]:
    """The call that there can be about a sample, whatever its pair turns out to be; empty if none."""
    guesses = (Preference(sample.id, "ok", sample.answer, said) for said in (LONG, "x"))
    found = ((list(critic.calls([(sample, guess)]))) for guess in guesses)
    return next((calls for calls in found if calls), [])
