"""Requests that go on where earlier ones ended are answered as if nothing were kept, and run less."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from nsft_exp.records import Decoding, Reply, Request, Turn
from nsft_exp.vlm.loaded import LoadedHF
from nsft_exp.vlm.memory import Past, common
from nsft_exp.vlm.scratch import ScratchLlava
from nsft_exp.vlm.scratch_next import ScratchLlavaNext
from nsft_exp.vlm.scratch_qwen import ScratchQwen25VL
from tiny_training import draw

FAMILIES = {"llava": ScratchLlava, "llava_next": ScratchLlavaNext, "qwen25_vl": ScratchQwen25VL}
Answers = dict[str, tuple[Reply, ...]]


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest) -> LoadedHF:
    """A random model of each family whose answers are not all alike: its head is sharpened."""
    torch.set_num_threads(1)
    model: LoadedHF = FAMILIES[request.param](device="cpu").load()
    model.model.lm_head.weight.data *= 6
    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return draw(tmp_path_factory.mktemp("images"), 4)


def grow(loaded: LoadedHF, images: Sequence[str], lineage: str, levels: int = 3) -> list[Answers]:
    """Answer questions about the images in three ways, then go on with every answer, level by level."""
    requests = [
        Request(
            f"{n}", image, (Turn("prompt", "What is " + "there " * n + "?"),), n=3,
            decoding=Decoding(5, diversity=1.0), lineage=lineage and f"{lineage}{n}",
        )
        for n, image in enumerate(images)
    ]  # fmt: skip
    found = []
    for _ in range(levels):
        answers = dict(loaded.generate(requests))
        found.append(answers)
        requests = [
            replace(request, id=f"{request.id}.{k}", answer_prefix=reply.text)
            for request in requests
            for k, reply in enumerate(answers[request.id][:2])
        ]
    return found


def count_run(loaded: LoadedHF, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> tuple[int, int]:
    """How many pictures the tower and tokens the language model runs in `work`, padding with them."""
    run, features = loaded.run, loaded.features
    pictures, tokens = [], []
    monkeypatch.setattr(loaded, "features", lambda seen: (pictures.append(len(seen)), features(seen))[1])
    monkeypatch.setattr(
        loaded, "run", lambda ids, *a, **k: (tokens.append(ids.numel()), run(ids, *a, **k))[1]
    )
    work()
    monkeypatch.setattr(loaded, "features", features)
    monkeypatch.setattr(loaded, "run", run)
    return sum(pictures), sum(tokens)


def assert_same(some: list[Answers], others: list[Answers]) -> None:
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for key, replies in one.items():
            assert [(r.text, r.ids, r.finish) for r in replies] == [
                (r.text, r.ids, r.finish) for r in other[key]
            ]
            for mine, plain in zip(replies, other[key], strict=True):
                assert mine.logps == pytest.approx(plain.logps, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_what_goes_on_is_answered_as_if_nothing_were_kept(
    loaded: LoadedHF, images: list[str], monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    monkeypatch.setattr(loaded, "batch_size", batch_size)
    plain = grow(loaded, images, "")
    assert any(reply.text for reply in plain[0]["0"])
    assert_same(grow(loaded, images, "l"), plain)


def test_a_prompt_with_its_image_is_run_once(
    loaded: LoadedHF, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded, "batch_size", 64)
    pictures, tokens = count_run(loaded, monkeypatch, lambda: grow(loaded, images, "m"))
    plain_pictures, plain_tokens = count_run(loaded, monkeypatch, lambda: grow(loaded, images, ""))
    assert (pictures, plain_pictures) == (4, 3 * 4)
    prompts = sum(
        len(loaded.chat.prompt(_turns(n), loaded.layout(i).tokens, "")) for n, i in enumerate(images)
    )
    assert plain_tokens - tokens > 2 * prompts


def test_a_text_that_reads_otherwise_than_it_was_written_goes_on_where_they_part(
    loaded: LoadedHF, images: list[str]
) -> None:
    first = Request("a", images[0], (Turn("prompt", "What?"),), decoding=Decoding(6), lineage="t")
    ((_, (reply,)),) = loaded.generate([first])
    for text in (reply.text[:3] + " x" + reply.text[3:], "Nothing like it.", reply.text):
        later = replace(first, id="b", answer_prefix=text, candidates=("Yes", "No"))
        ((_, (kept,)),) = loaded.generate([later])
        ((_, (plain,)),) = loaded.generate([replace(later, lineage="")])
        assert (kept.text, kept.ids) == (plain.text, plain.ids)
        assert kept.candidate_logps == pytest.approx(plain.candidate_logps, abs=1e-3)
        dict(loaded.generate([first]))


@pytest.mark.parametrize("changed", ["question", "image", "view"])
def test_what_differs_within_a_lineage_is_run_whole(
    loaded: LoadedHF, images: list[str], changed: str
) -> None:
    first = Request("a", images[0], (Turn("prompt", "What?"),), decoding=Decoding(4), lineage="o")
    dict(loaded.generate([first]))
    changes: dict[str, Any] = {
        "question": {"turns": (Turn("prompt", "Is there a cat?"),)},
        "image": {"image": images[1]},
        "view": {"view": "diffusion:500@1|a|0"},
    }
    other = replace(first, id="b", **changes[changed])
    both = dict(loaded.generate([other, replace(first, id="c")]))
    plain = dict(loaded.generate([replace(other, lineage=""), replace(first, id="c", lineage="")]))
    assert {k: r[0].ids for k, r in both.items()} == {k: r[0].ids for k, r in plain.items()}


def test_it_holds_no_more_than_a_batch_and_nothing_after_a_call_without_a_lineage(
    loaded: LoadedHF, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded, "batch_size", 2)
    grow(loaded, images, "b", levels=2)
    prompts = [loaded.chat.prompt(_turns(n), loaded.layout(i).tokens, "") for n, i in enumerate(images)]
    assert 0 < loaded.memory.tokens <= 2 * (max(map(len, prompts)) + 2 * 5)
    dict(loaded.generate([Request("x", images[0], _turns(0), decoding=Decoding(2))]))
    assert loaded.memory.tokens == 0


def _turns(count: int) -> tuple[Turn, ...]:
    return (Turn("prompt", "What is " + "there " * count + "?"),)


def test_how_many_tokens_two_sequences_begin_with_alike() -> None:
    assert [common((1, 2, 3), b) for b in ((), (1,), (1, 2, 4), (1, 2, 3, 4), (2, 2))] == [0, 1, 2, 3, 0]


def test_the_first_tokens_of_a_past() -> None:
    keys = torch.arange(12.0).reshape(2, 3, 2)
    past = Past((7, 8, 9), ((keys, -keys),))
    assert past.first(3) is past
    short = past.first(2)
    assert short.ids == (7, 8)
    assert torch.equal(torch.stack(short.layers[0]), torch.stack((keys[:, :2], -keys[:, :2])))
