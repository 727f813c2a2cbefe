"""Models behind a server as answerers: what is sent, what is kept, and what becomes of each reply."""

from __future__ import annotations

import base64
import io
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from conftest import POPE_ONLY, SMALL, run_nsft
from critic_pairs import first
from nsft_exp import config as configs
from nsft_exp.cell_run import build
from nsft_exp.pairing.gt import GroundTruth
from nsft_exp.pairing.self_critic import SelfCritic
from nsft_exp.records import Decoding, Reply, Request, Sample, Turn, UserError
from nsft_exp.vlm.row import rows_of
from nsft_exp.vlm.server import ServerEngine, ServerVLM
from scripted_critic import Answer, Script, Server, completion, serving
from test_critic_llm_errors import error_of
from test_critic_llm_kill import kill_when
from tiny_training import draw

CANARY = "sk-canary-7f3a9c51d2"
NODE = OmegaConf.to_container(OmegaConf.load(configs.folder("conf") / "config.yaml").server)


def node(server: Server | str, cache: Path, **changes: Any) -> dict[str, Any]:
    """The config's `server` for a scripted one: two attempts and hardly a pause between them."""
    url = server if isinstance(server, str) else server.base_url
    given = {"base_url": url, "model": "scripted", "cache": str(cache), "attempts": 2, "backoff": 0.01}
    return {**NODE, **given, "concurrency": 4, **changes}  # type: ignore[dict-item]


def engine(server: Server | str, cache: Path, **changes: Any) -> ServerEngine:
    return ServerEngine(node(server, cache, **changes))


def questions(number: int, image: str | None = None, n: int = 1, **decoding: Any) -> list[Request]:
    how = Decoding(**{"max_new_tokens": 16, **decoding})
    return [
        Request(f"q{i}", image, (Turn("prompt", f"Is there a {i}?"),), n=n, decoding=how)
        for i in range(number)
    ]


def collect(asking: ServerEngine, requests: list[Request]) -> tuple[dict[str, tuple[Reply, ...]], str]:
    """What an engine yields, and the one line with which it then stops (empty: nothing was missing)."""
    found: dict[str, tuple[Reply, ...]] = {}
    try:
        found.update(asking.generate(requests))
    except UserError as error:
        return found, str(error)
    return found, ""


