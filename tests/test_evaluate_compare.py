"""`nsft evaluate` of a folder, and `nsft compare` of two models on the same items."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmark_files import write_lines
from conftest import POPE_ONLY, ROOT, SMALL, run_nsft
from nsft_exp.compare import compare
from nsft_exp.evaluate import model_words
from nsft_exp.records import UserError
from nsft_exp.score import score
from test_benchmark_pope import IDS, write_pope

BASE = ROOT / "src" / "nsft_exp" / "toy" / "base"
TRUTH = ["yes", "no"] * 6
"""The answers to write_pope's questions: a split is (image a: yes, no), (image b: yes, no)."""
ALWAYS_YES = ["yes"] * 12
RIGHT_ON_A = ["yes", "no", "yes", "yes"] * 3


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scores of three models in `truth`, `yes` and `half`."""
    root = tmp_path_factory.mktemp("scored")
    write_pope(root / "pope")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, answers in (("truth", TRUTH), ("yes", ALWAYS_YES), ("half", RIGHT_ON_A)):
            lines = [{"question_id": k, "text": t} for k, t in zip(IDS, answers, strict=True)]
            write_lines(root / f"{name}.jsonl", lines)
            words = ["benchmark=pope", "benchmark.root=pope", f"answers={name}.jsonl"]
            assert score([*words, f"out={name}/pope.json"]) == 0
    return root


@pytest.fixture
def folder(scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with those scores, for a test to change."""
    shutil.copytree(scored, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def metrics(file: str) -> dict[str, Any]:
    return {row["metric"]["name"]: row for row in json.loads(Path(file).read_text())["metrics"]}


def test_a_difference_that_every_image_shows_has_an_interval_without_width(folder: Path) -> None:
    assert compare(["truth", "yes", "out=both.json"]) == 0
    found = metrics("both.json")["f1"]  # always yes: precision 1/2, recall 1
    assert found["a"] == pytest.approx(100)
    assert found["b"] == pytest.approx(200 / 3)
    assert found["difference"]["value"] == pytest.approx(100 / 3)
    assert found["difference"]["bootstrap"] == pytest.approx([100 / 3, 100 / 3])
    assert found["difference"]["clusters"] == 2
    assert found["p_holm"] < 0.01


def test_a_difference_on_one_of_two_images_is_open(folder: Path) -> None:
    assert compare(["truth/pope.json", "half/pope.json", "out=both.json", "replicates=4000"]) == 0
    found = metrics("both.json")["random_accuracy"]
    # image b alone has an error, one of its two answers: drawn 0, 1 or 2 times the gap is 0, 25 or 50
    assert found["difference"]["value"] == pytest.approx(25)
    assert found["difference"]["bootstrap"] == pytest.approx([0, 50])
    assert found["b_interval"] == pytest.approx([50, 100])
    assert found["difference"]["p_bootstrap"] == pytest.approx(0.5, abs=0.05)


def test_the_headline_is_printed_with_its_intervals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(["half", "half"])
    said = capsys.readouterr().out
    assert "POPE F1" in said
    assert "+0.00" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["truth"], "takes two places, not 1"),
        (["truth", "yes", "replicates=0"], "replicates=0: must be a number of at least 1"),
        (["truth", "nowhere"], "nowhere: there is no such file or folder"),
        (["truth", "pope"], "pope: holds no scores of nsft score"),
        (["truth", "old.json"], "old.json: does not say how it was scored; score the answers again"),
        (["truth", "foreign.json"], "os.system is no benchmark of conf/benchmark"),
        (["truth", "other.json"], "item .* is about a.jpg in one and z.jpg in the other"),
        (["truth", "several"], "several: holds several results of pope; name one model's alone"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(
    folder: Path, words: list[str], message: str
) -> None:
    summary = json.loads(Path("truth/pope.json").read_text())
    items = Path("truth/pope.items.jsonl").read_text()
    Path("old.items.jsonl").write_text(items)
    foreign = summary | {"config": {"_target_": "os.system", "command": "true"}, "items": "old.items.jsonl"}
    Path("foreign.json").write_text(json.dumps(foreign))
    Path("other.items.jsonl").write_text(items.replace("a.jpg", "z.jpg"))
    Path("other.json").write_text(json.dumps(summary | {"items": "other.items.jsonl"}))
    Path("old.json").write_text(
        json.dumps({k: v for k, v in (summary | {"items": "old.items.jsonl"}).items() if k != "config"})
    )
    Path("several").mkdir()
    for name in ("a", "b"):
        Path(f"several/{name}.json").write_text(json.dumps(summary))
    Path("several/pope.items.jsonl").write_text(items)
    with pytest.raises(UserError, match=message):
        compare(words)


def test_other_protocols_stand_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads(Path("yes/pope.json").read_text())
    Path("yes/pope.json").write_text(json.dumps(summary | {"protocol": "another"}))
    with pytest.raises(UserError, match=r"no benchmark in common .*pope under another stands alone"):
        compare(["truth", "yes"])


# --- nsft evaluate ---------------------------------------------------------------------------------


def test_a_folder_is_evaluated_and_its_scores_compare(
    tmp_path: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", f"vlm={BASE}", "limit=4", *SMALL, *POPE_ONLY, "vlm.device=cpu", "launch=inline")
    assert run_nsft(tmp_path, toy_data, *words, "to=mine") == 0
    summary = json.loads((tmp_path / "mine" / "pope.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "mine" / "pope.items.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert summary["benchmark"] == "pope"
    assert summary["counts"]["scored"] == 4
    made = next((tmp_path / "runs" / "evaluate").iterdir()) / "answers.jsonl"
    before = made.stat().st_mtime_ns
    assert run_nsft(tmp_path, toy_data, *words, "to=again") == 0
    assert made.stat().st_mtime_ns == before
    capsys.readouterr()
    assert compare([str(tmp_path / "mine"), str(tmp_path / "again")]) == 0
    shown = capsys.readouterr().out  # four questions of one split: the mean over three is not defined
    assert "–" in shown
    assert "nan" not in shown


def test_training_words_and_unknown_folders_are_refused(
    tmp_path: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_nsft(tmp_path, toy_data, "evaluate", "vlm=toy", "seed=1") == 2
    assert "seed=1: nsft evaluate takes a model as it is" in capsys.readouterr().err
    assert run_nsft(tmp_path, toy_data, "evaluate", "vlm=toi") == 2
    assert "vlm=toi: is neither an option (llava15_13b," in capsys.readouterr().err


def test_the_model_type_chooses_the_option_and_the_file_its_precision(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava_next", "torch_dtype": "float16"}')
    assert model_words(tmp_path) == [
        "vlm=llava_next_7b",
        f"vlm.path='{tmp_path}'",
        "vlm.revision=null",
        "vlm.dtype=float16",
    ]
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="model_type bert is not known here; there are llava, llava_next"):
        model_words(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(UserError, match="names no model_type"):
        model_words(tmp_path)
