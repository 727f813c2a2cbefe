"""`vlm.engine=vllm`: training's prompts, transformers' greedy answers, adapters that take effect."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from nsft_exp import config as configs
from nsft_exp.cell_run import build
from nsft_exp.method.sft import SFT
from nsft_exp.records import Decoding, Request, Turn, UserError
from nsft_exp.vlm.hf import HFModel
from nsft_exp.vlm.row import Row
from nsft_exp.vlm.vllm_engine import VllmEngine
from nsft_exp.vlm.vllm_process import one_image_token
from tiny_training import draw, make_items, train

QUESTIONS = (
    "Describe the image.",
    "Is there a dog in the image? Answer the question using a single word or phrase.",
    "How many objects are there?",
    "What colour is the largest object?",
)


def model(name: str, **changes: Any) -> Any:
    """The VLM of a config option."""
    return build(
        configs.resolved(configs.compose_config([f"vlm={name}"]))["vlm"] | {"device": "cpu"} | changes
    )


def asked(folder: Path, count: int, **decoding: Any) -> list[Request]:
    """Questions about random pictures, with two candidates each."""
    how = Decoding(**{"max_new_tokens": 24, **decoding})
    return [
        Request(
            f"r{n}",
            image,
            (Turn("prompt", QUESTIONS[n % 4]),),
            decoding=how,
            candidates=("Yes", "No it is not"),
        )
        for n, image in enumerate(draw(folder, count))
    ]


# --- without vLLM ----------------------------------------------------------------------------------


def test_a_run_of_image_tokens_becomes_one() -> None:
    assert one_image_token([1, 7, 7, 7, 2, 7, 3, 7, 7], 7) == [1, 7, 2, 7, 3, 7]
    assert one_image_token([1, 2, 2], 7) == [1, 2, 2]


def test_an_interpreter_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"vlm\.python=/nowhere/python: there is no such interpreter"):
        model("toy", engine="vllm", python="/nowhere/python").answerer()


def test_an_unknown_engine_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"vlm\.engine=vlm: there is no such choice; take hf or vllm"):
        HFModel("anywhere", engine="vlm")


def test_an_interpreter_without_vllm_ends_in_its_own_words(tmp_path: Path) -> None:
    engine = model("tiny_random", engine="vllm", python=sys.executable).answerer()
    with pytest.raises(UserError, match=r"vLLM does not answer.*No module named 'vllm'"):
        list(engine.generate(asked(tmp_path, 1)))
    engine.close()


def test_views_and_beams_are_refused_by_name(tmp_path: Path) -> None:
    engine = VllmEngine(model("tiny_random", python=sys.executable))
    (request,) = asked(tmp_path, 1)
    noised = Request("n", request.image, request.turns, view="diffusion:500")
    with pytest.raises(UserError, match=r"request n: .*diffusion:500; take vlm.engine=hf"):
        engine._rows(noised)
    (beams,) = asked(tmp_path, 1, num_beams=5)
    with pytest.raises(UserError, match=r"request r0: .*beam"):
        engine._rows(beams)


def test_another_prompt_than_trainings_is_refused(tmp_path: Path) -> None:
    (request,) = asked(tmp_path, 1)
    engine = VllmEngine(model("tiny_random", python=sys.executable))
    row = Row(request, 0, None, (1, 5, 6), (), 8)
    with pytest.raises(UserError, match="request r0: vLLM read a prompt of 2 tokens where training writes 3"):
        engine._check_prompt(row, [1, 5])


# --- with vLLM -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(vllm_python: str) -> Iterator[VllmEngine]:
    """The toy base behind vLLM."""
    engine = model("toy", engine="vllm", python=vllm_python).answerer()
    yield engine
    engine.close()


@pytest.mark.vllm
@pytest.mark.slow
def test_greedy_answers_and_candidates_are_transformers(engine: VllmEngine, tmp_path: Path) -> None:
    requests = asked(tmp_path, 32)
    ours = dict(model("toy").load().generate(requests))
    found = dict(engine.generate(requests))
    assert found.keys() == ours.keys()
    same = [found[name][0].ids == ours[name][0].ids for name in ours]
    assert sum(same) >= 31  # noise pictures leave near ties, which rounding may turn
    # vLLM resizes with torchvision where we do with Pillow: last bits of some pixels differ
    for name in (name for name, equal in zip(ours, same, strict=True) if equal):
        assert found[name][0].text == ours[name][0].text
        assert found[name][0].finish == ours[name][0].finish
        assert found[name][0].logps == pytest.approx(ours[name][0].logps, abs=2e-2)
        assert found[name][0].candidate_logps == pytest.approx(ours[name][0].candidate_logps, abs=2e-2)


@pytest.mark.vllm
@pytest.mark.slow
def test_samples_differ_and_their_number_is_the_request_s(engine: VllmEngine, tmp_path: Path) -> None:
    (one,) = asked(tmp_path, 1, temperature=1.0)
    request = Request(one.id, one.image, (Turn("prompt", QUESTIONS[0]),), n=4, decoding=one.decoding)
    ((name, replies),) = engine.generate([request])
    assert name == "r0"
    assert len(replies) == 4
    assert len({reply.text for reply in replies}) > 1


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rate"), [("lora", 5e-3), ("full", 1e-3)])
def test_what_was_trained_answers_and_a_killed_engine_says_so(
    kind: str, rate: float, vllm_python: str, tmp_path: Path
) -> None:
    folder = tmp_path / "train"
    items = make_items(tmp_path, 8)
    train(SFT(), items, folder, vlm=model("toy"), epochs=12, learning_rate=rate, kind=kind)
    assert (folder / "model").is_dir() == (kind == "full")
    requests = [Request(i.sample.id, i.sample.image, (Turn("prompt", i.sample.question),)) for i in items]
    base = dict(model("toy").load().generate(requests))
    trained = dict(model("toy").load([folder]).generate(requests))
    engine = model("toy", engine="vllm", python=vllm_python).answerer([folder])
    found = dict(engine.generate(requests))
    assert sum(found[name][0].ids == trained[name][0].ids for name in trained) >= 7
    assert any(found[name][0].ids != base[name][0].ids for name in base)
    assert engine._process is not None
    group = engine._process.process.pid
    engine._process.process.kill()
    with pytest.raises(UserError, match=r"vLLM does not answer \(code -9"):
        list(engine.generate(requests))
    engine.close()
    left = [p for p in psutil.process_iter() if os.getpgid(p.pid) == group and p.status() != "zombie"]
    assert left == []


@pytest.mark.vllm
@pytest.mark.slow
def test_an_adapter_is_taken_and_another_in_its_place(vllm_python: str, tmp_path: Path) -> None:
    items = make_items(tmp_path, 8)
    requests = [Request(i.sample.id, i.sample.image, (Turn("prompt", i.sample.question),)) for i in items]
    trained, engine = {}, VllmEngine(model("toy", python=vllm_python), lora_rank=4)
    for epochs in (4, 12):
        folder = tmp_path / f"train-{epochs}"
        train(SFT(), items, folder, vlm=model("toy"), epochs=epochs, learning_rate=5e-3)
        trained[epochs] = dict(model("toy").load([folder]).generate(requests))
        engine.take(partial(copy_folder, folder / "adapter"))
        found = dict(engine.generate(requests))
        assert sum(found[name][0].ids == trained[epochs][name][0].ids for name in found) >= 7
    assert any(trained[4][name][0].ids != trained[12][name][0].ids for name in trained[4])
    engine.close()


def copy_folder(source: Path, to: Path) -> None:
    shutil.copytree(source, to, dirs_exist_ok=True)
