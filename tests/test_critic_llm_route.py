"""Templates for short answers, and the choice between them and an LLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from critic_pairs import critic, pairs, reply, saying
from nsft_exp import config as configs
from nsft_exp.critic.codebook import UNCATEGORISED
from nsft_exp.critic.dialogue import polarity
from nsft_exp.critic.route import Route
from nsft_exp.critic.template import Template
from nsft_exp.records import Correction, Preference, Sample, UserError, to_json
from scripted_critic import serving

AFFIRM = [["Is it {answer}? ({question})", "Yes, it is {answer}."]]
DENY = [["Is it {answer}? ({question})", "No, it is not {answer}."]]
ASKS = "What is this book about?\nAnswer the question using a single word or phrase."


def pair(chosen: str, rejected: str, key: str = "s", question: str = ASKS) -> tuple[Sample, Preference]:
    return Sample(key, None, question, chosen), Preference(key, "ok", chosen, rejected)


def correct(chosen: str, rejected: str, **options: Any) -> Correction:
    (correction,) = Template(AFFIRM, DENY, **options).corrections([pair(chosen, rejected)])
    return correction


def test_the_papers_example_becomes_one_yes_and_one_no() -> None:
    found = correct("Travel", "Cookbook.")
    turns = {polarity(e.answer): (e.question, e.answer) for e in found.dialogue}
    assert turns == {
        "yes": ("Is it Travel? (What is this book about?)", "Yes, it is Travel."),
        "no": ("Is it Cookbook? (What is this book about?)", "No, it is not Cookbook."),
    }
    (error,) = found.errors
    assert (error.category, error.start, error.end, error.right) == (UNCATEGORISED, 0, 9, "Travel")


def test_which_turn_comes_first_differs_between_samples_but_not_between_runs() -> None:
    many = [pair("Travel", "Cookbook", key=str(i)) for i in range(200)]
    one, two = (list(Template(AFFIRM, DENY).corrections(many)) for _ in range(2))
    assert one == two
    assert 60 < sum(polarity(c.dialogue[0].answer) == "yes" for c in one) < 140


@pytest.mark.parametrize(
    ("chosen", "rejected", "status"),
    [
        ("Travel", "travel.", "no_error"),
        ("the Alps", "Alps", "no_error"),
        ("Travel", "Travel guide", "refused"),
        ("Travel", "one two three four five six seven eight nine", "refused"),
        ("Travel", "Cook\nbook", "refused"),
        ("Travel", "", "refused"),
        ("Yes", "No", "ok"),
        ("{question}", "{answer} \\1", "ok"),
        ("car", "cart", "ok"),
    ],
)
def test_answers_that_templates_cannot_correct_have_a_status(chosen: str, rejected: str, status: str) -> None:
    found = correct(chosen, rejected)
    assert found.status == status
    assert bool(found.dialogue) == (status == "ok")


def test_words_of_a_sample_are_never_filled_in_again() -> None:
    answers = {e.answer for e in correct("{question}", "{answer} \\1").dialogue}
    assert answers == {"Yes, it is {question}.", "No, it is not {answer} \\1."}


def test_pairs_that_do_not_differ_are_no_error() -> None:
    sample, _ = pair("a", "b")
    (found,) = Template(AFFIRM, DENY).corrections([(sample, Preference("s", "equal", "a", "a"))])
    assert found.status == "no_error"


@pytest.mark.parametrize("wording", [[], [["only a question {answer}"]], [["no slot", "Yes."]]])
def test_wrong_templates_are_refused(wording: Any) -> None:
    with pytest.raises(UserError, match=r"critic\.affirm"):
        Template(wording, DENY)


def test_the_shipped_wordings_affirm_with_yes_and_deny_with_no() -> None:
    node = yaml.safe_load((configs.folder("conf") / "critic" / "template.yaml").read_text("utf-8"))
    assert {polarity(answer) for _, answer in node["affirm"]} == {"yes"}
    assert {polarity(answer) for _, answer in node["deny"]} == {"no"}
    assert [q for q, _ in node["affirm"]] == [q for q, _ in node["deny"]], "the question tells nothing"


SOURCES = {"ocrvqa": "short", "textcaps": "long"}
LONG = "A book about cooking lies on a table."


@pytest.mark.parametrize(
    ("key", "question", "chosen", "route"),
    [
        ("ocrvqa/7", "Who wrote it?", LONG, "short"),
        ("textcaps/7", ASKS, "Travel", "long"),
        ("other/7", "Who wrote it?", LONG, "long"),
        ("7", ASKS, LONG, "short"),
        ("7", "Who wrote it?", "Travel", "short"),
        ("7", "Describe it.", LONG, "long"),
        ("ocrvqa", "Describe it.", LONG, "long"),
    ],
)
def test_a_sample_goes_by_its_source_else_by_what_it_asks_for(
    key: str, question: str, chosen: str, route: str
) -> None:
    template = Template(AFFIRM, DENY)
    router = Route(template, template, SOURCES, "Answer the question using a single word or phrase.")
    assert router.route(*pair(chosen, "Cookbook", key, question)) == route


def test_both_routes_serve_one_set_and_their_sums_stay_apart(tmp_path: Path) -> None:
    short = [pair("Travel", "Cookbook", key=f"ocrvqa/{i}") for i in range(3)]
    with serving(saying(reply())) as server:
        router = Route(Template(AFFIRM, DENY), critic(server, tmp_path), SOURCES)
        found = list(router.corrections([short[0], *pairs(2), *short[1:]]))
        assert len(server.asked) == 2
    assert {c.id: c.details["route"] for c in found} == {
        **{f"ocrvqa/{i}": "short" for i in range(3)},
        **{f"s{i}": "long" for i in range(2)},
    }
    usage = router.usage([to_json(c) for c in found])
    assert list(usage) == ["long"]
    assert usage["long"]["requests"] == 2


def test_an_unknown_route_is_refused() -> None:
    with pytest.raises(UserError, match=r"critic\.sources\.ocrvqa=medium"):
        Route(Template(AFFIRM, DENY), Template(AFFIRM, DENY), {"ocrvqa": "medium"})
