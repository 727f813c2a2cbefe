"""Against real servers: the toy VLM and an untrained LLM, both behind `vllm serve` on the CPU."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import DEBUG, POPE_ONLY, ROOT, SMALL, run_nsft
from critic_pairs import collect, critic, pairs
from nsft_exp.critic.prompt import MAX_ANSWER, MAX_ERRORS, MAX_QUESTION
from nsft_exp.records import Decoding, Request, Turn, UserError, to_json
from nsft_exp.vlm.row import rows_of
from nsft_exp.vlm.vllm_engine import written
from serving_vllm import free_port, vllm_serving, write_llm
from test_engine_server import node
from test_engine_vllm import asked, model

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


# --- a VLM -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy_url(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The toy base as it is written for vLLM, behind a server."""
    place, port = tmp_path_factory.mktemp("toy"), free_port()
    written(model("toy"), [], place)
    command = [vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(place)]
    command += ["--served-model-name", "toy", "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--enforce-eager",
        "--max-model-len=1024",
        "--max-num-seqs=32",
        "--trust-request-chat-template",
    ]
    with vllm_serving(command, port, place / "log") as url:
        yield url


def replies_in(cache: Path) -> list[dict[str, Any]]:
    """The bodies of all replies in a ledger, in order of arrival."""
    rows = [json.loads(line) for line in (cache / "calls.jsonl").read_text("utf-8").splitlines()]
    return [json.loads(row["raw"]) for row in rows if row["event"] == "reply"]


def test_prompts_are_trainings_and_greedy_answers_transformers(toy_url: str, tmp_path: Path) -> None:
    history = ("What is it?", "A small red cup.", "Is there a cup?")
    requests = asked(tmp_path / "images", 24)
    requests.append(Request("chat", requests[0].image, tuple(Turn("prompt", text) for text in history)))
    requests.append(Request("text", None, (Turn("prompt", "Is there a dog?"),), decoding=Decoding(8)))
    loaded = model("toy").load()
    ours = dict(loaded.generate(requests))
    server = node(toy_url, tmp_path / "cache", model="toy")
    found = dict(model("toy", engine="server", server=server).answerer().generate(requests))
    assert found.keys() == ours.keys()
    same = [found[name][0].ids == ours[name][0].ids for name in ours]
    assert sum(same) >= 25  # noise pictures leave near ties, which rounding may turn
    for name in (name for name, equal in zip(ours, same, strict=True) if equal):
        assert (found[name][0].text, found[name][0].finish) == (ours[name][0].text, ours[name][0].finish)
    prompts = Counter(tuple(reply["prompt_token_ids"]) for reply in replies_in(tmp_path / "cache"))
    assert prompts == Counter(rows_of(loaded, request)[0].prompt for request in requests)


def test_samples_are_as_many_as_asked_for_and_differ(toy_url: str, tmp_path: Path) -> None:
    (one,) = asked(tmp_path, 1, temperature=1.0)
    request = Request(one.id, one.image, one.turns, n=4, decoding=one.decoding)
    server = node(toy_url, tmp_path / "cache", model="toy", seeded=False)  # vLLM has no seeds on the CPU
    ((_, replies),) = model("toy", engine="server", server=server).answerer().generate([request])
    assert len(replies) == 4
    assert len({reply.text for reply in replies}) > 1


