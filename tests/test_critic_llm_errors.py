"""Servers that misbehave, missing keys, spent budgets: one line each, and nothing received is lost."""

from __future__ import annotations

import json
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from critic_pairs import collect, critic, first, pairs, reply, saying
from nsft_exp.critic.llm import LLM
from nsft_exp.llm.faults import wait_of
from nsft_exp.records import UserError, to_json
from scripted_critic import Answer, completion, serving

CANARY = "sk-canary-7f3a9c51d2"
GOOD = saying(reply())


def error_of(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "code": code}}


def usage_of(asking: LLM, found: list[Any]) -> dict[str, Any]:
    return asking.usage([to_json(c) for c in found])


def check_line(line: str) -> None:
    assert line.startswith("critic: http")
    assert "\n" not in line


def test_a_refused_connection_is_one_line_and_is_tried_again_first(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    found, line = collect(critic(url, tmp_path, attempts=3), pairs(5))
    assert not found
    check_line(line)
    assert url in line
    assert "no reply after 3 attempts (connection" in line
    with serving(GOOD, port=int(url.split(":")[2].split("/")[0])) as server:
        asking = critic(server, tmp_path)
        found, line = collect(asking, pairs(5))
    assert (len(found), line) == (5, "")
    usage = usage_of(asking, found)
    assert usage["requests"] == 5 + usage["failed"]["connection"]
    assert usage["failed"]["connection"] >= 3


def test_a_server_that_dies_half_way_leaves_what_came_and_the_rest_is_asked_later(tmp_path: Path) -> None:
    with serving(GOOD) as server:
        found, line = collect(critic(server, tmp_path), pairs(4))
        assert not line
    found, line = collect(critic(server, tmp_path), pairs(10))
    assert [c.id for c in found] == ["s0", "s1", "s2", "s3"]
    assert "4 of 10 replies are kept" in line
    assert str(tmp_path / "calls.jsonl") in line


def test_a_reply_that_takes_too_long_is_given_up_and_asked_again(tmp_path: Path) -> None:
    with serving(first([Answer(body=completion(reply()), seconds=0.6)] * 2, GOOD)) as server:
        found, line = collect(critic(server, tmp_path, timeout=0.15), pairs(1))
        assert (found, len(server.asked)) == ([], 2)
        check_line(line)
        assert "2 x timeout" in line
        asking = critic(server, tmp_path, timeout=5.0)
        found, line = collect(asking, pairs(1))
    assert [c.status for c in found] == ["ok"]
    assert usage_of(asking, found)["failed"] == {"timeout": 2}
    assert asking.ledger.spent("scripted").output > 2 * asking.max_tokens, "it may have been charged for"


def test_retry_after_is_obeyed_by_all_workers(tmp_path: Path) -> None:
    busy = Answer(429, error_of("slow down"), headers={"Retry-After": "2"})
    with serving(first([busy], GOOD)) as server:
        asking = critic(server, tmp_path, concurrency=1, attempts=3)
        found, line = collect(asking, pairs(3))
    assert ([c.status for c in found], line) == (["ok"] * 3, "")
    assert usage_of(asking, found)["failed"] == {"429": 1}
    assert server.times[1] - server.times[0] >= 2
    assert max(b - a for a, b in pairwise(server.times[1:])) < 2


def test_no_worker_sends_while_the_server_asks_to_wait(tmp_path: Path) -> None:
    busy = Answer(429, error_of("slow down"), headers={"Retry-After": "2"})
    slow = Answer(body=completion(reply()), seconds=0.1)
    with serving(lambda body, number: busy if number == 0 else slow) as server:
        found, _ = collect(critic(server, tmp_path, concurrency=3), pairs(9))
    assert len(found) == 9
    gaps = [b - a for a, b in pairwise(server.times)]
    assert max(gaps) > 1.5
    assert sum(gap > 1.5 for gap in gaps) == 1


def test_a_wait_of_hours_stops_with_what_was_received(tmp_path: Path) -> None:
    with serving(first([Answer(429, error_of("enough"), headers={"Retry-After": "7200"})], GOOD)) as server:
        _, line = collect(critic(server, tmp_path, concurrency=1), pairs(3))
        assert len(server.asked) == 1
    check_line(line)
    assert "asks to wait 7200 seconds" in line


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    class Response:
        def __init__(self, **headers: str) -> None:
            self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    assert wait_of(Response(retry_after="2.5")) == 2.5
    assert wait_of(Response(retry_after_ms="1500")) == 1.5
    assert wait_of(Response(retry_after="Thu, 01 Jan 1970 00:01:40 GMT"), now=40.0) == 60.0
    assert wait_of(Response(retry_after="Thu, 01 Jan 1970 00:01:40 GMT"), now=500.0) == 0.0
    assert wait_of(Response(retry_after="soon")) is None
    assert wait_of(Response()) is None


def test_a_used_up_quota_stops_at_once(tmp_path: Path) -> None:
    spent = Answer(429, error_of("You exceeded your current quota", "insufficient_quota"))
    with serving(lambda body, number: spent) as server:
        _, line = collect(critic(server, tmp_path, concurrency=1), pairs(5))
        assert len(server.asked) == 1
    check_line(line)
    assert "quota is used up" in line


def test_errors_of_the_server_are_tried_again_and_counted(tmp_path: Path) -> None:
    bad = [Answer(500, error_of("oops")), Answer(503, b"<html>busy</html>")]
    with serving(first(bad, GOOD)) as server:
        asking = critic(server, tmp_path, attempts=3, concurrency=1)
        found, line = collect(asking, pairs(2))
    assert ([c.status for c in found], line) == (["ok", "ok"], "")
    assert usage_of(asking, found)["failed"] == {"500": 1, "503": 1}


def test_a_server_that_only_fails_is_left_alone_after_some_calls_in_a_row(tmp_path: Path) -> None:
    with serving(lambda body, number: Answer(500, error_of("oops"))) as server:
        found, line = collect(critic(server, tmp_path, attempts=1, concurrency=2), pairs(60))
        assert 20 <= len(server.asked) <= 22
    assert not found
    check_line(line)
    assert "500: oops" in line


def test_one_call_that_never_succeeds_does_not_keep_the_others_back(tmp_path: Path) -> None:
    def script(body: dict[str, Any], number: int) -> Answer:
        poisoned = "voice 1." in body["messages"][1]["content"]
        return Answer(500, error_of("oops")) if poisoned else Answer(body=completion(reply()))

    with serving(script) as server:
        found, line = collect(critic(server, tmp_path), pairs(4))
    assert [c.id for c in found] == ["s0", "s2", "s3"]
    assert "3 of 4 replies are kept" in line
    assert "2 x 500" in line


@pytest.mark.parametrize(
    "half",
    [
        Answer(body=completion(reply()), cut=60),
        Answer(body=json.dumps(completion(reply())).encode()[:60]),
        Answer(body=b""),
        Answer(body=b"\xff\xfe\x00"),
        Answer(body=[1, 2]),
        Answer(body=error_of("overloaded")),
    ],
    ids=["connection cut", "half a JSON", "empty", "bytes", "a list", "error with status 200"],
)
def test_a_body_that_is_no_reply_is_asked_again(half: Answer, tmp_path: Path) -> None:
    with serving(first([half], GOOD)) as server:
        asking = critic(server, tmp_path, concurrency=1)
        found, line = collect(asking, pairs(1))
        assert len(server.asked) == 2
    assert ([c.status for c in found], line) == (["ok"], "")
    assert sum(usage_of(asking, found)["failed"].values()) == 1


def test_a_reply_without_choices_is_a_status_and_is_not_paid_twice(tmp_path: Path) -> None:
    with serving(lambda body, number: Answer(body={**completion(""), "choices": []})) as server:
        found, line = collect(critic(server, tmp_path), pairs(2))
        assert ([c.status for c in found], line) == (["empty"] * 2, "")
        collect(critic(server, tmp_path), pairs(2))
        assert len(server.asked) == 2


def test_a_content_filters_verdict_is_a_refusal_and_final(tmp_path: Path) -> None:
    with serving(lambda body, number: Answer(400, error_of("filtered", "content_filter"))) as server:
        found, line = collect(critic(server, tmp_path), pairs(2))
        assert len(server.asked) == 2
        collect(critic(server, tmp_path), pairs(2))
        assert len(server.asked) == 2
    assert ([(c.status, c.details["reason"]) for c in found], line) == ([("refused", "filtered")] * 2, "")


def test_a_wrong_model_name_says_what_the_server_serves(tmp_path: Path) -> None:
    missing = Answer(404, error_of("The model `gtp-4` does not exist.", "model_not_found"))
    with serving(lambda body, number: missing, models=("llama", "qwen")) as server:
        found, line = collect(critic(server, tmp_path, model="gtp-4", concurrency=1), pairs(5))
        assert len(server.asked) == 1
    assert not found
    check_line(line)
    assert "knows no model 'gtp-4'" in line
    assert "it serves llama, qwen: set critic.model" in line


def test_a_request_that_the_server_refuses_stops_with_its_words(tmp_path: Path) -> None:
    with serving(lambda body, number: Answer(400, error_of("response_format is not supported"))) as server:
        _, line = collect(critic(server, tmp_path, concurrency=1), pairs(5))
        assert len(server.asked) == 1
    check_line(line)
    assert "response_format is not supported" in line
    assert "critic.guided=none" in line


# --- keys --------------------------------------------------------------------------------------------


def test_a_missing_key_is_one_line_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    asking = critic("https://llm.invalid/v1", tmp_path, key_env="SOME_KEY")
    found, line = collect(asking, pairs(2))
    assert not found
    check_line(line)
    assert "the environment has no SOME_KEY; set it" in line
    assert not any(tmp_path.iterdir())


def test_the_key_comes_from_the_named_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", CANARY)
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    with serving(GOOD) as server:
        collect(critic(server, tmp_path, key_env="SOME_KEY"), pairs(1))
        collect(critic(server, tmp_path, key_env=None), pairs(1, start=5))
    assert server.keys[0] == f"Bearer {CANARY}"
    assert CANARY not in server.keys[1]
    assert "another" not in server.keys[1]


@pytest.mark.parametrize("key", [f"{CANARY} x", f"{CANARY}\nX: y", f"{CANARY}é"])
def test_a_key_that_cannot_be_sent_is_refused_unseen(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with serving(GOOD) as server:
        _, line = collect(critic(server, tmp_path), pairs(1))
        assert not server.asked
    check_line(line)
    assert "OPENAI_API_KEY holds no key" in line
    assert CANARY not in line


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_a_server_that_repeats_the_key_does_not_get_it_into_lines_or_files(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    telling = Answer(status, error_of(f"Incorrect key: {CANARY}"))
    with serving(first([telling] * 2, saying(f"Your key is {CANARY}."))) as server:
        _, line = collect(critic(server, tmp_path, concurrency=1), pairs(1))
        assert server.keys[0] == f"Bearer {CANARY}"
        found, _ = collect(critic(server, tmp_path, concurrency=1), pairs(3))
    check_line(line)
    assert CANARY not in line
    assert all(CANARY not in repr(correction) for correction in found)
    assert not any(CANARY.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


# --- budget ------------------------------------------------------------------------------------------


def test_a_budget_of_requests_is_kept_to_the_last_one(tmp_path: Path) -> None:
    slow = Answer(body=completion(reply()), seconds=0.02)
    with serving(lambda body, number: slow) as server:
        found, line = collect(critic(server, tmp_path, budget={"requests": 5}), pairs(12))
        assert len(server.asked) == 5
        assert len(found) == 5
        check_line(line)
        assert "the budget is spent: requests 5 of 5; raise critic.budget.requests" in line
        assert "5 of 12 replies are kept" in line
        found, line = collect(critic(server, tmp_path, budget={"requests": 5}), pairs(12))
        assert (len(server.asked), len(found)) == (5, 5), "the budget holds over all runs"
        found, line = collect(critic(server, tmp_path, budget={"requests": 12}), pairs(12))
        assert (len(server.asked), len(found), line) == (12, 12, "")


@pytest.mark.parametrize("limit", [9000, 14000])
def test_a_budget_of_tokens_is_never_overspent(limit: int, tmp_path: Path) -> None:
    answer = {**completion(reply()), "usage": {"prompt_tokens": 900, "completion_tokens": 100}}
    with serving(lambda body, number: Answer(body=answer, seconds=0.01)) as server:
        asking = critic(server, tmp_path, budget={"tokens": limit}, max_tokens=500)
        found, line = collect(asking, pairs(60))
    used = 1000 * len(server.asked)
    bound = asking.call(*pairs(1)[0]).bound
    assert limit - bound.tokens < used <= limit
    assert "the budget is spent: tokens" in line
    assert asking.ledger.spent("scripted").tokens == used
    assert len(found) == len(server.asked)


def test_a_budget_of_money_goes_by_the_prices(tmp_path: Path) -> None:
    answer = {**completion(reply()), "usage": {"prompt_tokens": 1000, "completion_tokens": 500}}
    prices = {"input": 2.0, "output": 8.0}  # a call costs 0.002 + 0.004
    with serving(lambda body, number: Answer(body=answer)) as server:
        asking = critic(
            server, tmp_path, budget={"money": 0.05}, prices=prices, max_tokens=500, concurrency=1
        )
        found, line = collect(asking, pairs(20))
    cost = 0.006 * len(server.asked)
    dearest = asking.budget.cost(asking.call(*pairs(1)[0]).bound)
    assert dearest is not None
    assert 0.05 - dearest < cost <= 0.05
    assert "raise critic.budget.money" in line
    assert usage_of(asking, found)["money"] == pytest.approx(cost)


def test_another_model_has_a_budget_of_its_own(tmp_path: Path) -> None:
    with serving(GOOD) as server:
        collect(critic(server, tmp_path, budget={"requests": 2}), pairs(2))
        found, line = collect(critic(server, tmp_path, model="other", budget={"requests": 2}), pairs(2))
    assert (len(found), line) == (2, "")


def test_a_full_disk_stops_the_calls(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with serving(GOOD) as server, pytest.raises(UserError, match=r"cannot write .*critic\.cache") as error:
        list(critic(server, blocked / "cache").corrections(pairs(3)))
    assert "\n" not in str(error.value)
    assert not server.asked
