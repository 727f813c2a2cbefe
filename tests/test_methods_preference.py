"""The preference methods: their examples, what they refuse, and that each moves what it optimises."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hydra.utils import instantiate

from nsft_exp import config as configs
from nsft_exp.conversation import ChatEncoder
from nsft_exp.interfaces import Needs
from nsft_exp.method.dpo import DPO
from nsft_exp.method.kto import KTO
from nsft_exp.method.nsft_dpo import NSFTDPO
from nsft_exp.method.nsft_unlikelihood import MARK, NSFTUnlikelihood, error_spans
from nsft_exp.method.rlhf_v import RLHFV, changed_spans
from nsft_exp.records import (
    Correction,
    Example,
    Exchange,
    FoundError,
    Item,
    Preference,
    Sample,
    UserError,
)
from tiny_training import make_items, rows, train

DIALOGUE = (Exchange("Is it so?", "No."),)


def item(name: str, chosen: str, rejected: str, correction: Correction | None = None) -> Item:
    sample = Sample(name, f"{name}.png", f"What is {name}?", chosen)
    pair = Preference(name, "ok" if chosen != rejected else "equal", chosen, rejected)
    return Item(sample, pair, correction)


def turns(example: Example, number: int) -> list[tuple[str, str]]:
    return [(t.role, t.text) for t in example.conversations[number].turns]


def found(*errors: tuple[int, int, str]) -> Correction:
    return Correction("x", "ok", tuple(FoundError("existence", *e, right="") for e in errors), DIALOGUE)


# --- which examples --------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_a_loss_without_a_reference_asks_for_none(loss: str) -> None:
    assert DPO(loss=loss).needs == NSFTDPO(loss=loss).needs == Needs()
    for other in ("sigmoid", "hinge", "ipo"):
        assert DPO(loss=other).needs == NSFTDPO(loss=other).needs == Needs("logp")


def test_pairs_of_unlike_length_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    items = [item("a", "one two", "one two three"), item("b", "one", "one two"), item("c", "same", "same")]
    method = DPO(max_length_ratio=1.5)
    assert [e.id for e in method.examples(items, Random(0))] == ["a"]
    assert method.left_out(items) == {"answers of unequal length": 1}
    assert "1 of 2 pairs left out: answers of unequal length" in caplog.text
    assert DPO().left_out(items) == {}


def test_kto_takes_mismatched_answers_of_another_pair_round_the_end() -> None:
    items = [item("a", "yes", "no"), item("b", "no", "maybe"), item("c", "cat", "dog")]
    one, two, three = KTO().examples(items, Random(0))
    assert [turns(one, n)[-1] for n in range(4)] == [
        ("chosen", "yes"),
        ("rejected", "no"),
        ("mismatch", "cat"),  # b shares the answer no
        ("mismatch", "dog"),
    ]
    assert turns(one, 2)[0] == ("prompt", "What is a?")
    assert one.conversations[3].image == "a.png"
    assert [turns(two, n)[-1][1] for n in (2, 3)] == ["cat", "dog"]
    assert [turns(three, n)[-1][1] for n in (2, 3)] == ["yes", "no"]


def test_kto_refuses_pairs_among_which_none_has_other_answers() -> None:
    with pytest.raises(UserError, match=r"sample a: no other of the 2 pairs"):
        KTO().examples([item("a", "yes", "no"), item("b", "no", "yes")], Random(0))


def test_nsft_dpo_has_the_pair_and_the_dialogue_as_turns_or_as_a_third_conversation() -> None:
    items = [item("a", "yes", "no", found()), item("b", "one", "two"), item("c", "same", "same", found())]
    with_turns = NSFTDPO().examples(items, Random(0))
    assert [(e.id, len(e.conversations)) for e in with_turns] == [("a", 2), ("b", 2)]
    dialogue = [("prompt", "Is it so?"), ("correction", "No.")]
    assert turns(with_turns[0], 0) == [("prompt", "What is a?"), ("chosen", "yes"), *dialogue]
    assert turns(with_turns[0], 1)[-1] == ("rejected", "no")
    apart = NSFTDPO(correction_as="examples").examples(items, Random(0))
    assert [len(e.conversations) for e in apart] == [3, 2]
    assert turns(apart[0], 2) == dialogue
    assert NSFTDPO.consumes == NSFTUnlikelihood.consumes == "correction"


# --- RLHF-V ----------------------------------------------------------------------------------------

CHOSEN = "There is a red cup on the old table in the small kitchen."
REJECTED = "There is a blue knife on the old table in the small kitchen, and a dog."


def words(text: str, spans: list[tuple[int, int]]) -> list[str]:
    return [text[start:end] for start, end in spans]


def test_changed_spans_are_what_the_other_answer_has_not() -> None:
    chosen, rejected = changed_spans(CHOSEN, REJECTED)
    assert words(CHOSEN, chosen) == ["red cup", "."]
    assert words(REJECTED, rejected) == ["blue knife", ", and a dog."]
    chosen, rejected = changed_spans(CHOSEN, REJECTED, min_match=1)
    assert words(CHOSEN, chosen) == ["red cup"]
    assert words(REJECTED, rejected) == ["blue knife", ", and a dog"]


def test_fewer_equal_words_than_the_least_do_not_interrupt_a_change() -> None:
    texts = "a b c red is cup x y z", "a b c blue is knife x y z"
    assert [words(t, s) for t, s in zip(texts, changed_spans(*texts), strict=True)] == [
        ["red is cup"],
        ["blue is knife"],
    ]
    assert words(texts[0], changed_spans(*texts, min_match=1)[0]) == ["red", "cup"]


@pytest.mark.parametrize("texts", [("same words here", "same words here"), ("", "all new"), ("x", "")])
def test_changed_spans_of_the_edges(texts: tuple[str, str]) -> None:
    for text, spans in zip(texts, changed_spans(*texts), strict=True):
        assert words(text, spans) == ([] if texts[0] == texts[1] or not text else [text])


def test_rlhf_v_weighs_the_tokens_of_changed_words(chat: ChatEncoder) -> None:
    (example,) = RLHFV(changed_weight=5.0).examples([item("a", CHOSEN, REJECTED)], Random(0))
    for conversation, changed in zip(
        example.conversations, ("red cup .", "blue knife , and a dog."), strict=True
    ):
        encoded = chat.encode(conversation.turns)
        heavy = [n for n, w in enumerate(encoded.weights) if w == 5.0]
        assert {encoded.weights[n] for n in range(len(encoded.ids)) if n not in heavy} == {1.0}
        text = chat._backend.decode([encoded.ids[n] for n in heavy])
        assert text.replace(" ", "") == changed.replace(" ", "")
        assert encoded.weights[-1] == 1.0


# --- unlikelihood ----------------------------------------------------------------------------------

ANSWER = "A dog and a red dog."


def test_errors_are_taken_where_the_critic_puts_them_or_where_their_words_stand_once() -> None:
    def spans(*errors: tuple[int, int, str]) -> list[tuple[int, int]]:
        return error_spans(item("a", "A cat.", ANSWER, found(*errors)))

    assert spans((16, 19, "dog"), (2, 5, "dog")) == [(2, 5), (16, 19)]
    assert spans((0, 3, "red")) == [(12, 15)]  # the place is wrong, but `red` is there just once
    assert spans((0, 0, "dog")) == []  # which dog?
    assert spans((-1, 99, "cow"), (5, 5, "")) == []
    assert spans((2, 5, "")) == [(2, 5)]
    assert error_spans(item("a", ANSWER, ANSWER, found((2, 5, "dog")))) == []
    assert error_spans(item("a", "A cat.", ANSWER)) == []


def test_only_the_tokens_of_errors_are_marked(chat: ChatEncoder) -> None:
    (example,) = NSFTUnlikelihood().examples(
        [item("a", "A cat.", ANSWER, found((12, 19, "red dog")))], Random(0)
    )
    assert turns(example, 0)[-1] == ("chosen", "A cat.")
    encoded = chat.encode(example.conversations[1].turns)
    marked = [i for i, w in zip(encoded.ids, encoded.weights, strict=True) if w == MARK]
    assert chat._backend.decode(marked).strip() == "red dog"
    assert encoded.weights[-1] == 1.0


def test_pairs_without_a_located_error_are_counted_and_give_their_chosen_answer_only() -> None:
    items = [
        item("a", "A cat.", ANSWER, found((2, 5, "dog"))),
        item("b", "A cat.", ANSWER, found((0, 0, "dog"))),
        item("c", "A cat.", ANSWER, Correction("c", "no_error")),
        item("d", ANSWER, ANSWER),
    ]
    method = NSFTUnlikelihood()
    assert [(e.id, len(e.conversations)) for e in method.examples(items, Random(0))] == [
        ("a", 2),
        ("b", 1),
        ("c", 1),
        ("d", 1),
    ]
    assert method.left_out(items) == {"no error was found": 1, "no error could be located": 1}
    assert [e.id for e in NSFTUnlikelihood(use_chosen=False).examples(items, Random(0))] == ["a"]


# --- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DPO(loss="sigmod"), "method.loss=sigmod"),
        (lambda: DPO(loss="kto"), "take method=kto"),
        (lambda: DPO(label_smoothing=0.5), "method.label_smoothing=0.5"),
        (lambda: DPO(loss="ipo", label_smoothing=0.1), "method.loss=ipo has none; take sigmoid or robust"),
        (lambda: DPO(loss="robust"), "method.label_smoothing"),
        (lambda: DPO(gamma=1.0), "method.loss=simpo only"),
        (lambda: DPO(loss="simpo", reduction="sum"), "defined on averages"),
        (lambda: DPO(reduction="max"), "method.reduction=max"),
        (lambda: DPO(sft_weight=-1), "method.sft_weight=-1"),
        (lambda: DPO(max_length_ratio=0.5), "method.max_length_ratio=0.5"),
        (lambda: DPO(side="left"), "method.side=left"),
        (lambda: DPO(side_form="own"), "method.side_form=own"),
        (lambda: DPO(loss="orpo", side="chosen"), "method.side=chosen"),
        (lambda: KTO(beta=-1), "method.beta=-1"),
        (lambda: KTO(desirable_weight=-1), "method.desirable_weight=-1"),
        (lambda: RLHFV(changed_weight=0), "method.changed_weight=0"),
        (lambda: RLHFV(min_match=0), "method.min_match=0"),
        (lambda: NSFTDPO(weight=-1), "method.weight=-1"),
        (lambda: NSFTDPO(correction_as="turn"), "method.correction_as=turn"),
        (lambda: NSFTUnlikelihood(weight=0), "method.weight=0"),
        (lambda: NSFTUnlikelihood(normalise="sum"), "method.normalise=sum"),
    ],
)
def test_options_that_cannot_be_are_refused(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


CONF = configs.folder("conf")


def method_node(option: str) -> dict[str, Any]:
    """The `method` node of a method's YAML, with those that its defaults name below it."""
    text = yaml.safe_load((CONF / "method" / f"{option}.yaml").read_text("utf-8"))
    below = [name for name in text.get("defaults", []) if isinstance(name, str) and name != "_self_"]
    return {k: v for name in below for k, v in method_node(name).items()} | text["method"]