def test_a_server_with_another_template_is_refused(toy_url: str, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    server = node(toy_url, tmp_path / "cache", model="toy", extra={"chat_template": template})
    request = Request("q", None, (Turn("prompt", "Is there a dog?"),))
    with pytest.raises(UserError, match=r"request q: the server read a prompt of .* others; serve what"):
        list(model("toy", engine="server", server=server).answerer().generate([request]))


def test_an_evaluation_by_name_alone_has_the_scores_of_the_model_here(
    toy_url: str, tmp_path: Path, toy_data: Path
) -> None:
    served = ("vlm=server", "server.model=toy", f"server.base_url={toy_url}", "to=served")
    for words in (served, ("vlm=toy", "vlm.device=cpu", "to=here")):
        tests = ("~benchmark.chair_t1", "limit=12", *SMALL)
        assert run_nsft(tmp_path, toy_data, "evaluate", *words, *tests, "launch=inline") == 0
    number = 0
    for name in ("pope", "chair", "vqa"):
        there, here = (json.loads((tmp_path / at / f"{name}.json").read_text()) for at in ("served", "here"))
        for metric, value in there["metrics"].items():
            assert here["metrics"][metric] == pytest.approx(value), (name, metric)
        assert (there["counts"], there["complete"]) == (here["counts"], True)
        assert there["server"]["replies"] == there["n"]
        number += there["n"]
    assert number >= 30


# --- an LLM ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm_url(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An LLM that knows nothing, served by `make critic-server`."""
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    place, port = tmp_path_factory.mktemp("llm"), free_port()
    write_llm(place)
    command = ["make", "critic-server", f"MODEL={place}", f"PORT={port}"]
    command += [f"VLLM={Path(vllm_python).parents[1]}", "VENV=there-is-none", "ARGS=--served-model-name tiny"]
    with vllm_serving(command, port, place / "log", cwd=ROOT) as url:
        yield url


def said_in(cache: Path) -> list[str]:
    return [reply["choices"][0]["message"]["content"] for reply in replies_in(cache)]


def test_guided_decoding_makes_valid_json_of_an_untrained_model(llm_url: str, tmp_path: Path) -> None:
    asking = critic(llm_url, tmp_path, model="tiny", temperature=1.0, max_tokens=20000, timeout=200.0)
    found, line = collect(asking, pairs(8))
    assert (len(found), line) == (8, "")
    sizes = set()
    for text in said_in(tmp_path):
        value = json.loads(text)
        assert list(value) == ["errors", "dialogue"]
        assert len(value["errors"]) <= MAX_ERRORS
        assert len(value["dialogue"]) <= 5
        assert all(list(error) == ["category", "wrong", "right"] for error in value["errors"])
        assert all(1 <= len(turn["question"]) <= MAX_QUESTION for turn in value["dialogue"])
        assert all(1 <= len(turn["answer"]) <= MAX_ANSWER for turn in value["dialogue"])
        assert not re.search(r"\s", re.sub(r'"(?:[^"\\]|\\.)*"', "", text)), "no white space between values"
        sizes.add(len(text))
    assert len(sizes) > 1, "not all empty"
    statuses = Counter(correction.status for correction in found)
    assert set(statuses) <= {"no_error", "unparseable"}, "nothing that it says quotes the answer"
    assert asking.usage([to_json(c) for c in found])["replies"] == 8


def test_without_guided_decoding_it_writes_what_no_one_can_read(llm_url: str, tmp_path: Path) -> None:
    asking = critic(llm_url, tmp_path, model="tiny", guided="none", max_tokens=60)
    found, _ = collect(asking, pairs(3))
    assert [correction.status for correction in found] == ["cut"] * 3


def test_a_truncated_reply_is_a_status_and_nothing_is_trained_on_it(
    llm_url: str, tmp_path: Path, toy_data: Path
) -> None:
    words = [*DEBUG, *POPE_ONLY, "method=nsft", "critic=llm", "critic.model=tiny", "source.size=12"]
    words += [f"critic.base_url={llm_url}", "critic.temperature=1.0", "critic.max_tokens=30"]
    assert run_nsft(tmp_path, toy_data, *words) == 0
    (critique,) = (tmp_path / "runs" / "critique").glob("*/manifest.json")
    (train,) = (tmp_path / "runs" / "train").glob("*/manifest.json")
    manifest, counts = json.loads(critique.read_text()), json.loads(train.read_text())["counts"]
    assert manifest["statuses"]["cut"] >= 1
    assert manifest["statuses"] == counts["corrections"]
    assert "ok" not in counts["corrections"]
    rows = [json.loads(line) for line in (critique.parent / "records.jsonl").read_text().splitlines()]
    assert all(not row["dialogue"] for row in rows)
    cut = [row for row in rows if row["status"] == "cut"]
    assert {row["details"]["reason"] for row in cut} == {"the reply reached critic.max_tokens=30"}
    asked = sum(row["details"].get("request") is not None for row in rows)
    assert manifest["usage"]["replies"] == manifest["usage"]["requests"] == asked
    history = [json.loads(line) for line in (train.parent / "metrics.jsonl").read_text().splitlines()]
    assert not any("correction" in name for row in history for name in row)
