"""CONTRIBUTING.md, followed to the letter in a copy of the repository: its files suffice, and they run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from tiny_training import draw

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
FILES = dict(re.findall(r"^`([^`\n]+)`:\n\n```\w+\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
TABLE = dict(re.findall(r"^\| (an? [^|]+) \| (`[^|]+`) \|$", TEXT, re.MULTILINE))
EXAMPLES = {
    "gt_dpo_strong": "a DPO-type method (an objective that exists)",
    "ipo": "a new objective",
    "my_data": "a source in LLaVA format",
    "my_pope": "a benchmark of a kind that exists",
    "one_word": "a new benchmark kind",
}


def contents(root: Path) -> dict[str, bytes]:
    """The files of a copy, without what Python and its tools leave behind."""
    found = (p for top in ("src", "conf", "tests") for p in (root / top).rglob("*") if p.is_file())
    return {str(p.relative_to(root)): p.read_bytes() for p in found if "cache" not in str(p)}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the files of CONTRIBUTING.md in it."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("src", "conf", "experiments"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "tests").mkdir()
    for name in ("conftest.py", "test_config.py", "test_imports.py"):
        shutil.copy(ROOT / "tests" / name, root / "tests")
    for name, text in FILES.items():
        assert not (root / name).exists(), f"{name} is there already"
        (root / name).write_text(text)
    return root


def data(root: Path) -> list[str]:
    """Write eight samples and eight questions about pictures; return the words that choose them."""
    images = [Path(path).name for path in draw(root / "images", 8)]
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    samples = [{"id": str(n), "image": image, "conversations": turns} for n, image in enumerate(images)]
    (root / "data.json").write_text(json.dumps(samples))
    rows = [{"id": str(n), "image": i, "question": "What?", "answer": "cat"} for n, i in enumerate(images)]
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"source.file={root / 'data.json'}", f"benchmark.file={root / 'questions.jsonl'}"]
    return words + [f"{group}.image_root={root / 'images'}" for group in ("source", "benchmark")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_touches_exactly_the_files_that_the_table_names(name: str) -> None:
    named = re.findall(r"`([^`]+)`", TABLE[EXAMPLES[name]])
    given = {path for path in FILES if Path(path).stem in (name, f"test_{name}")}
    assert given == {path.replace("<name>", name) for path in named}


def test_every_file_belongs_to_an_example() -> None:
    assert {Path(path).stem.removeprefix("test_") for path in FILES} == set(EXAMPLES)


COMPOSES = "test_config.py::test_an_option_composes_and_its_keys_bind_to_its_constructor"
IMPORTS = "test_imports.py::test_a_part_imports_only_what_stands_below_it"
RUN = """
import json, sys, pytest
from nsft_exp.__main__ import main
from nsft_exp.config import compose_config
asked = json.loads(sys.argv[1])
code = pytest.main(["-q", *asked["tests"]])
assert not code, code
for words in asked["commands"]:
    compose_config(words)
main(asked["cell"])
"""


def example_tests() -> list[str]:
    """The examples' own tests, and those of the repository that look at each option and each package."""
    options = [Path(path) for path in FILES if path.startswith("conf/")]
    checked = [f"tests/{COMPOSES}[{option.parent.name}-{option.stem}]" for option in options]
    checked += [f"tests/{IMPORTS}[{package}]" for package in ("method", "benchmark")]
    return [*(path for path in FILES if path.startswith("tests/")), *checked]


def example_commands() -> list[list[str]]:
    """The words of each command of the text, the first value of those that sweep."""
    commands = re.findall(r"`nsft ([^`<]+)`", TEXT)
    assert commands
    return [[re.sub(r",.*", "", word) for word in command.split() if word != "-m"] for command in commands]


@pytest.mark.slow
def test_the_examples_pass_their_tests_and_a_cell_of_them_runs(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(copy)
    monkeypatch.setenv("PYTHONPATH", str(copy / "src"))
    tests = [str(copy / test) for test in example_tests()]
    cell = ["method=ipo", "source=my_data", "benchmark=one_word", "preset=debug", *data(tmp_path)]
    asked = json.dumps({"tests": tests, "commands": example_commands(), "cell": cell})
    done = subprocess.run([sys.executable, "-c", RUN, asked], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (manifest,) = (tmp_path / "runs" / "evaluate").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["counts"]["scored"] == 8
    assert list((tmp_path / "runs" / "train").glob("my_data-tiny_random-ipo-*/adapter"))
    assert contents(copy) == before, "nothing else was touched"
