"""The rule critic, its matched control, and the audit of both."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import nsft_exp.toy
from nsft_exp.critic.audit import Audit, audit, scenes_of
from nsft_exp.critic.codebook import UNCATEGORISED, Codebook
from nsft_exp.critic.dialogue import polarity
from nsft_exp.critic.lexicon import Lexicon
from nsft_exp.critic.matched import MatchedRandom
from nsft_exp.critic.reading import Reader
from nsft_exp.critic.rule import EVERYTHING, Rule
from nsft_exp.records import Correction, Exchange, Preference, Sample, UserError

LEXICON = str(Path(__file__).with_name("critic_lexicon.yaml"))
CONF = Path(__file__).parents[1] / "conf"
DESCRIBE = "Describe the picture."
END = " There is nothing else in the image."


def criticise(
    question: str, chosen: str, rejected: str, critic: Any = None, key: str = "s1", **meta: Any
) -> Correction:
    status = "equal" if chosen == rejected else "ok"
    pair = Sample(key, f"{key}.png", question, chosen, meta=meta), Preference(key, status, chosen, rejected)
    (correction,) = (critic or Rule(LEXICON, EVERYTHING)).corrections([pair])
    return correction


def said(correction: Correction) -> set[tuple[str, str]]:
    return {(exchange.question, exchange.answer) for exchange in correction.dialogue}


def named(correction: Correction) -> list[tuple[str, str, str]]:
    return [(error.category, error.wrong, error.right) for error in correction.errors]


# --- reading -----------------------------------------------------------------------------------------


def test_a_description_is_read_claim_by_claim() -> None:
    text = "A street. There is a large red dog at the top left. The dog is above the puppy. No apple. Sign."
    text = text.replace("Sign", "A sign reads B")
    claims = Reader(Lexicon(LEXICON)).read(DESCRIBE, text).claims
    assert [(c.kind, c.noun, c.value, c.holds) for c in claims] == [
        ("scene", "", "street", True),
        ("existence", "dog", "", True),
        ("size", "dog", "large", True),
        ("color", "dog", "red", True),
        ("position", "dog", "top left", True),
        ("relation", "dog", "above", True),
        ("existence", "dog", "", True),
        ("existence", "dog", "", True),
        ("existence", "apple", "", False),
        ("text", "", "B", True),
    ]
    assert [text[c.start : c.end] for c in claims[:5]] == [
        "street",
        "a large red dog",
        "large",
        "red",
        "top left",
    ]


@pytest.mark.parametrize(
    ("question", "answer", "claim"),
    [
        ("Is there a red dog?", "Yes", ("color", "dog", "red", True)),
        ("Is there a dog? Please answer yes or no.", "No.", ("existence", "dog", "", False)),
        ("What color is the truck?\nAnswer with one word.", "Blue", ("color", "truck", "blue", True)),
        ("How many knives are there?", "two", ("count", "knife", "2", True)),
        ("How many objects are there?", "3", ("total", "", "3", True)),
        ("What is at the top left?", "Apple", ("position", "apple", "top left", True)),
        ("Is the dog above the truck?", "No", ("relation", "dog", "below", True)),
        ("What place is it?", "Park", ("scene", "", "park", True)),
        ("Is there a red dog?", "No", ("existence", "dog", "red", False)),
        ("What does the sign say?", "b", ("text", "", "B", True)),
        ("Where is the dog?", "The dog is at the top left.", ("position", "dog", "top left", True)),
    ],
)
def test_a_short_answer_says_what_its_question_asks(
    question: str, answer: str, claim: tuple[Any, ...]
) -> None:
    claims = Reader(Lexicon(LEXICON)).read(question, answer).claims
    assert claim in [(c.kind, c.noun, c.value, c.holds) for c in claims]
    assert all(0 <= c.start < c.end <= len(answer) for c in claims)


# --- what is an error --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "rejected", "errors"),
    [
        ("There is a red dog.", "There is a blue dog.", [("attribute", "blue", "red")]),
        ("There is a dog.", "There is a blue dog.", []),
        (
            "A small dog in a park.",
            "A large dog in a street.",
            [("attribute", "large", "small"), ("scene", "street", "park")],
        ),
        (
            "There are two dogs.",
            "There are three puppies and dogs. There are three dogs.",
            [("count", "three dogs", "two")],
        ),
        (
            "There is a dog at the top left.",
            "There is a dog at the top right.",
            [("relation", "top right", "top left")],
        ),
        ("A sign reads A.", "A sign that reads B", [("text", "B", "A")]),
        ("There is no dog.", "There is a dog.", [("existence", "a dog", "")]),
        ("There is a dog.", "There is no puppy.", [("existence", "no puppy", "dog")]),
        (
            "The dog is above the truck.",
            "The truck is above the dog.",
            [("relation", "The truck is above the dog", "below")],
        ),
        ("The dog is above the truck.", "The dog is to the left of the truck.", []),
    ],
)
def test_an_error_is_what_the_chosen_answer_contradicts(
    chosen: str, rejected: str, errors: list[tuple[str, str, str]]
) -> None:
    correction = criticise(DESCRIBE, chosen, rejected)
    assert named(correction) == errors
    assert all(rejected[e.start : e.end] == e.wrong for e in correction.errors)
    assert correction.status == ("ok" if errors else "no_error")


def test_an_object_that_the_chosen_answer_merely_does_not_mention_is_no_error() -> None:
    chosen, rejected = "A red dog in a park.", "A red dog and a knife in a park."
    assert criticise(DESCRIBE, chosen, rejected).status == "no_error"
    closed = criticise(DESCRIBE, chosen, rejected, Rule(LEXICON, EVERYTHING, closed_world=True))
    assert named(closed) == [("existence", "a knife", "")]
    assert ("Do you see a knife?", "No, there is no knife.") in said(closed)


def test_an_answer_that_says_it_named_everything_closes_the_world() -> None:
    correction = criticise(
        DESCRIBE, "There is a red dog." + END, "There is a red dog. There is a knife." + END
    )
    assert named(correction) == [("existence", "a knife", "")]


@pytest.mark.parametrize(
    ("rejected", "wrong", "asked"),
    [
        ("There are two knives.", "two knives", "knife"),
        ("A sign reads B.", "B", "sign"),
        ("There are knives.", "knives", "knife"),
        ("The knife is red.", "knife", "knife"),
        ("The dog is above the knife.", "knife", "knife"),
    ],
)
def test_what_is_not_there_is_denied_however_it_was_named(rejected: str, wrong: str, asked: str) -> None:
    correction = criticise(DESCRIBE, "There is a red dog at the top left." + END, rejected)
    assert named(correction) == [("existence", wrong, "")]
    assert (f"Do you see a {asked}?", f"No, there is no {asked}.") in said(correction)


def test_a_sign_that_the_chosen_answer_reads_is_one_sign() -> None:
    assert criticise(DESCRIBE, "A sign reads B." + END, "There is a sign." + END).status == "no_error"


def test_a_second_object_of_a_kind_is_a_wrong_number_only_in_a_closed_world() -> None:
    chosen = "There is a red dog at the top left."
    rejected = chosen + " There is a blue dog at the top right."
    assert criticise(DESCRIBE, chosen, rejected).status == "no_error"
    correction = criticise(DESCRIBE, chosen + END, rejected + END)
    assert named(correction) == [("count", "a blue dog", "one")]
    assert ("Do you count two dogs?", "No, I count one dog.") in said(correction)


def test_of_several_objects_of_a_kind_the_one_at_the_place_is_meant() -> None:
    chosen = "There is a red dog at the top left. There is a green dog at the top right." + END
    rejected = "There is a red dog at the top left. There is a blue dog at the top right." + END
    correction = criticise(DESCRIBE, chosen, rejected)
    assert named(correction) == [("attribute", "blue", "green")]
    assert said(correction) == {
        ("Do you see a blue dog?", "No, there is no blue dog."),
        ("Do you see a green dog?", "Yes, there is a green dog."),
    }


def test_something_else_at_a_place_denies_only_what_was_said_of_that_place() -> None:
    correction = criticise("What is at the top left?", "Apple", "Knife")
    assert named(correction) == [("existence", "Knife", "apple")]
    assert said(correction) == {
        ("Is that a knife at the top left?", "No, there is an apple at the top left."),
        ("Is that an apple at the top left?", "Yes, there is an apple at the top left."),
        ("Please name the object at the top left.", "There is an apple at the top left."),
    }


def test_relations_follow_from_the_places_that_the_chosen_answer_gives() -> None:
    chosen = "There is a dog at the top left. There is a truck at the bottom right."
    assert criticise(DESCRIBE, chosen, "The dog is above the truck.").status == "no_error"
    correction = criticise(DESCRIBE, chosen, "The dog is below the truck.")
    assert named(correction) == [("relation", "The dog is below the truck", "to the left of")]


def test_the_annotation_of_the_picture_is_never_read() -> None:
    pair = (DESCRIBE, "There is a red dog.", "There is a blue dog and a knife.")
    blue = {
        "scene": "park",
        "objects": [{"category": "dog", "color": "blue", "size": "large", "place": "top left"}],
    }
    assert criticise(*pair, annotation=blue) == criticise(*pair)


# --- dialogue ----------------------------------------------------------------------------------------


def test_a_wrong_value_is_denied_and_the_right_one_affirmed_and_asked_for() -> None:
    assert said(criticise("What color is the truck?", "Red", "Blue")) == {
        ("Is the truck blue?", "No, the truck is red."),
        ("Is the truck red?", "Yes, the truck is red."),
        ("Tell the color of the truck.", "The truck is red."),
    }


@pytest.mark.parametrize("noun", ["dog", "red dog"])
@pytest.mark.parametrize(("chosen", "rejected"), [("No", "Yes"), ("Yes", "No")])
def test_a_lone_fact_is_asked_in_both_directions(chosen: str, rejected: str, noun: str) -> None:
    words = f"there is {'a' if chosen == 'Yes' else 'no'} {noun}."
    correction = criticise(f"Is there a {noun}?", chosen, rejected)
    assert named(correction) == [("existence", rejected, "dog" if chosen == "Yes" else "")]
    assert said(correction) == {
        (f"Do you see a {noun}?", f"{chosen}, {words}"),
        (f"Is a {noun} missing here?", f"{rejected}, {words}"),
    }


def test_beside_a_denied_object_one_that_the_rejected_answer_left_out_is_affirmed() -> None:
    correction = criticise(
        DESCRIBE, "A dog, a truck and an apple." + END, "A dog, an apple and a knife." + END
    )
    assert said(correction) == {
        ("Do you see a knife?", "No, there is no knife."),
        ("Do you see a truck?", "Yes, there is a truck."),
    }


CHOSEN = (
    "A park. There is a large red dog at the top left. There is a small blue truck at the top right." + END
)
REJECTED = (
    "A street. There is a small green dog at the top left. There is a large white truck at the bottom left."
    " There is a red knife at the top right. There is an apple at the top middle." + END
)


@pytest.mark.parametrize("turns", [1, 2, 3, 4, 5, 7])
def test_a_dialogue_is_no_longer_than_asked_and_as_often_yes_as_no(turns: int) -> None:
    correction = criticise(DESCRIBE, CHOSEN, REJECTED, Rule(LEXICON, EVERYTHING, max_turns=turns))
    assert len(correction.dialogue) == turns
    answers = Counter(polarity(e.answer) for e in correction.dialogue)
    assert abs(answers["yes"] - answers["no"]) == (1 if turns == 1 else 0)
    assert len({e.question for e in correction.dialogue}) == turns


def test_with_one_turn_yes_and_no_are_about_as_frequent_over_a_set() -> None:
    critic = Rule(LEXICON, EVERYTHING, max_turns=1)
    rows = [criticise(DESCRIBE, CHOSEN, REJECTED, critic, key=f"s{i}") for i in range(200)]
    assert 70 < sum(c.details["yes"] for c in rows) < 130


def test_no_turns_at_all_are_refused() -> None:
    with pytest.raises(UserError, match="max_turns"):
        Rule(LEXICON, EVERYTHING, max_turns=0)


def test_the_codebook_decides_which_errors_count_and_which_come_first() -> None:
    fields = {"level": "image", "meaning": "", "example": ""}
    everything = criticise(DESCRIBE, CHOSEN, REJECTED)
    assert Counter(e.category for e in everything.errors) == {
        "existence": 2,
        "attribute": 4,
        "scene": 1,
        "relation": 1,
    }
    scene = criticise(DESCRIBE, CHOSEN, REJECTED, Rule(LEXICON, Codebook({"scene": fields})))
    assert named(scene) == [("scene", "street", "park")]
    assert scene.details["other_errors"] == 7
    first = criticise(
        DESCRIBE, CHOSEN, REJECTED, Rule(LEXICON, Codebook({"scene": fields, "attribute": fields}))
    )
    assert [e.category for e in first.errors] == ["scene"] + ["attribute"] * 4
    text = criticise(DESCRIBE, CHOSEN, REJECTED, Rule(LEXICON, Codebook({"text": fields})))
    assert text.status == "no_error"


def test_without_a_codebook_the_dialogue_is_as_long_and_about_differing_words() -> None:
    full = criticise(DESCRIBE, CHOSEN, REJECTED)
    none = criticise(DESCRIBE, CHOSEN, REJECTED, Rule(LEXICON, Codebook()))
    assert len(none.dialogue) == len(full.dialogue) == 5
    assert {e.category for e in none.errors} == {UNCATEGORISED}
    words = {w.strip(".").lower() for w in REJECTED.split()} - {w.strip(".").lower() for w in CHOSEN.split()}
    assert {e.wrong.lower() for e in none.errors} == words
    assert all(REJECTED[e.start : e.end] == e.wrong for e in none.errors)
    assert (none.details["yes"], none.details["no"]) == (2, 2)


def test_without_a_codebook_too_an_unmentioned_object_is_not_denied() -> None:
    rejected = "A blue dog and a knife in a park."
    none = criticise(DESCRIBE, "A red dog in a park.", rejected, Rule(LEXICON, Codebook()))
    assert "knife" not in {e.wrong for e in none.errors} | {q.split()[3] for q, _ in said(none)}


def test_a_correction_depends_on_its_own_pair_alone() -> None:
    rows = [(DESCRIBE, CHOSEN, REJECTED, f"s{i}") for i in range(5)]
    pairs = [(Sample(k, None, q, c), Preference(k, "ok", c, r)) for q, c, r, k in rows]
    forward = list(Rule(LEXICON, EVERYTHING).corrections(pairs))
    backward = list(Rule(LEXICON, EVERYTHING).corrections(pairs[::-1]))
    assert forward == backward[::-1]
    assert len({c.dialogue for c in forward}) > 1


@pytest.mark.parametrize("critic", [Rule(LEXICON, EVERYTHING), MatchedRandom(LEXICON, EVERYTHING)])
@pytest.mark.parametrize("status", ["equal", "empty"])
def test_pairs_that_are_none_have_no_error(critic: Any, status: str) -> None:
    (correction,) = critic.corrections([(Sample("a", None, "?", "x"), Preference("a", status, "x", "x"))])
    assert (correction.status, correction.details["reason"]) == ("no_error", f"no pair: {status}")


def test_a_lexicon_that_is_missing_or_lacks_a_part_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "lexicon.yaml"
    file.write_text("categories: {}", encoding="utf-8")
    for path, words in ((file, "has no scenes"), (tmp_path / "none.yaml", "cannot read")):
        with pytest.raises(UserError, match=words) as error:
            criticise(DESCRIBE, "a", "b", Rule(str(path), EVERYTHING))
        assert "\n" not in str(error.value)


PLACES = ("Top left", "Bottom right")


# --- the matched control -----------------------------------------------------------------------------


@cache
def wordings() -> dict[str, re.Pattern[str]]:
    """Every wording of a correction, with a pattern for its questions."""
    lexicon = Lexicon(LEXICON)
    kinds = [*lexicon.data["questions"], "missing", "naming"]
    uses = ("correction", "open_correction")
    found = [wording for kind in kinds for use in uses for wording in lexicon.wordings(kind, use)]
    return {wording: re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(wording))) for wording in found}


def shape(correction: Correction) -> list[tuple[str, str]]:
    """The wording and the polarity of every turn."""
    return [
        (next(w for w, pattern in wordings().items() if pattern.fullmatch(e.question)), polarity(e.answer))
        for e in correction.dialogue
    ]


def test_the_control_has_the_same_wordings_polarity_and_order_of_turns() -> None:
    texts = [
        (DESCRIBE, CHOSEN, REJECTED),
        ("Is there a red dog?", "No", "Yes"),
        ("Where is the dog?", *PLACES),
    ]
    for key, pair in enumerate(texts):
        nsft = criticise(*pair, key=f"s{key}")
        control = criticise(*pair, MatchedRandom(LEXICON, EVERYTHING), f"s{key}")
        assert shape(control) == shape(nsft)
        assert (control.status, control.errors) == ("ok", ())


def test_the_control_says_only_what_the_chosen_answer_entails() -> None:
    scene = {
        "scene": "park",
        "objects": [
            {"category": "dog", "color": "red", "size": "large", "place": "top left"},
            {"category": "truck", "color": "blue", "size": "small", "place": "top right"},
        ],
    }
    lexicon = Lexicon(LEXICON)
    for seed in range(40):
        control = criticise(DESCRIBE, CHOSEN, REJECTED, MatchedRandom(LEXICON, EVERYTHING, seed=seed))
        for turn in control.dialogue:
            sample = Sample("x", None, turn.question, "", cluster="x")
            row = sample, Preference("x", "ok", "", turn.answer), Correction("x", "no_error")
            assert audit([row], {"x": scene}, lexicon)["all"].existing == 0, turn


def test_the_control_does_not_read_what_the_rejected_answer_says() -> None:
    other = REJECTED.replace("knife", "KNIFE").replace("knife", "apple")
    swapped = other.replace("apple", "knife").replace("KNIFE", "apple").replace("white", "red")
    critic = MatchedRandom(LEXICON, EVERYTHING)
    assert swapped != REJECTED
    assert (
        criticise(DESCRIBE, CHOSEN, REJECTED, critic).dialogue
        == criticise(DESCRIBE, CHOSEN, swapped, critic).dialogue
    )


def test_the_controls_negatives_are_drawn_from_all_true_ones() -> None:
    chosen, rejected = "A red dog." + END, "A red dog and a knife." + END
    critic = MatchedRandom(LEXICON, EVERYTHING)
    turns = [e for i in range(300) for e in criticise(DESCRIBE, chosen, rejected, critic, f"s{i}").dialogue]
    asked = Counter(e.question for e in turns if polarity(e.answer) == "no")
    assert set(asked) == {f"Do you see {thing}?" for thing in ("a knife", "a truck", "an apple")}
    assert all(70 < n < 130 for n in asked.values())  # 300 draws of 3: mean 100, standard deviation 8


def test_the_control_needs_a_codebook() -> None:
    with pytest.raises(UserError, match="codebook=full"):
        criticise(DESCRIBE, CHOSEN, REJECTED, MatchedRandom(LEXICON, Codebook()))


# --- audit -------------------------------------------------------------------------------------------


def test_precision_and_recall_count_named_errors_against_the_annotation() -> None:
    scene = {
        "scene": "park",
        "objects": [{"category": "dog", "color": "red", "size": "large", "place": "top left"}],
        "sign": None,
    }
    sample = Sample(
        "a", "a.png", DESCRIBE, "A red dog in a park.", cluster="a.png", meta={"annotation": scene}
    )
    rejected = "A blue dog and a knife in a street."  # three errors by the annotation
    preference = Preference("a", "ok", sample.answer, rejected)
    (correction,) = Rule(LEXICON, EVERYTHING).corrections(
        [(sample, preference)]
    )  # the open world hides the knife
    invented = replace(correction.errors[0], category="scene", start=0, end=1)
    correction = replace(correction, errors=(*correction.errors, invented))
    sums = audit([(sample, preference, correction)], scenes_of([sample]), Lexicon(LEXICON))
    assert sums["all"] == Audit(found=3, true=2, existing=3, recalled=2)
    assert (sums["existence"], sums["attribute"]) == (Audit(0, 0, 1, 0), Audit(1, 1, 1, 1))
    assert sums["scene"].precision == 0.5
    assert sums["scene"].recall == 1.0
    assert (sums["existence"].precision, sums["existence"].recall) == (None, 0.0)


def test_pairs_without_an_annotation_are_not_audited() -> None:
    sample = Sample("a", "a.png", DESCRIBE, "A red dog.", cluster="a.png")
    row = sample, Preference("a", "ok", sample.answer, "A blue dog."), Correction("a", "no_error")
    assert audit([row], scenes_of([sample]), Lexicon(LEXICON))["all"] == Audit()


# --- on the toy world's own texts --------------------------------------------------------------------

TOY = str(Path(nsft_exp.toy.__file__).with_name("lexicon.yaml"))


def toy_pairs(kind: str, size: int = 150) -> list[tuple[Sample, Preference]]:
    """Honest answers as chosen, careless writers' as rejected."""
    from nsft_exp.toy import files, text, world

    rows = []
    for i in range(size):
        scene, rng = world.make_scene("align", 5, i), Random(i)
        true, careless = text.honest(scene), text.careless(scene, rng)
        question = world.lexicon()["questions"][kind]["source"][0]
        if kind == "caption":
            chosen, rejected = text.caption(true, i % 2 == 0), text.caption(careless, i % 3 == 0)
        else:
            chosen, rejected = text.detailed(true), text.detailed(careless)
        sample = Sample(
            f"{kind}{i}", None, question, chosen, cluster=str(i), meta={"annotation": files.annotation(scene)}
        )
        rows.append(
            (sample, Preference(sample.id, "equal" if chosen == rejected else "ok", chosen, rejected))
        )
    return rows


