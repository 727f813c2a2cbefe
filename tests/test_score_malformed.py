"""Damaged official files and answers: one line that says what is wrong, or a score; never anything else."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmark_files import write_lines
from nsft_exp.benchmark.answers import read_answers, summarise
from nsft_exp.records import UserError
from nsft_exp.score import benchmark_node, build_benchmark
from test_score import CASES, gqa_root, mme_root, science_root, seed_root, text_root, vqa_root  # noqa: F401

ROOTS = {
    "scienceqa": "science_root",
    "seedbench": "seed_root",
    "mme": "mme_root",
    "textvqa": "text_root",
    "vqav2": "vqa_root",
    "gqa": "gqa_root",
}
WRONG = [None, float("nan"), [], {}, "", "x", -1, 10**30, True, 1.5, "\ud800", ["a"], {"a": 1}, [[]]]


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every value within a JSON value."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield (*above, key)
        yield from places(child, (*above, key))


def damaged(value: Any, rng: random.Random) -> Any:
    """A copy in which one value is gone, or another."""
    value = copy.deepcopy(value)
    *above, last = rng.choice(list(places(value)))
    parent = value
    for key in above:
        parent = parent[key]
    if rng.random() < 0.25:
        del parent[last]
    else:
        parent[last] = rng.choice(WRONG)
    return value


def damage(path: Path, rng: random.Random) -> None:
    """Change one value of a JSON file or line, or cut the file, or change a byte of it."""
    data, way = path.read_bytes(), rng.random()
    if way < 0.2:
        path.write_bytes(data[: rng.randrange(len(data))])
    elif way < 0.4 or path.suffix not in (".json", ".jsonl"):
        k = rng.randrange(len(data))
        path.write_bytes(data[:k] + bytes([rng.randrange(256)]) + data[k + 1 :])
    elif path.suffix == ".json" and not path.name.startswith("coco_pope"):
        path.write_text(json.dumps(damaged(json.loads(data), rng)))
    else:
        lines = data.decode().splitlines()
        k = rng.randrange(len(lines))
        lines[k] = json.dumps(damaged(json.loads(lines[k]), rng))
        path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", sorted(CASES))
def test_damage_is_told_in_one_line_or_does_not_matter(name: str, request: pytest.FixtureRequest) -> None:
    place, rows, more = CASES[name](request.getfixturevalue(ROOTS.get(name, "tmp_path")))
    folder = place.parent if name in ("pope", "chair", "mme") else place
    answers = write_lines(folder / "answers.jsonl", rows)
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".jsonl", ".tsv", ".txt")]
    fresh = build_benchmark(benchmark_node([f"benchmark={name}", f"benchmark.root={place}", *more]))
    rng, refused = random.Random(name), list[str]()
    for _ in range(150):
        path, benchmark = rng.choice(files), copy.deepcopy(fresh)
        whole = path.read_bytes()
        damage(path, rng)
        try:
            summary, _ = summarise(benchmark, read_answers(answers))
            json.dumps(summary)
        except UserError as error:
            refused.append(str(error))
        finally:
            path.write_bytes(whole)
    assert len(refused) > 20
    assert not [message for message in refused if "\n" in message]
