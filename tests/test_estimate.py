"""What `nsft estimate` tells before a sweep, against what the sweep then does: real cells, a real server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import DEBUG, POPE_ONLY, run_nsft
from critic_pairs import critic
from judged_files import VET, replying, write_mmvet
from nsft_exp.critic.route import Route
from nsft_exp.critic.template import Template
from nsft_exp.estimate.survey import _possible
from nsft_exp.records import Sample
from scripted_critic import Answer, completion, sensible, serving

Run = Callable[..., int]
KINDS = ("respond", "critique", "train", "evaluate")
SIZE, PILOT = 120, 32
SCENES = f"source.files_from.scenes={SIZE}"
WORDS = (*DEBUG[:2], SCENES, DEBUG[3], *POPE_ONLY, f"source.size={SIZE}", "recipe.batch_size=60")
SHORT = "pairing.max_new_tokens=8"


def estimate(root: Path, data: Path, *words: str) -> dict[str, Any]:
    out = root / "estimate.json"
    assert run_nsft(root, data, "estimate", *words, f"out={out}") == 0
    return json.loads(out.read_text("utf-8"))


def folders(root: Path) -> Counter[str]:
    return Counter({kind: len(list((root / "runs" / kind).glob("*"))) for kind in KINDS})


def distinct(found: dict[str, Any]) -> Counter[str]:
    return Counter({kind: stages["distinct"] for kind, stages in found["stages"].items()})


def unfinished(found: dict[str, Any]) -> dict[str, int]:
    return {kind: s["distinct"] - s["finished"] for kind, s in found["stages"].items()}


def rows(ledger: Path, event: str) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in ledger.read_text("utf-8").splitlines()]
    return [row for row in read if row["event"] == event]


def sweep(url: str) -> tuple[str, ...]:
    llm = f"critic=llm critic.model=scripted critic.base_url={url} critic.prices={{input:10,output:20}}"
    arms = ["method=base", f"method=gt_dpo {SHORT}", f"method=nsft {SHORT} {llm}"]
    listed = ",".join(f'"{arm}"' for arm in arms)
    return ("-m", *WORDS, f"hydra.sweeper.arms=[{listed}]", "seed=0,1")


@pytest.mark.slow
def test_an_estimate_is_what_the_sweep_then_does(tmp_path: Path, toy_data: Path) -> None:
    ledger = tmp_path / "runs" / "critic" / "calls.jsonl"
    with serving(sensible()) as server:
        words = sweep(server.base_url)

        before = estimate(tmp_path, toy_data, *words)
        assert before["cells"] == {"total": 6, "finished": 0}
        expected = {"respond": 1, "critique": 1, "train": 4, "evaluate": 5}  # the base has no seed
        assert distinct(before) == expected == unfinished(before)
        (calls,) = before["calls"]
        assert (calls["known"], calls["at_most"], calls["exact"]) == (0, SIZE, False)
        unknown = (calls["expected"], calls["input_tokens"], before["money"], before["hours"]["total"])
        assert unknown == (None,) * 4, "without a pilot nothing is invented"
        assert not folders(tmp_path).total(), "an estimate runs nothing"
        assert not server.asked

        flown = estimate(tmp_path, toy_data, *words, f"pilot={PILOT}")
        pilot = list(server.asked)
        assert 0 < len(pilot) <= PILOT
        (calls,) = flown["calls"]
        assert flown["vlm"]["records"] == SIZE - PILOT
        assert flown["hours"]["respond"] > 0
        assert flown["hours"]["train"] is None
        assert flown["disk"]["needed"]["respond"] > 0
        assert flown["disk"]["free"] > 0

        assert run_nsft(tmp_path, toy_data, *WORDS, "method=gt_dpo", SHORT, "seed=0") == 0
        exact = estimate(tmp_path, toy_data, *words)
        assert exact["cells"]["finished"] == 1
        assert exact["calls"][0]["exact"], "all pairs are there"
        assert exact["hours"]["train"] is None, "no nSFT has been trained yet"

        assert run_nsft(tmp_path, toy_data, *words) == 0
        assert folders(tmp_path) == expected
        assert len(server.asked) == len(set(server.asked)), "the pilot is kept: nothing is asked again"
        assert len(rows(ledger, "asked")) - len(pilot) == exact["calls"][0]["known"]
        usage = [row["usage"] for row in rows(ledger, "reply")][len(pilot) :]
        used = [sum(each) for each in zip(*usage, strict=True)]
        assert [calls["input_tokens"], calls["output_tokens"]] == pytest.approx(used, rel=0.2)
        assert flown["money"] == pytest.approx((used[0] * 10 + used[1] * 20) / 1e6, rel=0.2)
        told = [
            json.loads(line)
            for f in (tmp_path / "runs" / "respond").glob("*/records.jsonl")
            for line in f.open()
        ]
        generated = sum(row["details"]["tokens"] for row in told[PILOT:])
        assert flown["vlm"]["tokens_of_records"] == pytest.approx(generated, rel=0.2)
        trained = [json.loads(f.read_text()) for f in (tmp_path / "runs" / "train").glob("*/manifest.json")]
        assert sum(t["steps"] for t in trained) <= before["steps"]["left"]
        assert sum(t["steps"] for t in trained) == exact["steps"]["left"] + trained[0]["steps"]

        after = estimate(tmp_path, toy_data, *words)
        assert after["cells"] == {"total": 6, "finished": 6}
        assert not any(unfinished(after).values())
        assert after["hours"]["total"] == after["money"] == after["calls"][0]["at_most"] == 0
        more = estimate(tmp_path, toy_data, *words[:-1], "seed=0,1,2")
        assert unfinished(more) == {"respond": 0, "critique": 0, "train": 2, "evaluate": 2}
        assert more["steps"]["exact"]
        assert more["hours"]["total"] is not None, "cells of the kind have run"


def test_a_pilot_is_kept_and_the_calls_after_it_are_exact(tmp_path: Path, toy_data: Path) -> None:
    with serving(sensible()) as server:
        llm = ("critic=llm", "critic.model=scripted", f"critic.base_url={server.base_url}")
        words = (*DEBUG, *POPE_ONLY, "source.size=12", "method=nsft", SHORT, *llm)
        assert estimate(tmp_path, toy_data, *words)["calls"][0]["at_most"] == 12
        flown = estimate(tmp_path, toy_data, *words, "pilot=8")
        pilot = set(server.asked)
        assert len(pilot) == len(server.asked) == 8, "answers of a random model differ from the truth"
        assert flown["vlm"]["records"] == flown["calls"][0]["at_most"] == flown["calls"][0]["expected"] == 4
        assert run_nsft(tmp_path, toy_data, *words) == 0
        assert len(server.asked) == len(set(server.asked)) == 12
        after = estimate(tmp_path, toy_data, *words)
    assert after["cells"] == {"total": 1, "finished": 1}
    assert not any(unfinished(after).values())
    assert after["calls"][0]["at_most"] == after["hours"]["total"] == after["steps"]["left"] == 0


def test_rounds_that_wait_for_a_training_are_counted_apart(tmp_path: Path, toy_data: Path) -> None:
    words = (*DEBUG, *POPE_ONLY, "source.size=6", "method=nsft_iter", "rounds=2", SHORT)
    found = estimate(tmp_path, toy_data, "-m", *words, "seed=0,1")
    assert distinct(found) == {"respond": 3, "critique": 3, "train": 4, "evaluate": 2}
    assert {kind: found["stages"][kind]["later"] for kind in KINDS[:3]} == dict.fromkeys(KINDS[:3], 2)
    one = estimate(tmp_path, toy_data, *words, "pilot=4")
    assert one["stages"]["respond"] == {"distinct": 2, "finished": 0, "later": 1, "records_left": 2 + 6}
    assert run_nsft(tmp_path, toy_data, *words) == 0
    assert folders(tmp_path) == distinct(one)
    assert not any(unfinished(estimate(tmp_path, toy_data, *words)).values())


def test_calls_of_an_editor_are_known_before_anything_has_run(tmp_path: Path, toy_data: Path) -> None:
    with serving(lambda body, number: Answer(body=completion(f"There is a cup {number}."))) as server:
        editor = ("pairing=edited_llm", "pairing.view=null", "pairing.editor.model=scripted")
        where = f"pairing.editor.base_url={server.base_url}"
        words = (*DEBUG, *POPE_ONLY, "method=povid", *editor, where)
        (calls,) = estimate(tmp_path, toy_data, *words)["calls"]
        assert calls["exact"]
        assert calls["who"] == "editor"
        assert not server.asked
        assert run_nsft(tmp_path, toy_data, *words) == 0
        assert len(server.asked) == calls["known"] > 0


def test_calls_of_a_judge_are_those_of_every_answer_and_run(tmp_path: Path, toy_data: Path) -> None:
    root = write_mmvet(tmp_path / "vet")
    (root / "images").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        Image.new("RGB", (32, 32)).save(root / "images" / name)
    with serving(replying(lambda words, times: "0.5")) as server:
        judge = ("benchmark.judge.model=scripted", f"benchmark.judge.base_url={server.base_url}")
        images = f"benchmark.image_root={root / 'images'}"
        more = ("benchmark.judge.runs=2", "benchmark.max_new_tokens=4", images)
        words = ("preset=debug", "method=base", "benchmark=mmvet", f"benchmark.root={root}", *judge, *more)
        found = estimate(tmp_path, toy_data, *words)
        assert (found["vlm"]["questions"], found["calls"][0]["expected"]) == (len(VET), 2 * len(VET))
        assert run_nsft(tmp_path, toy_data, *words) == 0
        assert len(server.asked) == 2 * len(VET)
        after = estimate(tmp_path, toy_data, *words)
    assert (after["calls"][0]["at_most"], after["vlm"]["questions"]) == (0, 0)


def test_a_route_counts_only_what_goes_to_the_llm(tmp_path: Path) -> None:
    route = Route(
        Template([["{answer}?", "Yes."]], [["{answer}?", "No."]]),
        critic("http://127.0.0.1:1/v1", tmp_path),
        {"a": "short", "b": "long"},
    )
    asked = {
        key: len(list(_possible(route, Sample(key, None, "What?", "cup")))) for key in ("a/1", "b/1", "c")
    }
    assert asked == {"a/1": 0, "b/1": 1, "c": 1}, "where the answer's length decides it may come to a call"


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("method=nsftt", "method=nsftt: there is no such option; did you mean nsft"),
        ("recipe.epoch=2", "recipe.epoch: there is no such key; did you mean recipe.epochs"),
        ("pilot=many", "pilot=many: take a number of records"),
        ("critic=llm", "critic.model has no value"),
        ("+rounds=0", "cell nsft seed 0: rounds=0: take a number from 1 on"),
    ],
)
def test_a_wrong_word_is_refused_in_a_line(
    word: str, line: str, tmp_path: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_nsft(tmp_path, toy_data, "estimate", "-m", *DEBUG, word) == 2
    assert line in capsys.readouterr().err


def test_the_table_says_what_is_a_bound_and_what_is_unknown(
    nsft: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = ("critic=llm", "critic.model=scripted", "critic.base_url=http://127.0.0.1:1/v1")
    assert nsft("estimate", "-m", *DEBUG, *POPE_ONLY, *llm, "seed=0,1") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cells 2 of 2" in said
    assert "answer passes 1 of 1 after sharing" in said
    assert "calls of scripted (critic) at most 8 tokens and money unknown" in said
    assert "never measured" in said
    assert "pilot=32" in said
