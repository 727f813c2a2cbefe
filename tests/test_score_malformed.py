"""Damaged official files and answers: one line that says what is wrong, or a score; never anything else."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmark_files import write_json, write_lines
from judged_files import (
    BENCH,
    SHR_IMAGES,
    VET,
    hal_rows,
    write_llavabench,
    write_mmhal,
    write_mmvet,
    write_shr,
)
from nsft_exp.benchmark.answers import ScoredAnswers, read_answers, summarise, summary_of
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


def rule_scored(name: str, request: pytest.FixtureRequest) -> tuple[Any, Path, Path]:
    """A benchmark that a rule scores: (it without its files read, their folder, a file of answers)."""
    place, rows, more = CASES[name](request.getfixturevalue(ROOTS.get(name, "tmp_path")))
    folder = place.parent if name in ("pope", "chair", "mme") else place
    answers = write_lines(folder / "answers.jsonl", rows)
    return (
        build_benchmark(benchmark_node([f"benchmark={name}", f"benchmark.root={place}", *more])),
        folder,
        answers,
    )


WRITE = {"mmvet": write_mmvet, "mmhal": write_mmhal, "llavabench": write_llavabench, "shr": write_shr}
REPLY = {"mmvet": "0.5", "mmhal": "Rating: 3", "llavabench": "7 5", "shr": "Judgement:\n1. correct: so"}
"""What the judge says."""
SAID = "A cat sits here"


def answers_to(name: str) -> Any:
    lines = [{"question_id": i, "prompt": "", "text": SAID} for i, *_ in BENCH]
    return {
        "mmvet": dict.fromkeys(VET, SAID),
        "mmhal": hal_rows(),
        "llavabench": lines,
        "shr": {str(key): SAID for key in SHR_IMAGES},
    }[name]


def graded(name: str) -> Any:
    """The official program's file of judgements."""
    sentence = {"model_response": f"{SAID}.", "judgement": "correct: so", "classification": "correct"}
    image = {"raw_judgement": REPLY["shr"], "model_response": SAID, "judgement": [sentence]}
    reviews = [{"question_id": i, "category": c, "content": "7 5", "tuple": [7.0, 5.0]} for i, _, c in BENCH]
    return {
        "mmvet": {key: {"model": ["gpt"], "content": ["0.5"], "score": [0.5]} for key in VET},
        "mmhal": [{"model": "gpt", "choices": [{"message": {"content": REPLY["mmhal"]}}]}] * 96,
        "llavabench": reviews,
        "shr": {"run1": {str(key): image for key in SHR_IMAGES}},
    }[name]


def judge_scored(name: str, kind: str, root: Path) -> tuple[Any, Path, Path]:
    """A judged benchmark, as `rule_scored`; its file of answers, or (kind `graded`) of judgements."""
    WRITE[name](root)
    value = answers_to(name) if kind == "answers" else graded(name)
    answers = (write_lines if name == "llavabench" else write_json)(root / f"{kind}.jsonl", value)
    if name != "llavabench":
        answers = answers.rename(root / f"{kind}.json")
    return build_benchmark(benchmark_node([f"benchmark={name}", f"benchmark.root={root}"])), root, answers


def use(benchmark: Any, answers: Path) -> dict[str, Any]:
    """Score a file; a judge gives the same reply to everything."""
    if not hasattr(benchmark, "judge"):
        return summarise(benchmark, read_answers(answers))[0]
    scored = benchmark.read_graded(answers)
    if scored is None:
        given = benchmark.read_answers(answers)
        for key, text in given.texts.items():
            assert benchmark.ask(key, text, []) is not None
        reply = REPLY[benchmark.name]
        scores = [benchmark.judged(key, text, [[reply]]) for key, text in given.texts.items()]
        scored = ScoredAnswers(scores, given.expected, len(scores), missing=given.missing)
    return summary_of(benchmark, scored)[0]


def official_files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".jsonl", ".tsv", ".txt", ".py")]


def check_damage(fresh: Any, folder: Path, answers: Path, times: int) -> None:
    """Damage one file after another: a score, or one line; never anything else."""
    rng, refused = random.Random(f"{fresh.name} {answers.stem}"), list[str]()
    whole = json.dumps(use(copy.deepcopy(fresh), answers))
    for _ in range(times):
        path, benchmark = rng.choice(official_files(folder)), copy.deepcopy(fresh)
        before = path.read_bytes()
        damage(path, rng)
        try:
            json.dumps(use(benchmark, answers))
        except UserError as error:
            refused.append(str(error))
        finally:
            path.write_bytes(before)
    assert len(refused) > times / 10
    assert not [message for message in refused if "\n" in message]
    assert json.dumps(use(copy.deepcopy(fresh), answers)) == whole


@pytest.mark.parametrize("name", sorted(CASES))
def test_damage_is_told_in_one_line_or_does_not_matter(name: str, request: pytest.FixtureRequest) -> None:
    check_damage(*rule_scored(name, request), times=150)


@pytest.mark.parametrize("kind", ["answers", "graded"])
@pytest.mark.parametrize("name", sorted(WRITE))
def test_damage_to_a_judged_benchmarks_files_is_told_in_one_line_or_does_not_matter(
    name: str, kind: str, tmp_path: Path
) -> None:
    check_damage(*judge_scored(name, kind, tmp_path), times=80)


@pytest.mark.parametrize("name", [*sorted(CASES), *sorted(WRITE)])
def test_other_line_ends_are_read_and_other_encodings_and_empty_files_are_refused_by_place(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    made = rule_scored(name, request) if name in CASES else judge_scored(name, "answers", tmp_path)
    fresh, folder, answers = made
    whole = use(copy.deepcopy(fresh), answers)
    for path in official_files(folder):
        before = path.read_bytes()
        path.write_bytes(before.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
        assert use(copy.deepcopy(fresh), answers) == whole, path
        for content, message in (
            (b"\xef\xbb\xbf" + before, "line 1: begins with a byte order mark"),
            (before + b"caf\xe9", "line [0-9]+: not UTF-8"),
            (b"", "the file is empty|is empty|ends early|no such|has no"),
        ):
            path.write_bytes(content)
            if used(copy.deepcopy(fresh), answers, path):
                with pytest.raises(UserError, match=message) as error:
                    use(copy.deepcopy(fresh), answers)
                assert path.name in str(error.value)
        path.write_bytes(before)


def used(benchmark: Any, answers: Path, path: Path) -> bool:
    """Whether scoring reads a file at all: without it, something is refused."""
    before = path.read_bytes()
    path.unlink()
    try:
        use(benchmark, answers)
    except UserError:
        return True
    finally:
        path.write_bytes(before)
    return False


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_file_without_some_answer_or_with_one_too_many_is_never_called_complete(
    name: str, request: pytest.FixtureRequest
) -> None:
    fresh, _, answers = rule_scored(name, request)
    lines = answers.read_text().splitlines(keepends=True)
    assert use(copy.deepcopy(fresh), answers)["complete"] is True
    less = [lines[:k] + lines[k + 1 :] for k in range(len(lines)) if len(lines) > 1]
    for changed in (*less, [*lines, lines[0]], [lines[-1], *lines]):
        answers.write_text("".join(changed))
        found, refused = {"complete": False, "warnings": []}, ""
        try:
            found = use(copy.deepcopy(fresh), answers)
        except UserError as error:
            refused = str(error)
        assert found["complete"] is False, changed
        assert found["warnings"] or "official program stops" in refused, changed
