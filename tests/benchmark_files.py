"""Small files in the benchmarks' official layouts, and answers to them, for the benchmark tests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nsft_exp.benchmark.answers import AnswerLine
from nsft_exp.records import ItemScore, Reply, Request

S = "\nAnswer the question using a single word or phrase."
L = "\nAnswer with the option's letter from the given choices directly."


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def touch(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def answers(pairs: Iterable[tuple[Any, str]], prompts: Sequence[str] | None = None) -> list[AnswerLine]:
    """Answer lines from (question id, text)."""
    pairs = list(pairs)
    prompts = prompts or [""] * len(pairs)
    return [
        AnswerLine(
            f"answers.jsonl: line {k}", i, text, prompt, {"question_id": i, "prompt": prompt, "text": text}
        )
        for k, ((i, text), prompt) in enumerate(zip(pairs, prompts, strict=True), 1)
    ]


def score_all(benchmark: Any, texts: Sequence[str]) -> list[ItemScore]:
    """Score a model's answers in request order."""
    requests: list[Request] = benchmark.requests()
    return [benchmark.score(r, Reply(t)) for r, t in zip(requests, texts, strict=True)]


def fixture(name: str) -> Path:
    """A shared fixture's path; skips where the folder is absent."""
    place = os.environ.get("NSFT_FIXTURES") or Path(__file__).parents[2] / "shared" / "fixtures"
    path = Path(place) / name
    if not path.exists():
        pytest.skip(f"no shared fixtures at {place} (set NSFT_FIXTURES)")
    return path


def fixture_lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in fixture(name).read_text(encoding="utf-8").splitlines()]
