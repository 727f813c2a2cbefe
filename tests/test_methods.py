"""Which examples each method trains on, and what its loss terms are."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from nsft_exp.interfaces import Needs
from nsft_exp.method.base import Base
from nsft_exp.method.dpo import DPO
from nsft_exp.method.nsft import NSFT
from nsft_exp.method.sft import SFT
from nsft_exp.plan import make_plan
from nsft_exp.records import Correction, Exchange, Item, Preference, Sample, UserError


def item(name: str, status: str = "ok", correction: str | None = "ok") -> Item:
    sample = Sample(name, f"{name}.png", "What?", "truth", history=(Exchange("Q0", "A0"),))
    pair = Preference(name, status, "truth", "mistake" if status == "ok" else "truth")
    dialogue = (Exchange("Is it so?", "No."), Exchange("Is it thus?", "Yes."))
    return Item(
        sample,
        pair,
        Correction(name, correction, dialogue=dialogue if correction == "ok" else ()) if correction else None,
    )


ITEMS = [item("a"), item("b", status="equal", correction="no_error"), item("c", correction="unparseable")]


def turns(example: object, number: int = 0) -> list[tuple[str, str]]:
    return [(t.role, t.text) for t in example.conversations[number].turns]  # type: ignore[attr-defined]


OPENING = [("prompt", "Q0"), ("prompt", "A0"), ("prompt", "What?")]
DIALOGUE = [("prompt", "Is it so?"), ("correction", "No."), ("prompt", "Is it thus?"), ("correction", "Yes.")]


def test_base_trains_on_nothing() -> None:
    assert Base().examples(ITEMS, Random(0)) == []
    assert Base.consumes == "nothing"


def test_sft_trains_on_every_chosen_answer_with_its_history_as_context() -> None:
    examples = SFT().examples(ITEMS, Random(0))
    assert [e.id for e in examples] == ["a", "b", "c"]
    assert turns(examples[0]) == [*OPENING, ("chosen", "truth")]
    assert examples[0].conversations[0].image == "a.png"


def test_sft_can_supervise_the_history_too_and_needs_no_preference() -> None:
    alone = [Item(ITEMS[0].sample)]
    examples = SFT(supervise_history=True).examples(alone, Random(0))
    assert turns(examples[0]) == [
        ("prompt", "Q0"),
        ("chosen", "A0"),
        ("prompt", "What?"),
        ("chosen", "truth"),
    ]


def test_common_pairs_keep_the_same_items_for_every_method() -> None:
    for method in (SFT(pairs="common"), NSFT(pairs="common"), DPO()):
        assert [e.id for e in method.examples(ITEMS, Random(0))] == ["a", "c"]


def test_common_pairs_without_a_pairing_are_refused() -> None:
    with pytest.raises(UserError, match="pairing=gt"):
        SFT(pairs="common").examples([Item(ITEMS[0].sample)], Random(0))


def test_dpo_gives_both_conversations_of_the_pairs_that_differ() -> None:
    examples = DPO().examples(ITEMS, Random(0))
    assert turns(examples[0]) == [*OPENING, ("chosen", "truth")]
    assert turns(examples[0], 1) == [*OPENING, ("rejected", "mistake")]
    assert DPO().needs == Needs("logp")


def test_nsft_goes_on_with_the_dialogue_in_the_same_conversation() -> None:
    examples = NSFT().examples(ITEMS, Random(0))
    assert [len(e.conversations) for e in examples] == [1, 1, 1]
    assert turns(examples[0]) == [*OPENING, ("chosen", "truth"), *DIALOGUE]
    assert turns(examples[1]) == turns(examples[2]) == [*OPENING, ("chosen", "truth")]


def test_nsft_can_have_the_dialogue_as_a_conversation_of_its_own() -> None:
    examples = NSFT(correction_as="examples").examples(ITEMS, Random(0))
    assert [len(e.conversations) for e in examples] == [2, 1, 1]
    assert turns(examples[0], 1) == DIALOGUE
    assert examples[0].conversations[1].image == "a.png"


@pytest.mark.parametrize("correction_as", ["turns", "examples"])
def test_nsft_without_the_chosen_answer_drops_items_without_a_correction(correction_as: str) -> None:
    examples = NSFT(use_chosen=False, correction_as=correction_as).examples(ITEMS, Random(0))
    assert [e.id for e in examples] == ["a"]
    assert turns(examples[0]) == DIALOGUE


def test_nsft_needs_a_distribution_only_for_its_kl() -> None:
    assert NSFT().needs == Needs()
    assert NSFT(kl=0.1, kl_direction="reverse").needs == Needs("distribution", "reverse")


def test_loss_terms_are_weighted_as_stated() -> None:
    import torch

    from nsft_exp.losses import TokenScores

    table = torch.tensor([[0.0, -2.0, -1.0, -7.0]])
    scores = TokenScores(table, torch.ones(1, 4), torch.tensor([[0, 1, 1, 3]]), torch.tensor([0]), kl=-table)
    terms = {k: (float(a), float(b)) for k, (a, b) in NSFT(weight=0.5, kl=0.1).loss(scores, None).items()}
    assert terms == {"chosen": (3, 2), "correction": (3.5, 1), "kl": (pytest.approx(1.0), 3)}
    assert set(NSFT(use_chosen=False).loss(scores, None)) == {"correction"}
    assert float(SFT(normalise="example").loss(scores, None)["chosen"][0]) == 1.5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SFT(pairs="some"), "method.pairs=some"),
        (lambda: SFT(normalise="sum"), "method.normalise=sum"),
        (lambda: SFT(match="samples"), "method.spare=0"),
        (lambda: SFT(match="epochs", spare=3), "method.spare=3"),
        (lambda: DPO(beta=0), "method.beta=0"),
        (lambda: NSFT(correction_as="turn"), "method.correction_as=turn"),
        (lambda: NSFT(weight=-1), "negative"),
        (lambda: NSFT(kl_direction="up"), "method.kl_direction=up"),  # type: ignore[arg-type]
    ],
)
def test_a_choice_that_does_not_exist_is_refused(build: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()  # type: ignore[operator]


def test_matched_sft_repeats_items_until_it_has_nsfts_words() -> None:
    dialogue = (Exchange("Q?", "one two three"), Exchange("Q?", "one two"))
    items = [
        Item(Sample(str(n), None, "Q?", "a b c"), correction=Correction(str(n), "ok", dialogue=dialogue))
        for n in range(4)
    ]
    examples = SFT(match="epochs").examples(items, Random(0))
    # 4 x 3 words of the answers and 4 x 5 of the corrections: 32, reached by 11 answers of 3 words
    assert [e.id for e in examples] == [*"0123", *(f"{n}#1" for n in "0123"), *(f"{n}#2" for n in "012")]


def test_sample_matched_sft_takes_further_samples_for_nsfts_words() -> None:
    dialogue = (Exchange("Q?", "one two three"), Exchange("Q?", "one two"))
    items = [
        Item(Sample(str(n), None, "Q?", "a b c"), correction=Correction(str(n), "ok", dialogue=dialogue))
        for n in range(9)
    ]
    examples = SFT(match="samples", spare=6).examples(items, Random(0))
    # 3 x 3 words of the answers and 3 x 5 of the corrections: 24, reached by 5 further answers of 3 words
    assert [e.id for e in examples] == [*"012", *(f"{n}#1" for n in "34567")]
    with pytest.raises(UserError, match=r"method\.spare=3: further samples are 21 words short"):
        SFT(match="samples", spare=3).examples(items, Random(0))


def test_spare_samples_come_after_the_held_out_ones_which_every_method_shares() -> None:
    from nsft_exp.items import split_items

    items = [item(str(n)) for n in range(9)]
    nodes: dict[str, Any] = {"method": {"spare": 3}, "trainer": {"held_out": 2}}
    trained, held_out = split_items(items, nodes)
    assert [i.sample.id for i in trained] == [*"0123", *"678"]
    assert [i.sample.id for i in held_out] == [*"45"]
    assert split_items(items[:6], {**nodes, "method": {}})[1] == held_out


def test_more_held_out_samples_than_a_whole_source_has_are_refused() -> None:
    from nsft_exp.items import split_items

    nodes: dict[str, Any] = {"method": {}, "trainer": {"held_out": 3}}
    assert len(split_items([item(str(n)) for n in range(4)], nodes)[0]) == 1
    with pytest.raises(UserError, match=r"trainer\.held_out=3: the source has 3 samples"):
        split_items([item(str(n)) for n in range(3)], nodes)


@pytest.mark.parametrize(("size", "drawn"), [(4, 9), (None, None)])
def test_the_source_draws_the_spare_samples_too(size: int | None, drawn: int | None) -> None:
    config = {"source": {"size": size}, "trainer": {"held_out": 2}, "method": {"spare": 3}, "seed": 0}
    config |= {key: {} for key in ("vlm", "recipe", "tuning", "pairing", "critic", "codebook", "benchmark")}
    choices = dict.fromkeys(("source", "vlm", "method"), "x")
    if drawn is None:
        with pytest.raises(UserError, match=r"method\.spare: a whole source has no further samples"):
            make_plan(config, choices, "sample")
    else:
        (step,) = make_plan(config, choices, "sample")
        assert step.nodes["source"] == {"size": drawn}


def test_matched_sft_without_corrections_is_refused() -> None:
    with pytest.raises(UserError, match="needs corrections"):
        SFT(match="epochs").examples([Item(Sample("0", None, "Q?", "a"))], Random(0))
