"""Several processes answer as one does: the same chunks, the same replies, an end that is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nsft_exp import answering
from nsft_exp import config as configs
from nsft_exp.answering import Answerer, AnswerProcess
from nsft_exp.pairing.scorer import Yes
from nsft_exp.pairing.self_critic import SelfCritic
from nsft_exp.pairing.sentence_tree import SentenceTree
from nsft_exp.records import Decoding, Reply, Request, Sample, Turn, UserError
from tiny_training import draw

Replies = dict[str, tuple[Reply, ...]]


@pytest.fixture(scope="module")
def node() -> dict[str, Any]:
    plain = configs.resolved(configs.compose_config(["vlm=tiny_random"]))["vlm"]
    return plain | {"device": "cpu", "batch_size": 4}


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> list[Request]:
    images = draw(tmp_path_factory.mktemp("images"), 10)
    how = Decoding(max_new_tokens=6, temperature=1.0, seed=3)
    return [
        Request(f"r{n}", image, (Turn("prompt", "What is there? " * (1 + n % 3)),), n=2, decoding=how)
        for n, image in enumerate([*images, *images])
    ]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "CHUNK", 8)


@pytest.fixture(scope="module")
def two(node: dict[str, Any]) -> Iterator[Answerer]:
    """Two processes, which take seconds to start, for all tests that leave them alive."""
    answerer = Answerer(node, [], devices=2, threads=1)
    yield answerer
    answerer.close()


def test_two_processes_give_the_replies_of_one_to_the_last_digit(
    node: dict[str, Any], two: Answerer, requests: list[Request]
) -> None:
    one: Replies = dict(Answerer(node, [], threads=1).generate(requests))
    assert len(one) == len(requests) == 20
    assert dict(two.generate(requests)) == one
    assert dict(two.generate(requests[:8])) == {r.id: one[r.id] for r in requests[:8]}
    assert len({process.process.pid for process in two._others}) == 2
    assert two._here is None


def critic() -> Any:
    return SelfCritic(max_new_tokens=6, form="claims")


def tree() -> Any:
    return SentenceTree(Yes(), beams=2, sentence_tokens=3, max_characters=8)


@pytest.mark.parametrize("make", [critic, tree])
def test_a_pairing_that_cuts_its_own_chunks_has_one_in_every_process(
    make: Callable[[], Any],
    node: dict[str, Any],
    two: Answerer,
    requests: list[Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairing = make()
    monkeypatch.setattr(type(pairing), "chunk", 4)
    samples = [Sample(r.id, r.image, "What is there?", "A cup.") for r in requests[:10]]
    one = {p.id: p for p in Answerer(node, [], threads=1).pairs(pairing, samples)}
    assert len(one) == 10
    assert {p.id: p for p in two.pairs(pairing, samples)} == one
    assert len(two._others) == 2
    assert two._here is None, "this process has no model then"


def test_one_chunk_is_answered_here(node: dict[str, Any], requests: list[Request]) -> None:
    two = Answerer(node, [], devices=2, threads=1)
    assert len(dict(two.generate(requests[:8]))) == 8
    assert not two._others


def test_a_servers_model_is_asked_by_this_process_alone(node: dict[str, Any]) -> None:
    assert Answerer(node | {"engine": "server"}, [], devices=8).devices == 1
    assert Answerer({"_target_": "nsft_exp.vlm.server.ServerVLM"}, [], devices=8).devices == 1


def test_a_process_that_is_killed_ends_the_stage(two: Answerer, requests: list[Request]) -> None:
    """The last test of the two processes."""
    dict(two.generate(requests))
    two._others[0].kill()
    with pytest.raises(RuntimeError, match="a process that answers ended with code -9"):
        dict(two.generate(requests))
    assert all(process.process.wait(timeout=20) is not None for process in two._others)


@pytest.fixture
def single(node: dict[str, Any]) -> Iterator[Answerer]:
    """An Answerer of several processes that has one."""
    answerer = Answerer(node, [], devices=2, threads=1)
    answerer._others = [AnswerProcess({"vlm": node, "adapters": [], "threads": 1}, None)]
    yield answerer
    answerer.close()


def test_what_a_process_refuses_is_said_in_its_words(single: Answerer, requests: list[Request]) -> None:
    gone = Request("gone", "gone.png", requests[0].turns, decoding=requests[0].decoding)
    with pytest.raises(UserError, match=r"gone\.png"):
        dict(single.generate([*requests, gone]))


def test_the_process_ends_when_its_input_does(single: Answerer, requests: list[Request]) -> None:
    assert len(dict(single.generate(requests))) == len(requests)
    single.close()
    assert [process.process.returncode for process in single._others] == [0]


def test_threads_are_a_share_of_the_cores_where_none_are_named(
    node: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    class Noted:
        def __init__(self, order: dict[str, Any], device: str | None) -> None:
            asked.append(order | {"device": device})

    monkeypatch.setattr(answering, "AnswerProcess", Noted)
    monkeypatch.setattr(answering, "num_cores", lambda: 9)
    monkeypatch.setattr(answering, "num_gpus", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    Answerer(node, [Path("a")], devices=4)._started()
    assert [(o["threads"], o["device"]) for o in asked] == [(2, "4"), (2, "5"), (2, "6"), (2, "7")]
    assert asked[0]["adapters"] == ["a"]