@pytest.mark.parametrize("kind", ["caption", "detailed"])
def test_on_the_toy_every_error_is_true_and_yes_balances_no(kind: str) -> None:
    pairs = toy_pairs(kind)
    done = list(Rule(TOY, EVERYTHING).corrections(pairs))
    sums = audit(
        [(*p, c) for p, c in zip(pairs, done, strict=True)], scenes_of(s for s, _ in pairs), Lexicon(TOY)
    )["all"]
    assert sums.existing > 50
    assert sums.precision == 1.0
    assert sums.recall is not None
    assert (
        sums.recall == 1.0 if kind == "detailed" else sums.recall > 0.3
    )  # half the captions leave the world open
    yes, no = (sum(c.details.get(answer, 0) for c in done) for answer in ("yes", "no"))
    assert yes == no > 50


@pytest.mark.parametrize("critic", [Rule, MatchedRandom])
@pytest.mark.parametrize("kind", ["caption", "detailed"])
def test_on_the_toy_every_turn_of_a_dialogue_is_true(kind: str, critic: Any) -> None:
    pairs = toy_pairs(kind)
    scenes, lexicon = scenes_of(s for s, _ in pairs), Lexicon(TOY)
    turns = 0
    for (sample, _), correction in zip(pairs, critic(TOY, EVERYTHING).corrections(pairs), strict=True):
        for turn in correction.dialogue:
            asked = Sample("x", None, turn.question, "", cluster=sample.cluster)
            row = asked, Preference("x", "ok", "", turn.answer), Correction("x", "no_error")
            assert audit([row], scenes, lexicon)["all"].existing == 0, turn
            turns += 1
    assert turns > 100


