"""lmms-eval as a program of its own: what it is asked for, what its results mean, and a real run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark_files import write_json, write_lines
from conftest import ROOT, run_nsft
from lmms_tasks import write_tasks
from nsft_exp.benchmark.lmms_eval import LmmsEval
from nsft_exp.evaluating import is_evaluated
from nsft_exp.interfaces import Address
from nsft_exp.records import UserError
from nsft_exp.store import StageFolder
from scripted_critic import Answer, completion, serving


@pytest.fixture(scope="module")
def lmms_python() -> str:
    """The interpreter that has lmms-eval: that of `make lmms-env`, or NSFT_LMMS_PYTHON."""
    python = os.environ.get("NSFT_LMMS_PYTHON", str(ROOT / ".venv-lmms" / "bin" / "python"))
    if not Path(python).is_file():
        pytest.skip("there is no lmms-eval environment: make lmms-env, or name one with NSFT_LMMS_PYTHON")
    return python


def sample(doc: int, reply: str, **values: float) -> dict[str, Any]:
    return {"doc_id": doc, "target": "no", "filtered_resps": reply, "doc_hash": "x", "input": "Q?", **values}


def write_results(out: Path, lost: bool = False) -> Path:
    """What lmms-eval leaves of a group `both` of two tasks, and of one that is filtered and has no number."""
    results = {
        "a": {"alias": "a", "right,none": 0.5, "right_stderr,none": 0.1, "right_stderr_clt,none": "N/A"},
        "b": {"alias": "b", "right,none": 1, "words,none": "N/A"},
        "both": {"alias": "both", "right,none": 0.75},
        "c": {"alias": "c", "exact,strict": 0.25, "nan,none": float("nan")},
    }
    tasks = ("a", "b", "c")
    value = {
        "results": results,
        "group_subtasks": {"both": ["a", "b"], "a": [], "b": [], "c": []},
        "versions": {"a": "Yaml", "b": 2.0},
        "n-samples": {task: {"original": 2, "effective": 2} for task in tasks},
        "git_hash": "abc",
    }
    write_json(out / "m" / "2026_results.json", value)
    for task in tasks:
        write_lines(out / "m" / f"2026_samples_{task}.jsonl", [sample(0, "Yes", right=0.0), sample(1, "no")])
    if lost:
        reply = "[LMMS_EVAL_REQUEST_FAILED after 2 retries] Error code: 400"
        write_lines(out / "m" / "2026_samples_a.jsonl", [sample(0, "Yes"), sample(1, reply, right=0.0)])
    return out


def test_the_key_is_in_the_environment_and_nowhere_else() -> None:
    benchmark = LmmsEval(["mmstar", "ai2d"], folder="mine", python="py", concurrency=4, attempts=2)
    address = Address("http://host:1/v1", "org/model", "secret")
    words, more = benchmark.command(address, Path("out"), 7)
    assert words[:7] == ["py", "-m", "lmms_eval", "eval", "--model", "async_openai", "--batch_size"]
    asked = dict(zip(words[6::2], words[7::2], strict=False)) | {"--log_samples": "--log_samples" in words}
    assert asked["--log_samples"]
    model = words[words.index("--model_args") + 1].split(",")
    assert {"model=org/model", "base_url=http://host:1/v1", "num_cpus=4", "max_retries=2"} <= set(model)
    assert [words[words.index(w) + 1] for w in ("--tasks", "--include_path", "--limit", "--output_path")] == [
        "mmstar,ai2d",
        "mine",
        "7",
        "out",
    ]
    assert "secret" not in " ".join(words)
    assert "secret" not in repr(address)
    assert more == {"OPENAI_API_KEY": "secret"}


def test_results_are_numbers_and_what_has_none_is_null(tmp_path: Path) -> None:
    summary, records = LmmsEval("both,c").outcome(write_results(tmp_path))
    assert summary["metrics"] == {
        "a/right": 0.5,
        "b/right": 1.0,
        "b/words": None,
        "both/right": 0.75,
        "c/exact,strict": 0.25,
        "c/nan": None,
    }
    assert (summary["n"], summary["complete"], summary["counts"]["unanswered"]) == (6, True, 0)
    assert summary["protocol"] == "lmms-eval 0.7.3, tasks both, c"
    assert (summary["git_hash"], summary["tasks"]) == ("abc", {"a": "Yaml", "b": 2.0, "c": None})
    assert [(r["id"], r["answer"]) for r in records[:2]] == [("a:0", "Yes"), ("a:1", "no")]
    assert records[0]["values"] == {"right": 0.0}


def test_a_request_that_failed_leaves_its_task_and_its_group_without_a_score(tmp_path: Path) -> None:
    summary, records = LmmsEval("both,c").outcome(write_results(tmp_path, lost=True))
    found = summary["metrics"]
    assert (found["a/right"], found["both/right"], found["b/right"]) == (None, None, 1.0)
    assert (summary["complete"], summary["counts"]) == (False, {"scored": 5, "unanswered": 1})
    assert records[1]["answer"] is None
    assert "Error code: 400" in records[1]["reason"]


def test_samples_that_are_not_there_make_the_results_incomplete(tmp_path: Path) -> None:
    write_results(tmp_path)
    (tmp_path / "m" / "2026_samples_b.jsonl").unlink()
    assert LmmsEval("both,c").outcome(tmp_path)[0]["complete"] is False


def test_an_evaluation_with_lost_requests_is_done_again_and_a_whole_one_is_not(tmp_path: Path) -> None:
    benchmark = LmmsEval("both,c")
    for lost in (False, True):
        folder = StageFolder(tmp_path / f"stage-{lost}")
        folder.path.mkdir()
        folder.finish(benchmark.outcome(write_results(tmp_path / f"out-{lost}", lost))[0])
        assert is_evaluated(folder) is not lost


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"python": "nowhere/python"}, "nowhere/python: there is no such interpreter; make lmms-env"),
        ({"python": sys.executable}, "has lmms-eval none, not 0.7.3; make lmms-env"),
        (
            {"python": sys.executable, "folder": "nowhere"},
            "benchmark.folder=nowhere: there is no such folder",
        ),
    ],
)
def test_an_environment_that_does_not_fit_is_refused_before_anything_runs(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        LmmsEval("a", **options).requests()


def test_no_task_and_no_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name at least one task"):
        LmmsEval([])
    with pytest.raises(UserError, match="lmms-eval has left no results"):
        LmmsEval("a").outcome(tmp_path)


def test_a_model_that_is_not_served_is_refused(
    tmp_path: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_nsft(tmp_path, toy_data, "evaluate", "vlm=tiny_random", "benchmark=lmms_eval", "tasks=[a]") == 2
    )
    assert "benchmark lmms_eval: asks the model's server itself; serve it" in capsys.readouterr().err


def yes_but_once(body: dict[str, Any], number: int) -> Answer:
    """A server that says yes to everything but one question."""
    if "Broken Question 3" in json.dumps(body["messages"]):
        return Answer(status=400, body={"error": {"message": "no"}})
    return Answer(body=completion("Yes"))


@pytest.mark.slow
def test_lmms_eval_scores_a_served_model_and_a_failed_request_is_no_answer(
    tmp_path: Path, toy_data: Path, lmms_python: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    words = ["evaluate", "vlm=server", "server.model=m", "launch=inline", "benchmark=lmms_eval"]
    words += ["tasks=[yes_no,broken]", f"benchmark.folder={write_tasks(tmp_path, lmms_python)}"]
    words += [f"benchmark.python={lmms_python}", "benchmark.attempts=2", "benchmark.backoff=0.1", "to=out"]
    with serving(yes_but_once) as server:
        assert run_nsft(tmp_path, toy_data, *words, f"server.base_url={server.base_url}") == 0
        assert len(server.bodies) == 4 + 4 + 1
        picture, question = server.bodies[0]["messages"][-1]["content"]
        assert picture["image_url"]["url"].startswith("data:image/png;base64,")
        assert "Question " in question["text"]
    out = json.loads((tmp_path / "out" / "lmms_eval.json").read_text())
    assert out["metrics"] == {"yes_no/right": 0.5, "broken/right": None}
    assert (out["complete"], out["counts"]) == (False, {"scored": 7, "unanswered": 1})
    assert out["protocol"] == "lmms-eval 0.7.3, tasks yes_no, broken"
    said = capfd.readouterr()
    assert "out/lmms_eval.json" in said.out
    assert "lmms_eval.evaluator" not in said.out, "what the program says is on stderr"
