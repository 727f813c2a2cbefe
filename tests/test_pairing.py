"""Who is chosen and who is rejected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from nsft_exp.pairing.gt import GroundTruth, question
from nsft_exp.records import Decoding, Exchange, Reply, Request, Sample, UserError


class Answering:
    """A VLM that gives stated answers, the last request first."""

    def __init__(self, answers: dict[str, Reply]) -> None:
        self.answers = answers
        self.asked: list[Request] = []

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[str, tuple[Reply, ...]]]:
        self.asked = list(requests)
        for request in reversed(self.asked):
            if request.id in self.answers:
                yield request.id, (self.answers[request.id],)


SAMPLES = [Sample(key, f"{key}.png", f"What is {key}?", " A cup. ") for key in "abcd"]
REPLIES = {
    "a": Reply("A table.", ids=(5, 6, 2), finish="stop"),
    "b": Reply("A cup. ", ids=(7, 2)),
    "c": Reply("  ", ids=(2,)),
    "d": Reply("A table and a", ids=(5, 6, 7, 8), finish="length"),
}


def test_the_chosen_answer_is_the_datas_and_the_rejected_one_the_models() -> None:
    pairs = {p.id: p for p in GroundTruth().pairs(SAMPLES, Answering(REPLIES))}
    assert {p.chosen for p in pairs.values()} == {"A cup."}
    assert [pairs[key].rejected for key in "abcd"] == ["A table.", "A cup.", "", "A table and a"]


def test_equal_and_empty_answers_have_a_status_of_their_own() -> None:
    pairs = {p.id: p.status for p in GroundTruth().pairs(SAMPLES, Answering(REPLIES))}
    assert pairs == {"a": "ok", "b": "equal", "c": "empty", "d": "ok"}


def test_a_preference_tells_how_the_rejected_answer_ended_and_how_long_it_is() -> None:
    pairs = {p.id: p.details for p in GroundTruth().pairs(SAMPLES, Answering(REPLIES))}
    assert pairs["a"] == {"finish": "stop", "tokens": 3}
    assert pairs["d"] == {"finish": "length", "tokens": 4}


def test_the_decoding_options_reach_every_request() -> None:
    vlm = Answering(REPLIES)
    list(GroundTruth(max_new_tokens=7, temperature=0.8, top_p=0.9, seed=3).pairs(SAMPLES, vlm))
    assert {r.decoding for r in vlm.asked} == {Decoding(7, 0.8, 0.9, 1, 3)}


def test_earlier_exchanges_stand_before_the_question() -> None:
    sample = Sample("x", "x.png", "And now?", "No.", history=(Exchange("First?", "Yes."),))
    request = question(sample, Decoding())
    assert [turn.text for turn in request.turns] == ["First?", "Yes.", "And now?"]
    assert {turn.role for turn in request.turns} == {"prompt"}
    assert request.image == "x.png"


def test_an_answer_that_is_missing_is_an_error_that_names_the_record() -> None:
    with pytest.raises(UserError, match="record c"):
        list(GroundTruth().pairs(SAMPLES, Answering({k: v for k, v in REPLIES.items() if k != "c"})))


def test_pairing_without_a_vlm_is_refused() -> None:
    with pytest.raises(UserError, match="vlm="):
        list(GroundTruth().pairs(SAMPLES, None))