def echo(body: dict[str, Any], number: int) -> Answer:
    """Answers with the last words of the question."""
    content = body["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    return Answer(body=completion(f" It is {text.split()[-1]} "))


def always(*answers: Answer) -> Script:
    """The script whose k-th answer, counted round, is the k-th of these."""
    return lambda body, number: answers[number % len(answers)]


def line_of(asking: ServerEngine, requests: list[Request]) -> str:
    """The one line with which an engine stops before anything is answered."""
    found, line = collect(asking, requests)
    assert not found
    assert line.startswith("server: http")
    assert "\n" not in line
    return line


# --- what is sent, and what is kept ------------------------------------------------------------------


def test_a_request_holds_the_conversation_the_picture_and_how_to_answer(tmp_path: Path) -> None:
    (picture,) = draw(tmp_path / "images", 1)
    turns = (Turn("prompt", "What is it?"), Turn("prompt", "A cup."), Turn("prompt", "Which color?"))
    request = Request("q", picture, turns, decoding=Decoding(7, 0.5, 0.9, seed=3))
    with serving(echo) as server:
        ((_, (reply,)),) = engine(server, tmp_path / "cache", extra={"top_k": 5}).generate([request])
    (body,) = server.bodies
    assert (reply.text, reply.finish) == ("It is color?", "stop")
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert [message["content"] for message in body["messages"][1:]] == ["A cup.", "Which color?"]
    shown, asked = body["messages"][0]["content"]
    assert asked == {"type": "text", "text": "What is it?"}
    head, _, data = shown["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as sent, Image.open(picture) as own:
        assert sent.tobytes() == own.convert("RGB").tobytes()
    assert (body["max_completion_tokens"], body["temperature"], body["top_p"], body["top_k"]) == (
        7,
        0.5,
        0.9,
        5,
    )


def test_a_picture_is_turned_as_its_orientation_says_unless_told_otherwise(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    file = tmp_path / "turned.jpg"
    Image.new("RGB", (30, 20)).save(file, exif=exif)
    sizes = []
    for how in ("apply", "ignore"):
        with serving(echo) as server:
            list(
                ServerVLM(node(server, tmp_path / how), exif=how).answerer().generate(questions(1, str(file)))
            )
        url = server.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as sent:
            sizes.append(sent.size)
    assert sizes == [(20, 30), (30, 20)]


def test_every_sample_is_asked_for_with_a_seed_of_its_own_where_the_server_takes_seeds(
    tmp_path: Path,
) -> None:
    (asked,) = questions(1, n=3, temperature=1.0)
    for seeded in (True, False):
        with serving(always(*(Answer(body=completion(word)) for word in "abc"))) as server:
            asking = engine(server, tmp_path / str(seeded), seeded=seeded, concurrency=1)
            ((_, replies),) = asking.generate([asked])
        assert [reply.text for reply in replies] == ["a", "b", "c"]
        assert len({body.get("seed") for body in server.bodies}) == (3 if seeded else 1)
        assert all(("seed" in body) == seeded for body in server.bodies)


def test_what_was_received_is_never_asked_for_again(tmp_path: Path) -> None:
    with serving(echo) as server:
        before, _ = collect(engine(server, tmp_path), questions(3))
        again, _ = collect(engine(server, tmp_path), questions(5))
        assert len(server.asked) == 5
        collect(engine(server, tmp_path), questions(5, max_new_tokens=8))
        assert len(server.asked) == 10, "another limit is another request"
    assert {name: again[name] for name in before} == before
    assert [reply.text for (reply,) in again.values()] == [f"It is {i}?" for i in range(5)]


def test_an_answer_names_the_request_whose_reply_is_kept_raw(tmp_path: Path) -> None:
    with serving(echo) as server:
        found, _ = collect(engine(server, tmp_path), questions(2))
    rows = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    raw = {row["key"]: row["raw"] for row in rows if row["event"] == "reply"}
    for (reply,) in found.values():
        assert json.loads(raw[reply.request])["choices"][0]["message"]["content"].strip() == reply.text


# --- prompts -----------------------------------------------------------------------------------------


def prompts_of(ids: Any) -> Script:
    return lambda body, number: Answer(body={**completion("Yes."), "prompt_token_ids": ids})


def test_a_prompt_that_is_not_trainings_is_refused_and_one_that_is_not_told_too(tmp_path: Path) -> None:
    toy = build(configs.resolved(configs.compose_config(["vlm=toy"]))["vlm"] | {"device": "cpu"})
    requests = questions(1, *draw(tmp_path / "images", 1))
    ours = list(rows_of(toy.without_weights(), requests[0])[0].prompt)
    lines = []
    for number, ids in enumerate((ours, ours[:-1], [*ours[:-1], 0], None)):
        with serving(prompts_of(ids)) as server:
            asking = ServerEngine(node(server, tmp_path / str(number)), toy)
            lines.append(collect(asking, requests)[1])
            assert server.bodies[0]["return_token_ids"] is True
    assert lines[0] == ""
    assert f"request q0: the server read a prompt of {len(ours) - 1} tokens where training" in lines[1]
    assert "serve what nsft export-model writes" in lines[2]
    assert "does not return the ids of its prompts" in lines[3]
    with serving(prompts_of(None)) as server:
        asking = ServerEngine(node(server, tmp_path / "unchecked", check_prompts=False), toy)
        assert collect(asking, requests)[1] == ""
        assert "return_token_ids" not in server.bodies[0]


# --- what it cannot do -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"decoding": Decoding(num_beams=3)}, "no beams (Hugging Face only)"),
        ({"view": "diffusion:500"}, "no view diffusion:500"),
        ({"answer_prefix": "It"}, "no beginning of an answer"),
    ],
)
def test_what_the_protocol_has_no_form_for_is_refused_unsent(
    changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    request = Request("q", None, (Turn("prompt", "Why?"),), **changes)
    with serving(echo) as server:
        assert collect(engine(server, tmp_path), [request])[1] == (
            f"request q: a server takes {what}; take vlm.engine=hf"
        )
        assert not server.asked


def test_a_node_with_a_wrong_key_or_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"server\.modell: there is no such key; there are base_url, model"):
        engine("http://localhost:1/v1", tmp_path, modell="x")
    with pytest.raises(UserError, match=r"server\.model has no value; give the server's name"):
        engine("http://localhost:1/v1", tmp_path, model=None)
    with pytest.raises(UserError, match=r"server\.base_url=localhost: must be like http://localhost:8000/v1"):
        engine("localhost", tmp_path)
    with pytest.raises(UserError, match=r"server\.concurrency=0"):
        engine("http://localhost:1/v1", tmp_path, concurrency=0)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["vlm=server"], "vlm=server: the model is on a server and cannot be trained here"),
        (["vlm=toy", "vlm.engine=server"], "the server has the base, not what is trained here"),
    ],
)
def test_a_training_whose_model_a_server_would_have_to_answer_for_is_refused_before_anything_is_asked(
    words: list[str], line: str, tmp_path: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(echo) as server:
        words = [*words, "method=gt_dpo", f"server.base_url={server.base_url}", "server.model=scripted"]
        assert run_nsft(tmp_path, toy_data, *words, "source.size=4", *SMALL, *POPE_ONLY) == 2
        assert not server.asked
    assert line in " ".join(capsys.readouterr().err.split())


def test_a_wrong_setting_of_the_critics_server_is_refused_before_the_vlm_answers(
    tmp_path: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("method=nsft", "critic=llm", "critic.model=scripted", "critic.concurrency=0", "source.size=4")
    assert run_nsft(tmp_path, toy_data, *words, *SMALL, *POPE_ONLY) != 0
    assert "critic.concurrency=0: must be at least 1" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs" / "respond").exists()


# --- servers that misbehave --------------------------------------------------------------------------


def test_a_refused_connection_is_one_line_and_the_same_requests_go_on_from_what_came(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with serving(echo) as server:
        collect(engine(server, tmp_path), questions(3))
    found, line = collect(engine(url, tmp_path, attempts=3), questions(7))
    assert list(found) == ["q0", "q1", "q2"]
    assert line.startswith(f"server: {url}: no reply after 3 attempts (connection")
    assert "3 of 7 replies are kept" in line
    assert str(tmp_path / "calls.jsonl") in line


def test_a_reply_that_takes_too_long_is_given_up_and_asked_again(tmp_path: Path) -> None:
    with serving(first([Answer(body=completion("Yes."), seconds=0.5)] * 2, echo)) as server:
        assert "2 x timeout" in line_of(engine(server, tmp_path, timeout=0.15), questions(1))
        asking = engine(server, tmp_path, timeout=5.0)
        ((reply,),) = collect(asking, questions(1))[0].values()
    assert reply.text == "It is 0?"
    assert asking.usage([reply.request])["failed"] == {"timeout": 2}


def test_retry_after_is_waited_for(tmp_path: Path) -> None:
    busy = Answer(429, error_of("slow down"), headers={"Retry-After": "1"})
    with serving(first([busy], echo)) as server:
        found, line = collect(engine(server, tmp_path, concurrency=1), questions(2))
    assert (len(found), line) == (2, "")
    assert server.times[1] - server.times[0] >= 1


def test_a_server_that_only_fails_is_left_alone(tmp_path: Path) -> None:
    with serving(always(Answer(500, error_of("oops")))) as server:
        line = line_of(engine(server, tmp_path, attempts=1, concurrency=2), questions(60))
        assert 20 <= len(server.asked) <= 22
    assert "500: oops" in line


def test_a_wrong_model_name_says_what_the_server_serves(tmp_path: Path) -> None:
    missing = Answer(404, error_of("The model `scripted` does not exist.", "model_not_found"))
    with serving(always(missing), models=("toy", "llava")) as server:
        line = line_of(engine(server, tmp_path, concurrency=1), questions(3))
        assert len(server.asked) == 1
    assert "knows no model 'scripted'" in line
    assert "it serves toy, llava: set server.model" in line


def test_a_request_that_the_server_refuses_stops_with_its_words(tmp_path: Path) -> None:
    too_long = Answer(400, error_of("maximum context length is 64 tokens"))
    with serving(always(too_long)) as server:
        line = line_of(engine(server, tmp_path, concurrency=1), questions(3))
        assert len(server.asked) == 1
    assert "the server refuses the request (400: maximum context length is 64 tokens)" in line
    assert "guided" not in line


def test_a_budget_is_kept_to_the_last_request_and_raised_it_goes_on(tmp_path: Path) -> None:
    with serving(echo) as server:
        found, line = collect(engine(server, tmp_path, budget={"requests": 4}), questions(9))
        assert (len(found), len(server.asked)) == (4, 4)
        assert "the budget is spent: requests 4 of 4; raise server.budget.requests" in line
        found, line = collect(engine(server, tmp_path), questions(9))
        assert (len(found), len(server.asked), line) == (9, 9, "")


def test_a_missing_key_is_one_line_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    line = line_of(engine("https://vlm.invalid/v1", tmp_path, key_env="SOME_KEY"), questions(2))
    assert "the environment has no SOME_KEY; set it" in line
    assert "server.key_env=null for a server without keys" in line
    assert not any(tmp_path.iterdir())


NO_ANSWERS = {
    "no choice": (Answer(body={**completion(""), "choices": []}), "no_choice"),
    "refusal": (Answer(body=completion(None, refusal="I won't.")), "refused"),
    "filtered reply": (Answer(body=completion("Ye", finish="content_filter")), "refused"),
    "filtered request": (Answer(400, error_of("filtered", "content_filter")), "refused"),
}


@pytest.mark.parametrize(("answer", "finish"), NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_a_reply_without_an_answer_is_counted_as_that_and_final(
    answer: Answer, finish: str, tmp_path: Path
) -> None:
    with serving(always(answer)) as server:
        for _ in range(2):
            found, line = collect(engine(server, tmp_path), questions(2))
            assert line == ""
            assert [(r.text, r.finish, r.given) for (r,) in found.values()] == [("", finish, False)] * 2
        assert len(server.asked) == 2, "it was received: it is not asked for again"


@pytest.mark.parametrize("text", ["", None])
def test_an_empty_answer_is_an_answer(text: str | None, tmp_path: Path) -> None:
    with serving(always(Answer(body=completion(text)))) as server:
        (((reply,)),) = collect(engine(server, tmp_path), questions(1))[0].values()
    assert (reply.text, reply.finish, reply.given) == ("", "stop", True)


def test_a_cut_answer_says_so(tmp_path: Path) -> None:
    with serving(always(Answer(body=completion("There is a", finish="length")))) as server:
        ((reply,),) = collect(engine(server, tmp_path), questions(1))[0].values()
    assert (reply.text, reply.finish) == ("There is a", "length")


# --- what stages make of it --------------------------------------------------------------------------


def test_pairs_from_a_server_have_its_refusals_as_statuses_and_their_requests(tmp_path: Path) -> None:
    refusal, nothing = NO_ANSWERS["refusal"][0], NO_ANSWERS["no choice"][0]
    with serving(first([refusal, nothing], echo)) as server:
        asking = engine(server, tmp_path, concurrency=1)
        samples = [Sample(f"s{i}", None, f"Is it {i}?", "It is 3?") for i in range(4)]
        pairs = list(GroundTruth().pairs(samples, asking))
    assert [pair.status for pair in pairs] == ["refused", "no_choice", "ok", "equal"]
    assert [pair.rejected for pair in pairs] == ["", "", "It is 2?", "It is 3?"]
    assert [len(pair.details["requests"]) for pair in pairs] == [1] * 4
    assert all(pair.details["tokens"] is None for pair in pairs), "the server tells no ids: not 0 tokens"
    usage = asking.usage([key for pair in pairs for key in pair.details["requests"]])
    assert (usage["requests"], usage["replies"], usage["lost"]) == (4, 4, 0)


def test_a_self_critics_pair_names_all_four_requests_and_a_refused_answer_is_no_pair(tmp_path: Path) -> None:
    def script(body: dict[str, Any], number: int) -> Answer:
        text = body["messages"][-1]["content"]
        if "Better answer" in text:
            return Answer(body=completion("[1]" if "Answer 1: good" in text else "[2]"))
        if "Is it 1?" in text and body["temperature"] > 0:
            return NO_ANSWERS["refusal"][0]
        return Answer(body=completion("bad" if body["temperature"] > 0 else "good"))

    with serving(script) as server:
        samples = [Sample(f"s{i}", None, f"Is it {i}?", "It is.") for i in range(2)]
        pairs = {p.id: p for p in SelfCritic().pairs(samples, engine(server, tmp_path))}
    assert {name: (p.status, len(p.details["requests"])) for name, p in pairs.items()} == {
        "s0": ("ok", 4),
        "s1": ("refused", 2),
    }
    assert (pairs["s0"].chosen, pairs["s0"].rejected) == ("good", "bad")


EVALUATE = ("evaluate", "vlm=server", "server.model=scripted", "server.backoff=0.01", *SMALL, *POPE_ONLY)


def folder_of(root: Path) -> Path:
    (folder,) = (root / "runs" / "evaluate").iterdir()
    return folder


def test_an_evaluation_counts_what_went_wrong_and_scores_only_answers(tmp_path: Path, toy_data: Path) -> None:
    bad = [
        Answer(500, error_of("oops")),
        Answer(429, error_of("slow down"), headers={"Retry-After": "0"}),
        Answer(body=json.dumps(completion("Yes")).encode()[:40]),
        NO_ANSWERS["refusal"][0],
        NO_ANSWERS["no choice"][0],
    ]
    words = (*EVALUATE, "limit=8", "server.concurrency=1")
    with serving(first(bad, always(Answer(body=completion("Yes"))))) as server:
        assert run_nsft(tmp_path, toy_data, *words, f"server.base_url={server.base_url}", "to=out") == 0
        assert len(server.asked) == 8 + 3
    summary = json.loads((tmp_path / "out" / "pope.json").read_text())
    counts = {"scored": 6, "unscored": 0, "unanswered": 2, "unparseable": 0, "cut": 0}
    assert summary["counts"] == {**counts, "refused": 1, "no_choice": 1}
    assert summary["complete"] is False
    assert summary["metrics"]["random_yes_ratio"] == 100, "six said yes; the two others say nothing"
    sums = summary["server"]
    assert (sums["requests"], sums["replies"], sums["lost"]) == (11, 8, 0)
    assert sums["failed"] == {"429": 1, "500": 1, "broken": 1}
    rows = [json.loads(line) for line in (folder_of(tmp_path) / "records.jsonl").read_text().splitlines()]
    assert [(row["answer"], row["score"], row["reason"]) for row in rows[:2]] == [
        (None, None, "no answer: refused"),
        (None, None, "no answer: no_choice"),
    ]
    assert all(row["answer"] == "Yes" and row["score"] for row in rows[2:])


def test_a_killed_evaluation_asks_at_most_for_what_was_in_flight_again_and_counts_it(
    tmp_path: Path, toy_data: Path
) -> None:
    words = [*EVALUATE, "limit=40", "server.concurrency=3", f"paths.data={toy_data}"]
    slow = Answer(body=completion("Yes"), seconds=0.05)
    with serving(always(slow)) as server:
        words.append(f"server.base_url={server.base_url}")
        process = subprocess.Popen([sys.executable, "-m", "nsft_exp", *words], cwd=tmp_path)
        kill_when(process, lambda: len(server.answered) >= 9)
        time.sleep(0.2)
        rows = (tmp_path / "runs" / "server" / "calls.jsonl").read_bytes().split(b"\n")[:-1]
        kept = sum(json.loads(row)["event"] == "reply" for row in rows)
        before = len(server.asked)
        assert 9 - 3 <= kept < 40
        assert run_nsft(tmp_path, toy_data, *words) == 0
        assert len(server.asked) - before == 40 - kept, "what was on the disk was not asked for again"
    summary = json.loads((folder_of(tmp_path) / "manifest.json").read_text())
    sums = summary["server"]
    assert (summary["counts"]["scored"], sums["replies"]) == (40, 40)
    assert 0 < sums["lost"] <= 3
    assert sums["requests"] == 40 + sums["lost"]
