"""Kills: of the critic alone, and of a whole cell; what was received is never asked for again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import conftest
from conftest import run_nsft
from critic_pairs import collect, critic, pairs, reply
from nsft_exp.keys import digest
from nsft_exp.records import to_json
from scripted_critic import Answer, Script, Server, completion, sensible, serving

CANARY = "sk-canary-7f3a9c51d2"
TESTS = Path(__file__).parent


def replies_by_words(cache: Path, server: Server) -> set[str]:
    """The requests (their user's message) whose reply is on the disk."""
    rows = [json.loads(line) for line in (cache / "calls.jsonl").read_bytes().split(b"\n")[:-1]]
    received = {row["key"] for row in rows if row["event"] == "reply"}
    return {body["messages"][1]["content"] for body in server.bodies if digest(body)[:24] in received}


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert ready(), "the process ended, or took too long, before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_critic_that_is_killed_again_and_again_asks_for_nothing_twice(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from critic_pairs import critic, pairs\n"
        "for c in critic(sys.argv[1], Path(sys.argv[2]), concurrency=3).corrections(pairs(40)): pass\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])}
    slow = Answer(body=completion(reply()), seconds=0.03)
    with serving(lambda body, number: slow) as server:
        for kills, goal in enumerate((5, 14, 27), 1):
            command = [sys.executable, "-c", code, server.base_url, str(tmp_path)]
            process = subprocess.Popen(command, env=environment)
            kill_when(process, lambda goal=goal: len(server.answered) >= goal)  # type: ignore[misc]
            time.sleep(0.1)  # what was in flight arrives nowhere
            kept = replies_by_words(tmp_path, server)
            asked_before = Counter(server.asked)
            assert len(kept) >= goal - 3 * kills  # each kill loses at most what was in flight
            found, line = collect(critic("http://127.0.0.1:9/v1", tmp_path), pairs(40))
            assert len(found) == len(kept), "every received reply can be used"
            assert line
        asking = critic(server, tmp_path)
        found, line = collect(asking, pairs(40))
    assert ([c.status for c in found], line) == (["ok"] * 40, "")
    again = Counter(server.asked) - asked_before
    assert not kept & set(again), "a reply that was on the disk was asked for again"
    usage = asking.usage([to_json(c) for c in found])
    assert usage["requests"] == 40 + usage["lost"] + usage["failed"].get("connection", 0)
    assert usage["replies"] == 40
    assert len(server.asked) - 40 <= usage["lost"] <= 3 * 3


def test_a_run_that_is_broken_off_stops_asking_and_can_go_on(tmp_path: Path) -> None:
    slow = Answer(body=completion(reply()), seconds=0.05)
    with serving(lambda body, number: slow) as server:
        running = critic(server, tmp_path, concurrency=2).corrections(pairs(20))
        assert next(running).id == "s0"
        running.close()  # type: ignore[attr-defined]
        time.sleep(0.1)
        begun = len(server.asked)
        assert begun <= 5
        found, line = collect(critic(server, tmp_path), pairs(20))
        assert len(server.asked) <= 20 + 2
    assert (len(found), line) == (20, "")


def test_a_critic_sees_what_another_one_receives_meanwhile(tmp_path: Path) -> None:
    with serving(lambda body, number: Answer(body=completion(reply()))) as server:
        early = critic(server, tmp_path)
        collect(early, pairs(2))
        collect(critic(server, tmp_path), pairs(8))
        assert (len(collect(early, pairs(8))[0]), len(server.asked)) == (8, 8)


def inventive(seconds: float) -> Script:
    """Finds an error in whatever a random model has said, so that there are dialogues to train on."""
    turns = [("Is there a zebra?", "No, there is no zebra."), ("Is it drawn?", "Yes, everything is drawn.")]
    rows = [{"question": question, "answer": answer} for question, answer in turns]

    def script(body: dict[str, Any], number: int) -> Answer:
        rejected = json.loads(body["messages"][1]["content"])["rejected"]
        error = {"category": "existence", "wrong": rejected.strip()[:6].strip(), "right": ""}
        return Answer(body=completion(reply([error], rows)), seconds=seconds)

    return script


CELL = (*conftest.DEBUG, *conftest.POPE_ONLY, "method=nsft", "critic=llm", "critic.model=scripted")
CELL += ("belongs.critic=[llm]", "source.size=24", "critic.concurrency=3", "critic.backoff=0.01")
CELL += ("pairing.max_new_tokens=16",)


def results(root: Path) -> dict[str, bytes]:
    """Corrections, adapter and scores of a cell, by the stage's name without its key."""
    names = ("records.jsonl", "metrics.jsonl", "adapter_model.safetensors", "answers.jsonl")
    files = [p for p in sorted((root / "runs").rglob("*")) if p.name in names]
    return {
        f"{p.parent.parent.name}/{p.parent.name.rpartition('-')[0]}/{p.name}": p.read_bytes() for p in files
    }


def manifest(root: Path) -> dict[str, Any]:
    (file,) = (root / "runs" / "critique").glob("*/manifest.json")
    return json.loads(file.read_text("utf-8"))


@pytest.mark.slow
def test_a_cell_that_is_killed_half_way_goes_on_without_asking_twice(tmp_path: Path, toy_data: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    with serving(inventive(0.05)) as server:
        words = [*CELL, f"critic.base_url={server.base_url}"]
        command = [sys.executable, "-m", "nsft_exp", *words, f"paths.data={toy_data}"]
        process = subprocess.Popen(command, cwd=killed, stderr=subprocess.DEVNULL)
        kill_when(process, lambda: len(server.answered) >= 9)
        time.sleep(0.2)
        kept = replies_by_words(killed / "runs" / "critic", server)
        before = Counter(server.asked)
        assert 6 <= len(kept) < 24
        assert run_nsft(killed, toy_data, *words) == 0
        again = Counter(server.asked) - before
        assert not kept & set(again)
        usage = manifest(killed)["usage"]
        assert usage["requests"] == usage["replies"] + usage["lost"]
        assert len(server.asked) - usage["replies"] <= usage["lost"] <= 3
        assert run_nsft(whole, toy_data, *words) == 0
    assert manifest(killed)["statuses"]["ok"] >= 12
    assert results(killed) == results(whole)
    assert len(results(whole)) >= 3
    assert manifest(whole)["usage"]["lost"] == 0


BAD: dict[int, Answer] = {
    0: Answer(
        401, {"error": {"message": f"Incorrect API key provided: {CANARY}", "code": "invalid_api_key"}}
    ),
    1: Answer(500, {"error": {"message": "oops"}}),
    2: Answer(429, {"error": {"message": "slow down"}}, headers={"Retry-After": "0"}),
    3: Answer(body=json.dumps(completion(reply())).encode()[:60]),
    5: Answer(body=completion(json.dumps({"errors": [{"wrong": 1, "right": "red"}], "dialogue": []}))),
    6: Answer(body={**completion(""), "choices": []}),
    7: Answer(body=completion(None, refusal=f"I won't, {CANARY}.")),
    8: Answer(body=completion(reply()[:-30], finish="length")),
}
"""What the server does with some of its requests instead of answering."""


def test_a_cell_counts_all_that_went_wrong_and_leaves_no_trace_of_the_key(
    tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    answers = sensible()

    def script(body: dict[str, Any], number: int) -> Answer:
        answer = BAD.get(number) or answers(body, number)
        told = isinstance(answer.body, dict) and answer.status == 200
        return replace(answer, body={**answer.body, "system_fingerprint": CANARY}) if told else answer

    with serving(script) as server:
        words = [*CELL, f"critic.base_url={server.base_url}", "hydra.verbose=true", "source.size=8"]
        words += ["critic.concurrency=1", "logger=wandb"]
        assert run_nsft(tmp_path, toy_data, *words) in (1, 2)
        refused = capfd.readouterr().err
        assert run_nsft(tmp_path, toy_data, *words) == 0
        assert server.keys[-1] == f"Bearer {CANARY}"
    assert "the key in the environment variable OPENAI_API_KEY was refused (401)" in " ".join(refused.split())
    assert CANARY not in refused + "".join(capfd.readouterr())
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any("nsft.log" in file.name for file in files)
    assert any(file.suffix == ".wandb" for file in files)
    assert [file for file in files if CANARY.encode() in file.read_bytes()] == []
    sums, wrong = manifest(tmp_path), {"cut": 1, "empty": 1, "refused": 1, "unparseable": 1}
    assert sums["records"] == sum(sums["statuses"].values()) == 8
    assert {status: sums["statuses"].get(status) for status in wrong} == wrong
    assert sums["usage"]["failed"] == {"401": 1, "429": 1, "500": 1, "broken": 1}
    assert sums["usage"]["replies"] == len(server.asked) - 4 == sums["usage"]["requests"] - 4
    assert sums["usage"]["lost"] == 0


def test_a_cell_whose_budget_is_spent_is_refused_and_goes_on_with_more(
    tmp_path: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(inventive(0.0)) as server:
        words = [*CELL, f"critic.base_url={server.base_url}", "source.size=12"]
        assert run_nsft(tmp_path, toy_data, *words, "critic.budget.requests=4") in (1, 2)
        said = " ".join(capsys.readouterr().err.split())
        assert "the budget is spent: requests 4 of 4; raise critic.budget.requests" in said
        assert len(server.asked) == 4
        assert not list((tmp_path / "runs" / "critique").glob("*/manifest.json")), "it is not complete"
        assert run_nsft(tmp_path, toy_data, *words) == 0
        assert len(server.asked) == len(set(server.asked))
