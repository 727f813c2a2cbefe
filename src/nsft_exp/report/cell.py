"""What a report is made from: one `Cell` per config of a study, with the folders of its finished stages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nsft_exp.interfaces import Benchmark
from nsft_exp.records import Correction, ItemScore, Preference, Sample, from_json


@dataclass(frozen=True)
class Row:
    """One item of a benchmark: the question, the model's answer and what the official rule made of it."""

    id: str
    question: str
    answer: str
    finish: str
    score: ItemScore | None
    """None: the answer could not be scored; `reason` says why. Never counted as 0."""
    reason: str = ""


@dataclass(frozen=True)
class Evaluation:
    """One benchmark on one model."""

    name: str
    """The benchmark's name in the study: `pope`, `chair`, `chair_t1` ...; columns are `<name>/<metric>`."""
    protocol: str
    benchmark: Benchmark
    """Gives `metrics`, `describe` and, for the images of the page, `requests`."""
    folder: Path
    """Has records.jsonl, a row per item: {"id", "question", "answer", "finish", "score": ItemScore|null,
    "reason"}."""
    metrics: dict[str, float | None]
    complete: bool = True
    """False where some item has no score."""

    def rows(self) -> Iterator[Row]:
        """Yield the items in file order."""
        for line in read_jsonl(self.folder / "records.jsonl"):
            yield Row(
                id=line["id"],
                question=line.get("question") or "",
                answer=line.get("answer") or "",
                finish=line.get("finish") or "",
                score=item_score(line.get("score")),
                reason=line.get("reason") or "",
            )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One config of a study: what it was, whether it ran, and where its stages' files are."""

    label: str
    """`method` or `method/variant`: a row of the table."""
    method: str
    variant: str = ""
    source: str
    size: int | None
    """Samples asked for; None: the whole source."""
    vlm: str
    seed: int | None
    """Initialisation and order; None (base): nothing is random, the cell stands beside every seed."""
    source_seed: int | None = None
    pairing_seed: int | None = None
    pairing: str = "none"
    critic: str = "none"
    codebook: str = "none"
    name: str = ""
    """Readable and unique in the study; names the W&B run."""
    status: Literal["ok", "failed"] = "ok"
    error: str = ""
    """One line, of a failed cell."""
    log: Path | None = None
    """The log file of a failed cell."""
    counts: dict[str, Any] = field(default_factory=dict)
    """What went in: `samples`, `pairs` (chosen and rejected differ), `equal`, `corrections` {status: number},
    `steps`, `examples`, `supervised_tokens`, `critic_precision`, `critic_recall` ...; absent: not counted."""
    costs: dict[str, Any] = field(default_factory=dict)
    """What it took: `models_held`, `trainable_parameters`, `peak_memory_bytes`, `train_seconds` ..."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved config, for W&B."""
    train_folder: Path | None = None
    """The last training's; has metrics.jsonl (and times.jsonl)."""
    earlier_trainings: Mapping[str, Path] = field(default_factory=dict)
    """Those before it by name, in their order: a round's number, `reward`, or both."""
    respond_folder: Path | None = None
    """Has records.jsonl of `Preference`."""
    critique_folder: Path | None = None
    """Has records.jsonl of `Correction`."""
    evaluations: tuple[Evaluation, ...] = ()
    samples: Callable[[], Sequence[Sample]] | None = None
    """Gives the source's samples, for the images and questions of the page; None: the page does without."""

    def evaluation(self, name: str) -> Evaluation | None:
        """Return the evaluation of that name, or None."""
        return next((e for e in self.evaluations if e.name == name), None)

    def history(self) -> list[dict[str, Any]]:
        """Return the training metrics, a row per logged step; empty where nothing was trained."""
        return list(read_jsonl(self.train_folder / "metrics.jsonl")) if self.train_folder else []

    def preferences(self) -> dict[str, Preference]:
        """Return the respond stage's preferences by id (there may be more than this cell's)."""
        return _last_by_id(self.respond_folder, Preference)

    def corrections(self) -> dict[str, Correction]:
        """Return the critique stage's corrections by id (there may be more than this cell's)."""
        return _last_by_id(self.critique_folder, Correction)


def item_score(value: dict[str, Any] | None) -> ItemScore | None:
    """Return what `from_json` would, fast: a report reads every item of every cell."""
    if value is None:
        return None
    ranks = {group: tuple(pair) for group, pair in value.get("ranks", {}).items()}
    marks = tuple(tuple(mark) for mark in value.get("marks", ()))
    return ItemScore(**{**value, "ranks": ranks, "marks": marks})


def _last_by_id(folder: Path | None, kind: Any) -> dict[str, Any]:
    """A record made again stands after the one it replaces; further keys are the store's."""
    names = {f.name for f in dataclasses.fields(kind)}
    lines = read_jsonl(folder / "records.jsonl") if folder else ()
    return {x["id"]: from_json(kind, {k: v for k, v in x.items() if k in names}) for x in lines}


def _record(line: dict[str, Any]) -> dict[str, Any]:
    """The record of a stage's row, without the hash of what it was made from."""
    return {name: value for name, value in line.items() if name != "input"}


def read_jsonl(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; a missing file has none."""
    if not file.exists():
        return
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)
