"""What begins alike is run as one, to what it comes to apart: rows in training, answers to one request."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nsft_exp.batching import Batch, collate
from nsft_exp.branches import PADDING, branches_of
from nsft_exp.encoding import encode_examples
from nsft_exp.records import Conversation, Decoding, Example, Request, Turn
from nsft_exp.reference import hidden_states, token_scores
from nsft_exp.vlm.loaded import LoadedHF
from nsft_exp.vlm.scratch import ScratchLlava
from nsft_exp.vlm.scratch_next import ScratchLlavaNext
from nsft_exp.vlm.scratch_qwen import ScratchQwen25VL
from tiny_training import draw

FAMILIES = {"llava": ScratchLlava, "llava_next": ScratchLlavaNext, "qwen25_vl": ScratchQwen25VL}


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest) -> LoadedHF:
    """A random model of each family."""
    torch.set_num_threads(1)
    model: LoadedHF = FAMILIES[request.param](device="cpu").load()
    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return draw(tmp_path_factory.mktemp("images"), 3)


def talk(image: str | None, answer: str, view: str = "clean", role: str = "chosen") -> Conversation:
    asked = (Turn("prompt", "What is there?"), Turn("prompt", "A lamp."), Turn("prompt", "Where is it?"))
    return Conversation(image, (*asked, Turn(role, answer)), view)


def pair(name: str, image: str | None, chosen: str, rejected: str, view: str = "clean") -> Example:
    return Example(name, (talk(image, chosen), talk(image, rejected, view, "rejected")))


def batch_of(loaded: LoadedHF, examples: list[Example]) -> Batch:
    encoded, _ = encode_examples(examples, loaded.chat, loaded.layout, 1024)
    return collate(encoded, range(len(examples)), loaded.pixels, loaded.pad_id)


@pytest.fixture
def mixed(loaded: LoadedHF, images: list[str]) -> Batch:
    """Pairs with and without an image, three answers to one question, one answer alone, two views."""
    three = tuple(talk(images[1], answer) for answer in ("On it.", "Under it, I am sure.", "On it."))
    return batch_of(
        loaded,
        [
            pair("a", images[0], "It is to the left.", "It is to the right of the door."),
            Example("b", (talk(images[2], "It is there."),)),
            Example("c", three),
            pair("d", None, "There.", "Here and there."),
            pair("e", images[0], "Left.", "Right.", view="diffusion:500"),
        ],
    )


# --- how rows are packed ---------------------------------------------------------------------------


def test_common_tokens_come_once_and_each_branch_sees_them_and_itself() -> None:
    rows = [np.array(row) for row in ([5, 6, 7, 8], [9, 9], [5, 6, 1])]
    packing = branches_of(rows, ["p", "q", "p"], [1, 0, 2], width=4)
    assert packing is not None
    padded = torch.tensor([[5, 6, 7, 8], [9, 9, 0, 0], [5, 6, 1, 0]])
    assert packing.packed(padded, padding=3).tolist() == [[5, 6, 7, 8, 1], [9, 9, 3, 3, 3]]
    assert packing.branch.tolist() == [[0, 0, 1, 1, 2], [0, 0, PADDING, PADDING, PADDING]]
    assert packing.first.tolist() == [0, 1]
    sees = packing.mask()[0, 0].int().tolist()
    assert sees == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    states = torch.arange(10.0).view(2, 5, 1)
    back = packing.unpacked(states)[..., 0].tolist()
    assert (back[0], back[1][:2], back[2][:3]) == ([0, 1, 2, 3], [5, 6], [0, 1, 4])


def test_rows_equal_to_the_end_are_one() -> None:
    packing = branches_of([np.array([1, 2]), np.array([1, 2])], [0, 0], [0, 0], width=2)
    assert packing is not None
    assert packing.source.tolist() == [[0, 1]]
    assert packing.place.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("kinds", "needed"), [(["a", "b"], [0, 0]), (["a", "a"], [0, 3])], ids=["kinds", "image"]
)
def test_rows_of_different_kinds_or_that_part_before_their_image_ends_stay_apart(
    kinds: list[str], needed: list[int]
) -> None:
    rows = [np.array([1, 2, 3, 4]), np.array([1, 2, 5, 4])]
    assert branches_of(rows, kinds, needed, width=4) is None


# --- what comes out of a model ---------------------------------------------------------------------


def test_packed_rows_have_the_log_probabilities_and_gradients_of_rows_apart(
    loaded: LoadedHF, mixed: Batch
) -> None:
    assert mixed.branches is not None
    assert len(mixed.ids) == 10
    assert len(mixed.branches.first) == 6  # of the three pairs two are one, and the three answers
    found = []
    for batch in (mixed, replace(mixed, branches=None)):
        loaded.model.zero_grad()
        logp = token_scores(loaded, batch).logp
        (logp * torch.arange(1.0, 1 + logp.numel()).view_as(logp).sin()).sum().backward()
        weights = {name: p.grad.clone() for name, p in loaded.model.named_parameters() if p.grad is not None}
        found.append((logp.detach(), weights))
    (packed, packed_gradients), (apart, gradients) = found
    assert torch.allclose(packed, apart, atol=1e-5)
    assert (packed[mixed.where] < 0).all()
    assert packed_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(packed_gradients[name], gradient, rtol=1e-3, atol=2e-4), name


def test_a_pair_is_run_with_its_prompt_once(
    loaded: LoadedHF, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(loaded, [pair("a", images[0], "It is to the left.", "To the right.")])
    run, sizes = loaded.run, []
    monkeypatch.setattr(
        loaded, "run", lambda ids, *a, **k: (sizes.append(tuple(ids.shape)), run(ids, *a, **k))[1]
    )
    assert hidden_states(loaded, batch).shape[:2] == batch.ids.shape
    lengths = (batch.weight > 0).sum(1).tolist()
    shared = int((batch.ids[0] != batch.ids[1]).int().argmax())
    assert sizes == [(1, sum(lengths) - shared)]


def test_a_branch_does_not_see_the_other_one(loaded: LoadedHF, images: list[str]) -> None:
    """Another rejected answer moves nothing of the chosen one."""
    found = []
    for rejected in ("To the right.", "I cannot see it at all."):
        batch = batch_of(loaded, [pair("a", images[0], "It is to the left.", rejected)])
        chosen = token_scores(loaded, batch).logp.detach()[0]
        found.append(chosen[chosen != 0])
    assert torch.allclose(*found, atol=1e-5)


def test_eager_attention_sees_the_same(loaded: LoadedHF, mixed: Batch) -> None:
    """Its masks are numbers to add: one of truth values would hide nothing."""
    expected = token_scores(loaded, mixed).logp
    loaded.model.set_attn_implementation("eager")
    try:
        assert torch.allclose(token_scores(loaded, mixed).logp, expected, atol=1e-4)
    finally:
        loaded.model.set_attn_implementation("sdpa")


# --- answers to one request ------------------------------------------------------------------------


def test_answers_to_one_request_are_those_of_each_alone_and_keep_its_prompt_once(
    loaded: LoadedHF, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Decoding(12, temperature=1.5)
    requests = [
        Request(f"{n}", image, (Turn("prompt", "What is " + "there " * n + "?"),), n=4, decoding=how,
                candidates=("Yes", "No"))
        for n, image in enumerate([*images, None])
    ]  # fmt: skip
    run, sizes = loaded.run, []
    monkeypatch.setattr(
        loaded, "run", lambda ids, *a, **k: (sizes.append(tuple(ids.shape)), run(ids, *a, **k))[1]
    )
    monkeypatch.setattr(loaded, "batch_size", 1)
    alone = dict(loaded.generate(requests))
    assert {rows for rows, _ in sizes} == {1}
    sizes.clear()
    monkeypatch.setattr(loaded, "batch_size", 64)
    together = dict(loaded.generate(requests))
    assert {answers for rows, answers in sizes if answers > 1} >= {4}
    assert max(rows for rows, _ in sizes) == len(images)
    for key, replies in alone.items():
        assert len({reply.ids for reply in replies}) > 1
        assert [reply.ids for reply in together[key]] == [reply.ids for reply in replies]
        for mine, plain in zip(together[key], replies, strict=True):
            assert mine.logps == pytest.approx(plain.logps, abs=1e-4)
            assert mine.candidate_logps == pytest.approx(plain.candidate_logps, abs=1e-4)


def test_with_eager_attention_answers_to_one_request_are_the_same(
    loaded: LoadedHF, images: list[str]
) -> None:
    request = Request("r", images[0], (Turn("prompt", "What?"),), n=3, decoding=Decoding(8, temperature=1.5))
    ((_, expected),) = loaded.generate([request])
    loaded.model.set_attn_implementation("eager")
    try:
        ((_, found),) = loaded.generate([request])
    finally:
        loaded.model.set_attn_implementation("sdpa")
    assert [reply.ids for reply in found] == [reply.ids for reply in expected]
