"""Scoring answer files made elsewhere: LLaVA's answer lines and official results files, read and summed up.

LLaVA's line is `{"question_id", "prompt", "text", ...}`. Which lines count, and what a missing, repeated or
unknown id does, is each official program's own rule; a benchmark's `score_answers` follows it and reports
the ids, so a partial file is never taken for a whole one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nsft_exp.benchmark.reading import need, read_json, read_json_lines, read_text
from nsft_exp.records import ItemScore, Metric, UserError, to_json

KEYS = (
    ("question_id", "text"),  # LLaVA
    ("question_id", "answer"),  # VQAv2's results
    ("questionId", "prediction"),  # GQA's predictions
    ("image_id", "caption"),  # CHAIR
    ("image_id", "text"),
    ("image", "caption"),  # captions by COCO file name
)
NOT_JUDGED = "the judge's reply is not there"
"""Why an item of a judged benchmark has no score."""


@dataclass(frozen=True)
class AnswerLine:
    """One answer of a file: its raw question id (a number and its text are different ids), text and place."""

    where: str
    """`<file>: line <n>`, for messages."""
    id: Any
    text: str
    prompt: str = ""
    row: dict[str, Any] = field(default_factory=dict)
    """The whole object, whose keys tell the format."""


@dataclass
class ScoredAnswers:
    """What the official program makes of a file: the scores it sums, and what it passed over."""

    scores: list[ItemScore]
    """One for every question or line that the official program counts."""
    expected: int
    """N: how many questions the benchmark has."""
    answered: int
    """n: how many of them the file answers."""
    missing: list[Any] = field(default_factory=list)
    duplicate: list[Any] = field(default_factory=list)
    unknown: list[Any] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    """Official numbers that are not sums over items (GQA's distribution score)."""
    said: list[str | None] = field(default_factory=list)
    """The raw answer behind each score, in the same order; None: not answered."""
    protocol: str = ""
    """Names what was scored where the answers tell more of it than the benchmark's arguments."""
    unjudged: list[str] = field(default_factory=list)
    """Items of a judged benchmark whose judgement is not there: they have no score."""
    judged: list[Any] = field(default_factory=list)
    """What the judge said behind each score, in the same order."""
    about: dict[str, Any] = field(default_factory=dict)
    """More for the summary."""

    @property
    def complete(self) -> bool:
        """Whether every question is answered exactly once, and nothing else, in the official order."""
        return not (self.missing or self.duplicate or self.unknown or self.warnings or self.unjudged)


class ScoresAnswers(Protocol):
    """A benchmark that can score a file of answers without a model."""

    name: str

    @property
    def protocol(self) -> str:
        """Names the scoring rule and data version."""

    def score_answers(self, lines: Sequence[AnswerLine]) -> ScoredAnswers:
        """The official program's reading of a whole file. UserError where that program stops."""

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics from summed counts."""

    def describe(self) -> list[Metric]:
        """How each metric is shown."""


def read_answers(path: Path) -> list[AnswerLine]:
    """Return the answers of a file; UserError naming the first malformed line or record.

    Read are JSON lines and one JSON list, with the id and the text under any pair of KEYS (told by the
    first row), and the original CHAIR's {"imgToEval": {key: {image_id, caption}}}.
    """
    start = read_text(path).lstrip()[:1_000_000]
    if start.startswith("["):
        rows, unit = read_json(path), "record"
    elif '"imgToEval"' in start:
        rows, unit = list(need(read_json(path), "imgToEval", dict, str(path)).values()), "record"
    else:
        rows, unit = read_json_lines(path), "line"
    if not rows:
        raise UserError(f"{path}: no answers; give the file that holds them")
    first = rows[0] if isinstance(rows[0], dict) else {}
    keys = next((pair for pair in KEYS if all(key in first for key in pair)), KEYS[0])
    place = f"{path}: {unit}"
    return [_answer_line(row, *keys, f"{place} {number}") for number, row in enumerate(rows, 1)]


def _answer_line(row: Any, id_key: str, text_key: str, where: str) -> AnswerLine:
    text = need(row, text_key, str, where)
    prompt = row.get("prompt") or ""
    if not isinstance(prompt, str):
        raise UserError(f"{where}: field `prompt` is not text; mend the file")
    return AnswerLine(where, need(row, id_key, (str, int), where), text, prompt, row)


def repeated(ids: Iterable[Hashable]) -> list[Any]:
    """Return the ids that occur more than once, in the order of their first occurrence."""
    return [i for i, n in Counter(ids).items() if n > 1]


def absent(expected: Iterable[Hashable], given: Iterable[Hashable]) -> list[Any]:
    """Return what is expected and not given, in order, each once."""
    seen = set(given)
    return [i for i in dict.fromkeys(expected) if i not in seen]


def sum_counts(scores: Iterable[ItemScore]) -> dict[str, float]:
    """Return the summed counts of scores."""
    total: dict[str, float] = {}
    for score in scores:
        for key, value in score.counts.items():
            total[key] = total.get(key, 0) + value
    return total


def summarise(
    benchmark: ScoresAnswers, lines: Sequence[AnswerLine], strict: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score a file's lines as the official program does: (summary, records) of `summary_of`."""
    return summary_of(benchmark, benchmark.score_answers(lines), strict)


def summary_of(
    benchmark: ScoresAnswers, scored: ScoredAnswers, strict: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Sum up what the official program makes of a file.

    Returns (summary, records). The summary holds every metric as a number (None where undefined), summed
    counts, the protocol, `complete`, n of N and the missing, duplicate and unknown ids with how many there
    are; a record is an item's score with the answer, in the form of an evaluate stage's `records.jsonl`.
    Raises UserError where the official program stops (a headline metric that divides by zero among them),
    and for any incompleteness when `strict`.
    """
    account = _account(scored)
    if strict and not scored.complete:
        why = "; ".join([account, *scored.warnings])
        raise UserError(f"{benchmark.name}: {why}; complete the file or leave out strict=true")
    counts = sum_counts(scored.scores)
    counts |= {"lost": len(scored.unjudged)} if scored.unjudged else {}
    metrics = {**benchmark.metrics(counts), **scored.extra}
    _check_headline(benchmark, metrics, account)
    summary = {
        "benchmark": benchmark.name,
        "protocol": scored.protocol or benchmark.protocol,
        "complete": scored.complete,
        "answered": scored.answered,
        "expected": scored.expected,
        "metrics": {k: None if _undefined(v) else float(v) for k, v in metrics.items()},
        "headline": [metric.name for metric in benchmark.describe() if metric.headline],
        "counts": {"scored": len(scored.scores), **counts},
        "unparseable": sum(s.unparseable for s in scored.scores),
        "warnings": [] if scored.complete else [account, *scored.warnings],
        **scored.about,
    }
    for kind in ("missing", "duplicate", "unknown"):
        ids = getattr(scored, kind)
        summary[kind] = {"count": len(ids), "ids": ids}
    return summary, _records(scored)


def _check_headline(benchmark: ScoresAnswers, metrics: Mapping[str, Any], account: str) -> None:
    for metric in benchmark.describe():
        value = metrics.get(metric.name)  # None: a benchmark's own word that a number is not to be had
        if metric.headline and value is not None and math.isnan(value):
            raise UserError(
                f"{benchmark.name}: {metric.name} divides by zero on these answers, where the official "
                f"program stops ({account}); no score is written"
            )


def _records(scored: ScoredAnswers) -> list[dict[str, Any]]:
    said = scored.said or [None] * len(scored.scores)
    records = [
        {"id": score.id, "answer": text, "score": to_json(score)}
        for score, text in zip(scored.scores, said, strict=True)
    ]
    for record, replies in zip(records, scored.judged, strict=False):
        record["judge"] = replies
    lost = [{"id": key, "answer": None, "score": None, "reason": NOT_JUDGED} for key in scored.unjudged]
    return records + lost


def _undefined(value: Any) -> bool:
    return value is None or math.isnan(value)


def _account(scored: ScoredAnswers) -> str:
    parts = [f"{scored.answered} of {scored.expected} questions answered"]
    for kind in ("missing", "duplicate", "unknown"):
        ids = getattr(scored, kind)
        if ids:
            more = "..." if len(ids) > 5 else ""
            parts.append(f"{len(ids)} {kind} ({', '.join(map(str, ids[:5]))}{more})")
    if scored.unjudged:
        parts.append(f"{len(scored.unjudged)} without the judge's reply, so that there is no score")
    return ", ".join(parts)
