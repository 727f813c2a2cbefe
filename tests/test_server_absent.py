"""A server that is not there, for all who ask one: told in seconds at first, survived later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from critic_pairs import BOOK, reply, saying
from nsft_exp import config as configs
from nsft_exp.benchmark.judge import Judge
from nsft_exp.critic.llm import LLM
from nsft_exp.llm import asking
from nsft_exp.llm.asking import FIRST_ATTEMPTS, Call
from nsft_exp.llm.budget import Spent
from nsft_exp.llm.client import Client
from nsft_exp.llm.faults import fault_of
from nsft_exp.pairing.llm_editor import LLMEditor
from nsft_exp.records import UserError
from nsft_exp.vlm.server import ServerEngine
from scripted_critic import Answer, Server, serving
from serving_vllm import free_port

Make = Callable[..., Client]
NODE: Any = OmegaConf.to_container(OmegaConf.load(configs.folder("conf") / "config.yaml").server)
MAKERS: dict[str, Make] = {
    "critic": lambda cache, **how: LLM("m", BOOK, str(cache), **how).client,
    "pairing.editor": lambda cache, **how: LLMEditor("m", str(cache), **how).client,
    "benchmark.judge": lambda cache, **how: Judge("m", **how).client(cache),
    "server": lambda cache, **how: ServerEngine({**NODE, "model": "m", "cache": str(cache), **how}).client,
}


@pytest.fixture(autouse=True)
def nobody_has_replied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "REPLIED", set())


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that are waited between attempts; the test itself does not wait."""
    waited: list[float] = []

    async def pause(work: asking.Work, seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asking.Work, "_pause", pause)
    return waited


def url_of(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"


def calls(number: int) -> list[Call]:
    words = [{"role": "user", "content": f"{n}?"} for n in range(number)]
    return [Call(f"k{n}", {"model": "m", "messages": [w]}, "p", Spent(1)) for n, w in enumerate(words)]


def line_of(client: Client, number: int = 1) -> str:
    with pytest.raises(UserError) as error:
        list(client.answers(calls(number)))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("where", MAKERS)
def test_a_wrong_port_is_told_within_seconds_with_the_address_and_the_mend(
    where: str, tmp_path: Path, pauses: list[float]
) -> None:
    url = url_of(free_port())
    line = line_of(MAKERS[where](tmp_path, base_url=url, concurrency=1), 20)
    assert 1.5 <= sum(pauses) <= 3  # of the default's 1 and 2 seconds, at least half
    assert line.startswith(f"{where}: {url}: no reply after {FIRST_ATTEMPTS} attempts (connection: nothing ")
    assert f"; start the server, or mend {where}.base_url" in line


def test_long_pauses_between_attempts_are_not_those_before_the_first_reply(
    tmp_path: Path, pauses: list[float]
) -> None:
    line_of(MAKERS["critic"](tmp_path, base_url=url_of(free_port()), backoff=60.0, concurrency=1))
    assert 2 <= sum(pauses) <= 4


def test_fewer_attempts_are_kept(tmp_path: Path) -> None:
    line = line_of(MAKERS["critic"](tmp_path, base_url=url_of(free_port()), attempts=1))
    assert "no reply after 1 attempts" in line


@pytest.mark.parametrize("answer", [saying(reply()), lambda *_: Answer(503, b"starting")])
def test_a_server_that_has_replied_gets_all_attempts_even_of_another_client(
    answer: Any, tmp_path: Path
) -> None:
    with serving(answer) as server:
        client = MAKERS["critic"](tmp_path / "critic", base_url=server.base_url, attempts=1)
        with suppress(UserError):  # the script that only says 503
            list(client.answers(calls(1)))
    later = MAKERS["benchmark.judge"](tmp_path, base_url=server.base_url, attempts=6, backoff=0.01)
    line = line_of(later)
    assert "no reply after 6 attempts (connection" in line
    assert "mend" not in line


def test_a_server_that_comes_up_a_moment_later_is_waited_for(tmp_path: Path) -> None:
    port, made = free_port(), list[Server]()

    def start() -> None:
        made.append(Server(saying(reply()), port))
        made[0].serve_forever(0.02)

    later = threading.Timer(0.3, start)
    later.start()
    client = MAKERS["critic"](tmp_path, base_url=url_of(port))
    assert None not in list(client.answers(calls(3)))
    made[0].shutdown()
    made[0].server_close()
    later.join()
    assert client.usage("m", [call.key for call in calls(3)])["failed"]["connection"] >= 1


def test_a_name_that_is_not_known_is_no_refused_connection() -> None:
    def nested(*inner: Exception) -> Exception:
        error = Exception("Connection error.")
        error.__cause__ = type("ConnectError", (Exception,), {})("cannot connect")
        error.__cause__.__cause__ = ExceptionGroup("all addresses", inner)
        return error

    refused = fault_of(nested(OSError("unreachable"), ConnectionRefusedError()), None, {}, "critic")
    unknown = fault_of(nested(OSError("Name or service not known")), None, {}, "critic")
    assert (refused.kind, refused.refused) == ("connection", True)
    assert (unknown.kind, unknown.refused) == ("connection", False)