VARIANTS = [f.stem for f in sorted((CONF / "variant").glob("*.yaml"))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variants_options_go_together_on_each_method_that_it_belongs_to(variant: str) -> None:
    text = yaml.safe_load((CONF / "variant" / f"{variant}.yaml").read_text("utf-8")) or {}
    for option in text.get("belongs", {}).get("method", []):
        node = method_node(option)
        assert text.get("method", {}).keys() <= node.keys()
        instantiate(node | text.get("method", {}))


@pytest.mark.parametrize("option", ["simpo", "orpo", "kto", "rlhf_v", "nsft_dpo", "nsft_unlikelihood"])
def test_a_methods_word_has_the_reference_that_its_loss_needs(option: str) -> None:
    without = option in ("simpo", "orpo", "nsft_unlikelihood")
    assert instantiate(method_node(option)).needs == (Needs() if without else Needs("logp"))


# --- training --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Items of a random model's training, every rejected answer with an error that is marked."""
    made = make_items(tmp_path_factory.mktemp("items"))
    return [
        dataclasses.replace(i, correction=dataclasses.replace(found((2, 9, "red box")), id=i.sample.id))
        for i in made
    ]


@pytest.fixture(scope="module")
def chat() -> ChatEncoder:
    from nsft_exp.vlm.scratch import ScratchLlava

    return ScratchLlava(device="cpu").load().chat


def gap(row: dict[str, Any]) -> float:
    """How much more surprising a token of the rejected answers is than one of the chosen."""
    return float(row["nll/rejected"] - row["nll/chosen"])


def chosen(row: dict[str, Any]) -> float:
    return -float(row["nll/chosen"])


def rejected(row: dict[str, Any]) -> float:
    return float(row["nll/rejected"])


OVERFIT: dict[str, tuple[Any, Any, float]] = {
    "hinge": (DPO(loss="hinge"), gap, 0.8),
    "ipo": (DPO(loss="ipo", beta=0.5), gap, 0.8),
    "robust": (DPO(loss="robust", label_smoothing=0.1), gap, 0.8),
    "cdpo": (DPO(label_smoothing=0.1), gap, 0.9),
    "orpo": (DPO(loss="orpo"), chosen, 0.95),
    "unlikelihood": (NSFTUnlikelihood(use_chosen=False), rejected, 0.9),
    "nsft_unlikelihood": (NSFTUnlikelihood(), chosen, 0.95),
    "chosen_only": (DPO(side="chosen"), chosen, 0.8),
    "rejected_only": (DPO(side="rejected"), rejected, 0.8),
}
"""Method, what must rise, and to which part of its first value the loss must fall: objectives without a YAML
of their own, and what their YAML's test does not ask for (test_every_method.py)."""


@pytest.mark.parametrize("name", OVERFIT)
def test_a_method_lowers_its_loss_on_few_examples_and_moves_what_it_optimises(
    name: str, items: list[Item], tmp_path: Path
) -> None:
    method, rises, part = OVERFIT[name]
    summary = train(method, items, tmp_path / "run", batch_size=4, epochs=6)
    first, *_, last = rows(tmp_path / "run")
    assert last["loss"] < part * first["loss"]
    assert rises(last) > rises(first)
    assert summary["models_held"] == 1
    assert summary["reference"] == ("none" if method.needs == Needs() else "adapter_off")


@pytest.mark.parametrize("method", [KTO(), DPO(loss="orpo"), NSFTUnlikelihood()], ids=type)
def test_no_result_depends_on_the_cut_into_micro_batches(
    method: Any, items: list[Item], tmp_path: Path
) -> None:
    for micro_batch in (1, 8):
        train(method, items, tmp_path / str(micro_batch), batch_size=8, micro_batch=micro_batch, epochs=1)
    for one, other in zip(rows(tmp_path / "1"), rows(tmp_path / "8"), strict=True):
        for key in ("loss", "grad_norm", "nll/chosen"):
            assert one[key] == pytest.approx(other[key], rel=1e-4)
