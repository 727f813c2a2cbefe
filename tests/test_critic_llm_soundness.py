"""Which turns of a critic's dialogue may be trained on, whoever wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from critic_pairs import BOOK, pairs, reply
from nsft_exp.critic.dialogue import corrected, polarity
from nsft_exp.critic.replay import Replay
from nsft_exp.critic.sense import sense_of
from nsft_exp.critic.soundness import balanced, contradiction_of, in_another_language, objection, sound
from nsft_exp.records import Correction, Exchange, FoundError

TRUTH = "There is a red truck in front of a small house. There are three dogs, but no cat."


def error(wrong: str, right: str, category: str = "attribute") -> FoundError:
    return FoundError(category, 0, len(wrong), wrong, right)


BLUE = error("blue", "red")
TWO = error("two dogs", "three dogs", "count")
KNIFE = error("a knife", "", "existence")


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("Is the truck blue?", "No, it is red.", ""),
        ("What color is the truck?", "Red.", ""),
        ("How many dogs are there?", "There are three.", ""),
        ("Is the truck red or blue?", "It is red.", ""),
        ("Is the house on the right?", "No.", ""),
        ("Is there a house behind the truck?", "Yes.", ""),
        ("The truck is red, isn't it?", "Yes.", "leading"),
        ("The truck is red, right?", "Yes.", "leading"),
        ("Isn’t the truck red?", "Yes, it is.", "leading"),
        ("Is the truck obviously red?", "Yes.", "leading"),
        ("What is the color of the red truck?", "It is red.", "leading"),
        ("Is there anything in the image?", "Yes.", "trivial"),
        ("Is this a picture?", "Yes, it is.", "trivial"),
        ("Is the red truck red?", "Yes.", "trivial"),
        ("What can you see?", "I can see it.", "trivial"),
        ("Is the first answer right about the truck?", "No.", "about_answers"),
        ("According to the caption, is the truck red?", "Yes.", "about_answers"),
        ("Does the rejected answer name a dog?", "Yes.", "about_answers"),
    ],
)
def test_a_turn_that_teaches_nothing_has_its_reason(question: str, answer: str, reason: str) -> None:
    assert objection(Exchange(question, answer)) == reason


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is the truck blue?", "Yes."),
        ("Is the truck blue?", "Yes, the truck is blue."),
        ("What color is the truck?", "It is blue."),
        ("Is the truck red?", "No, it is blue."),
        ("Is the truck red?", "No."),
        ("Is there a red truck?", "No, there is none."),
        ("Are there three dogs?", "No."),
        ("Are there two dogs?", "Yes."),
        ("How many dogs are there?", "There are two dogs."),
        ("Is there a knife?", "Yes, there is."),
        ("Is there a cat?", "Yes, there is a cat."),
        ("Is there a truck?", "No."),
    ],
)
def test_a_turn_that_contradicts_the_chosen_answer_is_found(question: str, answer: str) -> None:
    assert contradiction_of(Exchange(question, answer), TRUTH, [BLUE, TWO, KNIFE])


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is the truck blue?", "No, the truck is red."),
        ("Is the truck blue?", "No, it is not blue."),
        ("Is the truck red?", "Yes, the truck is red."),
        ("Is the house blue?", "No."),
        ("Is the sky blue?", "Yes."),
        ("Are there three trucks?", "No, there is one."),
        ("Are there two dogs?", "No, there are three dogs."),
        ("Is there only one dog?", "No, there are three dogs."),
        ("Is there a knife?", "No, there is no knife."),
        ("Is there a cat?", "No."),
        ("Is a truck missing here?", "No, there is a truck."),
        ("Is a cat missing here?", "Yes, there is no cat."),
        ("Is the truck red or blue?", "It is red."),
        ("Is it a dog?", "No, it is a truck."),
        ("Is the house in front of the truck?", "No, the truck is in front of the house."),
    ],
)
def test_a_true_turn_is_not_accused(question: str, answer: str) -> None:
    errors = [error("a blue truck", "a red truck"), TWO, KNIFE]
    assert not contradiction_of(Exchange(question, answer), TRUTH, errors)


def dialogue(*kinds: str) -> list[Exchange]:
    answers = {"yes": "Yes, {}.", "no": "No, {}.", "open": "It is word{}."}
    return [Exchange(f"Is thing{i} there?", answers[kind].format(i)) for i, kind in enumerate(kinds)]


@given(st.lists(st.sampled_from(["yes", "no", "open"]), max_size=8))
def test_balance_drops_the_last_turns_of_the_commoner_answer_and_nothing_else(kinds: list[str]) -> None:
    before, after = dialogue(*kinds), balanced(dialogue(*kinds))
    number = {k: [polarity(e.answer) for e in after].count(k) for k in ("yes", "no", "open")}
    assert number["yes"] == number["no"] == min(kinds.count("yes"), kinds.count("no"))
    assert number["open"] == kinds.count("open")
    assert [e for e in before if e in after] == after
    for kind in ("yes", "no"):
        of_kind = [e for e in before if polarity(e.answer) == kind]
        assert [e for e in after if e in of_kind] == of_kind[: number[kind]]


def correction(*turns: tuple[str, str], errors: tuple[FoundError, ...] = (BLUE,)) -> Correction:
    return corrected("s", errors, [Exchange(*turn) for turn in turns], dropped_errors=2)


GOOD = (("Is the truck blue?", "No, it is red."), ("Is the truck red?", "Yes, the truck is red."))


def test_dropped_turns_are_counted_by_reason_and_earlier_counts_stay() -> None:
    more = (("The truck is red, right?", "Yes."), ("Is this a picture?", "Yes."), ("Is the dog blue?", "No."))
    checked = sound(correction(*GOOD, *more), "What is there?", TRUTH)
    assert [(e.question, e.answer) for e in checked.dialogue] == list(GOOD)
    assert checked.details["dropped"] == {"leading": 1, "trivial": 1, "unbalanced": 1}
    assert (checked.details["yes"], checked.details["no"], checked.details["dropped_errors"]) == (1, 1, 2)
    assert len(sound(correction(*GOOD, *more), "?", TRUTH, balance=False).dialogue) == 3


def test_a_contradicting_turn_refuses_the_whole_correction_and_names_it() -> None:
    checked = sound(correction(*GOOD, ("Is the truck blue?", "Yes.")), "What is there?", TRUTH)
    assert (checked.status, checked.dialogue, checked.errors) == ("refused", (), (BLUE,))
    assert "repeats the error" in checked.details["reason"]
    assert "'Is the truck blue?' 'Yes.'" in checked.details["reason"]


def test_a_dialogue_of_one_polarity_is_refused_with_the_reason() -> None:
    checked = sound(correction(GOOD[0]), "What is there?", TRUTH)
    assert (checked.status, checked.details["reason"]) == (
        "refused",
        "no turn is left to train on: 1 unbalanced",
    )
    assert sound(correction(GOOD[0]), "What is there?", TRUTH, balance=False).status == "ok"


def test_other_statuses_pass_as_they_are() -> None:
    for status in ("no_error", "unparseable", "refused", "cut"):
        before = Correction("s", status, details={"reason": "x"})
        assert sound(before, "?", TRUTH) is before


def test_language_is_judged_beside_the_answers_own() -> None:
    french = "La voiture est rouge et les trois chiens sont devant une petite maison blanche. " * 2
    assert in_another_language(french, TRUTH)
    assert in_another_language("卡车是红色的吗？是的。", TRUTH)
    assert not in_another_language(TRUTH * 2, TRUTH)
    assert not in_another_language(french, french), "French answers may be corrected in French"
    assert not in_another_language("Oui.", TRUTH), "a word is no evidence"


def test_replayed_replies_are_checked_the_same_way(tmp_path: Path) -> None:
    contradicting = [{"question": "Is the cup blue?", "answer": "Yes."}]
    lopsided = [
        {"question": "Is the cup blue?", "answer": "No, it is red."},
        {"question": "Is the cup green?", "answer": "No, it is red."},
        {"question": "Is the cup red?", "answer": "Yes."},
    ]
    texts = [reply(dialogue=contradicting), reply(dialogue=lopsided)]
    rows = [{"id": f"s{i}", "reply": text} for i, text in enumerate(texts)]
    file = tmp_path / "replies.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    refused, cut = Replay(str(file), BOOK).corrections(pairs(2))
    assert refused.status == "refused"
    assert [e.question for e in cut.dialogue] == ["Is the cup blue?", "Is the cup red?"]
    _, whole = Replay(str(file), BOOK, balance=False).corrections(pairs(2))
    assert len(whole.dialogue) == 3


def test_a_sentence_is_read_as_what_it_affirms_and_denies() -> None:
    sense = sense_of("The truck is red. There is no small cat, but two dogs.")
    assert sense.affirmed == (("truck", "red"), ("two", "dog"))
    assert sense.denied == (("small", "cat"),)
    assert sense.content == {"truck", "red", "small", "cat", "two", "dog"}


@given(st.text(), st.text(), st.text(), st.text())
def test_no_words_whatsoever_raise(question: str, answer: str, chosen: str, wrong: str) -> None:
    checked = sound(correction((question, answer), errors=(error(wrong, ""),)), question, chosen)
    assert checked.status in ("ok", "refused", "wrong_language")
    assert bool(checked.dialogue) == (checked.status == "ok")
