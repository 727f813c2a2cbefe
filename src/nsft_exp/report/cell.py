"""What a report is made from: one `Cell` per config of a study, with the folders of its finished stages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nsft_exp.interfaces import Benchmark
from nsft_exp.records import Correction, ItemScore, Preference, from_json


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
            score = from_json(ItemScore, line["score"]) if line.get("score") is not None else None
            yield Row(
                id=line["id"],
                question=line.get("question", ""),
                answer=line.get("answer", ""),
                finish=line.get("finish", ""),
                score=score,
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
    """Has metrics.jsonl (and times.jsonl)."""
    respond_folder: Path | None = None
    """Has records.jsonl of `Preference`."""
    critique_folder: Path | None = None
    """Has records.jsonl of `Correction`."""
    evaluations: tuple[Evaluation, ...] = ()

    def evaluation(self, name: str) -> Evaluation | None:
        """Return the evaluation of that name, or None."""
        return next((e for e in self.evaluations if e.name == name), None)

    def history(self) -> list[dict[str, Any]]:
        """Return the training metrics, a row per logged step; empty where nothing was trained."""
        return list(read_jsonl(self.train_folder / "metrics.jsonl")) if self.train_folder else []

    def preferences(self) -> Iterator[Preference]:
        """Yield the preferences of the respond stage's folder (it may hold more samples than this cell's)."""
        if self.respond_folder:
            for line in read_jsonl(self.respond_folder / "records.jsonl"):
                yield from_json(Preference, line)

    def corrections(self) -> Iterator[Correction]:
        """Yield the critique stage's corrections (its folder may hold more samples than this cell's)."""
        if self.critique_folder:
            for line in read_jsonl(self.critique_folder / "records.jsonl"):
                yield from_json(Correction, line)


def read_jsonl(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; a missing file has none."""
    if not file.exists():
        return
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)