@pytest.mark.parametrize("kind", ["caption", "detailed"])
def test_on_the_toy_the_control_is_as_long_as_the_corrections(kind: str) -> None:
    pairs = toy_pairs(kind)
    rule, control = (list(critic(TOY, EVERYTHING).corrections(pairs)) for critic in (Rule, MatchedRandom))
    assert [len(c.dialogue) for c in rule] == [len(c.dialogue) for c in control]
    words = [
        sum(len(f"{e.question} {e.answer}".split()) for c in done for e in c.dialogue)
        for done in (rule, control)
    ]
    assert abs(words[0] - words[1]) < 0.01 * words[0]
    same = sum(len(said(a) & said(b)) for a, b in zip(rule, control, strict=True))
    assert same < 0.5 * sum(len(c.dialogue) for c in rule)


def test_every_own_question_of_the_toy_is_read_by_the_critic() -> None:
    from nsft_exp.toy import talk, world

    reader = Reader(Lexicon(TOY))
    for i in range(60):
        scene, rng = world.make_scene("align", 6, i), Random(i)
        for exchange in (*talk.vqa_talk(scene, rng), *talk.instruct_talk(scene, rng)):
            assert reader.question(exchange.question), exchange
            assert reader.read(exchange.question, exchange.answer).claims, exchange


