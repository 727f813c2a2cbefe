"""What judged benchmarks have in common: files of answers, and means with and without failed replies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.answers import AnswerLine, absent, read_answers, repeated
from nsft_exp.benchmark.counting import get, ratio
from nsft_exp.benchmark.reading import read_json, read_text
from nsft_exp.records import UserError

LOST = "lost"
"""The count of items that have no judgement: with any, the official means are not to be had."""


@dataclass
class Given:
    """The answers of a file that the judge is asked about, by the id of their item."""

    texts: dict[str, str]
    expected: int
    duplicate: list[Any] = field(default_factory=list)
    unknown: list[Any] = field(default_factory=list)
    missing: list[Any] = field(default_factory=list)


def whole(counts: Mapping[str, Any], value: Any) -> Any:
    """Return an official mean; None where the judgement of some item was never obtained."""
    return None if get(counts, LOST) else value


def mean_of(counts: Mapping[str, Any], part: str, of: str, scale: float = 1.0) -> Any:
    """Return scale * part / of; NaN where `of` is 0."""
    return ratio(get(counts, part), get(counts, of), scale)


def is_json(path: Path) -> bool:
    """Whether a file holds one JSON value rather than one a line."""
    try:
        json.loads(read_text(path))
    except (ValueError, RecursionError):
        return False
    return True


def read_object(path: Path) -> Any:
    """Return the file's one JSON value; None where it holds lines."""
    return read_json(path) if is_json(path) else None


def lines_in_order(path: Path, ids: Sequence[Any], questions: str) -> list[AnswerLine]:
    """Return the answer lines, which stand in the questions' order; a file may end before the last one.

    Raises UserError for any other order: the official program would pair answers with other questions.
    """
    lines = read_answers(path)
    for line, key in zip(lines, ids, strict=False):
        if str(line.id) != str(key):
            raise UserError(
                f"{line.where}: answers question {line.id} where {questions} has {key}; the official program "
                "pairs them by their order: sort the file"
            )
    if len(lines) > len(ids):
        raise UserError(f"{lines[len(ids)].where}: {questions} has only {len(ids)} questions; cut the file")
    return lines


def by_key(lines: Sequence[tuple[str, str]], expected: Sequence[str], path: Path) -> Given:
    """Return answers joined by id: the last of an id counts, unknown ones are passed over.

    Raises UserError where one is missing: the official program stops there.
    """
    given = [key for key, _ in lines]
    missing = absent(expected, given)
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(expected)} questions have no answer ({', '.join(missing[:5])}); "
            "the official program stops there: complete the file"
        )
    texts = dict(lines)
    return Given(
        {key: texts[key] for key in expected},
        len(expected),
        duplicate=repeated(given),
        unknown=absent(given, expected),
    )