def test_corrections_share_no_wording_with_the_tests_of_the_toy() -> None:
    lexicon = Lexicon(TOY)
    tests = {w for kind in lexicon.data["questions"] for w in lexicon.wordings(kind, "test")}
    tests |= set(lexicon.data.get("mme", {}).values())
    kinds = [*lexicon.data["questions"], "missing", "naming", "word"]
    own = {
        w for kind in kinds for use in ("correction", "open_correction") for w in lexicon.wordings(kind, use)
    }
    assert own
    assert not own & tests


# --- configuration -----------------------------------------------------------------------------------


def composed(*overrides: str) -> Any:
    OmegaConf.register_new_resolver(
        "package", lambda path: str(Path(nsft_exp.__file__).parent / path), replace=True
    )
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=["+data_seed=3", *overrides])
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("critic", ["rule", "matched_random", "replay"])
@pytest.mark.parametrize("codebook", ["full", "instance", "image", "none"])
def test_every_critic_composes_with_every_codebook_and_can_be_built(critic: str, codebook: str) -> None:
    extra = ["critic.replies=replies.jsonl"] if critic == "replay" else []
    config = composed(f"+codebook={codebook}", f"+critic={critic}", *extra)
    built = instantiate(config["critic"], _convert_="all")
    book = getattr(built, "rule", built).codebook
    levels = {
        "full": {"instance", "image", "text"},
        "instance": {"instance"},
        "image": {"image"},
        "none": set(),
    }
    assert {category.level for category in book.categories} == levels[codebook]


def test_the_full_codebook_names_every_category_that_the_rules_find() -> None:
    full = yaml.safe_load((CONF / "codebook" / "full.yaml").read_text("utf-8"))
    assert list(full["categories"]) == ["existence", "attribute", "count", "scene", "relation", "text"]
    assert set(full["categories"]) == set(EVERYTHING.names)


def test_none_is_an_empty_node_and_gt_takes_its_seed_from_data_seed() -> None:
    assert composed("+critic=none", "+pairing=none")["critic"] == {}
    assert composed("+critic=none", "+pairing=none")["pairing"] == {}
    pairing = instantiate(composed("+pairing=gt")["pairing"], _convert_="all")
    assert (pairing.decoding.seed, pairing.decoding.temperature) == (3, 0.0)


def test_a_dialogue_ends_as_plain_exchanges() -> None:
    assert all(isinstance(turn, Exchange) for turn in criticise(DESCRIBE, CHOSEN, REJECTED).dialogue)


# --- any text ----------------------------------------------------------------------------------------

WORDS = """
a|an|the|no|not|one|two|three|5|is|are|at|above|below|sign|reads|nothing else|.|,|?|Yes|No|none|B|2|red|blue
dog|dogs|knife|knives|truck|apple|object|objects|small|large|park|street|top left|bottom right
to the left of|to the right of|There is a|The dog is|The knife is|A sign reads|at the|There are
"""
TEXTS = st.lists(st.sampled_from(WORDS.strip().replace("\n", "|").split("|")), max_size=25).map(" ".join)
ASKED = """
Describe the picture.|Is there a red dog?|Is there a knife?|How many dogs are there?|What is at the top left?
Is the dog above the truck?|What does the sign say?|How many objects are there?|Where is the dog?
"""
ANSWERS = TEXTS | st.text(max_size=30)
QUESTIONS = st.sampled_from(ASKED.strip().replace("\n", "|").split("|"))


@cache
def critics(turns: int, closed: bool) -> tuple[Any, ...]:
    options: dict[str, Any] = {"max_turns": turns, "closed_world": closed}
    kinds = (Rule, EVERYTHING), (MatchedRandom, EVERYTHING), (Rule, Codebook())
    return tuple(kind(LEXICON, book, **options) for kind, book in kinds)


@given(QUESTIONS, ANSWERS, ANSWERS, st.booleans(), st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_whatever_the_answers_say_dialogues_are_balanced_and_the_control_matches(
    question: str, chosen: str, rejected: str, closed: bool, turns: int
) -> None:
    rule, control, words = (criticise(question, chosen, rejected, c) for c in critics(turns, closed))
    assert shape(rule) == shape(control)
    assert rule.status == control.status
    assert len(words.dialogue) <= len(rule.dialogue) <= turns
    for done in (rule, control, words):
        assert bool(done.dialogue) == (done.status == "ok")
        if turns > 1 and done.dialogue:
            assert done.details["yes"] == done.details["no"]
    assert all(rejected[e.start : e.end] == e.wrong for c in (rule, words) for e in c.errors)
