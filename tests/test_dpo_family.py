"""The systems that are DPO on pairs of their own: who is chosen and rejected, and whole cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from conftest import DEBUG, POPE_ONLY, run_nsft
from nsft_exp import config as configs
from nsft_exp.method.dpo import DPO
from nsft_exp.method.ha_dpo import HADPO, mended_answer
from nsft_exp.pairing.edited import Edited
from nsft_exp.pairing.editor import FileEditor, WordEditor
from nsft_exp.pairing.llm_editor import LLMEditor
from nsft_exp.pairing.self_critic import SelfCritic
from nsft_exp.pairing.view import View
from nsft_exp.plan import Step, make_plan
from nsft_exp.preflight import preflight
from nsft_exp.records import (
    Correction,
    FoundError,
    Item,
    Preference,
    Reply,
    Request,
    Sample,
    UserError,
)
from scripted_critic import Answer, completion, serving

TOY = Path(configs.__file__).parent / "toy"
SAMPLES = [Sample(key, f"{key}.png", f"What is {key}?", "A cup.") for key in "abcd"]


class Answering:
    """A VLM that says what a function of the request says, the last request first."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[Request] = []

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[str, tuple[Reply, ...]]]:
        some = list(requests)
        self.asked += some
        for request in reversed(some):
            reply = self.answer(request)
            yield request.id, (reply if isinstance(reply, Reply) else Reply(reply),)


# --- seva ------------------------------------------------------------------------------------------


def test_seva_chooses_the_answer_to_the_clean_image_and_drops_equal_pairs() -> None:
    vlm = Answering(lambda r: "Same." if r.image == "b.png" else f"{r.view.partition('@')[0]} answer")
    text_only = Sample("t", None, "What?", "Nothing.")
    pairs = {p.id: p for p in View("diffusion:500", seed=3).pairs([*SAMPLES, text_only], vlm)}
    assert {p.status for k, p in pairs.items() if k in "acd"} == {"ok"}
    assert (pairs["a"].chosen, pairs["a"].rejected) == ("clean answer", "diffusion:500 answer")
    assert pairs["a"].rejected_view == "diffusion:500@3|a|0"
    assert (pairs["b"].status, pairs["t"].status) == ("equal", "no_image")
    examples = DPO().examples([Item(s, pairs[s.id]) for s in SAMPLES], Random(0))
    assert [e.id for e in examples] == ["a", "c", "d"]
    assert {c.view for e in examples for c in e.conversations} == {
        "clean"
    }  # both are trained on the clean image


@pytest.mark.parametrize(("view", "message"), [("clean", "same image"), ("fog", "no view 'fog'")])
def test_a_view_that_spoils_nothing_is_refused(view: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        View(view)


def test_an_engine_that_takes_pictures_only_is_refused_before_any_work() -> None:
    nodes = {"vlm": {"engine": "vllm"}, "pairing": {"_target_": "nsft_exp.pairing.view.View"}}
    with pytest.raises(UserError, match=r"vlm\.engine=vllm: .*take vlm\.engine=hf"):
        preflight([Step("respond", "respond", "x", nodes)])


# --- sima ------------------------------------------------------------------------------------------


def place_of(request: Request, text: str) -> str:
    return "1" if f"Answer 1: {text}" in request.turns[0].text else "2"


def judging(verdict: Any) -> Answering:
    """Says `good` greedily and `bad` sampled, and judges by a function of the request."""

    def answer(request: Request) -> str:
        if "|judge" in request.id:
            return str(verdict(request))
        return "bad." if request.decoding.temperature else "good."

    return Answering(answer)


def test_a_pair_is_kept_where_both_orders_name_the_same_answer() -> None:
    vlm = judging(lambda r: f"[{place_of(r, 'good.')}]" if r.id[0] in "ab" else "[1]")
    pairs = {p.id: p for p in SelfCritic().pairs(SAMPLES, vlm)}
    assert {k: p.status for k, p in pairs.items()} == {"a": "ok", "b": "ok", "c": "disagree", "d": "disagree"}
    assert (pairs["a"].chosen, pairs["a"].rejected) == ("good.", "bad.")
    assert pairs["a"].details["verdicts"] == ["2", "1"]  # the sampled answer stands first, then second
    assert pairs["a"].details["chosen"] == "greedy"
    (judge, *_) = [r for r in vlm.asked if r.id == "a|judge0"]
    text = judge.turns[0].text
    for words in ("What is a?", "Correct answer: A cup.", "objects", "place the objects", "Attributes"):
        assert words.lower() in text.lower()
    assert judge.image == "a.png"


@pytest.mark.parametrize(
    ("said", "status"),
    [("[tie]", "tie"), ("[1] or [2]", "tie"), ("The first.", "unparseable"), ("[2]", "disagree")],
)
def test_verdicts_that_name_no_answer_are_counted_apart(said: str, status: str) -> None:
    pairs = list(SelfCritic().pairs(SAMPLES[:1], judging(lambda r: said)))
    assert [p.status for p in pairs] == [status]


def test_equal_answers_are_not_judged() -> None:
    vlm = Answering(lambda r: "same.")
    assert [p.status for p in SelfCritic().pairs(SAMPLES, vlm)] == ["equal"] * 4
    assert not any("judge" in r.id for r in vlm.asked)


def test_with_likelihoods_a_preference_for_a_place_cancels_out() -> None:
    def answer(request: Request) -> Reply:
        if not request.candidates:
            return Reply("bad." if request.decoding.temperature else "good.")
        first = 3.0 + (
            0.5 if place_of(request, "good.") == "1" else -0.5
        )  # likes the place 1, and the good answer
        return Reply("1", candidate_logps=(first, 0.0))

    pairs = list(SelfCritic(verdict="likelihood").pairs(SAMPLES, Answering(answer)))
    assert {(p.status, p.chosen, p.rejected) for p in pairs} == {("ok", "good.", "bad.")}
    assert {p.details["odds"] for p in pairs} == {-1.0}  # 2.5 for the sampled one, 3.5 for the greedy one
    assert {tuple(p.details["verdicts"]) for p in pairs} == {("1", "1")}


def test_an_engine_without_likelihoods_is_told_apart() -> None:
    with pytest.raises(
        UserError, match=r"verdict=likelihood: .*take vlm\.engine=hf or pairing\.verdict=text"
    ):
        list(SelfCritic(verdict="likelihood").pairs(SAMPLES, judging(lambda r: "[1]")))


def denying(*words: str) -> Answering:
    """Names a cup and a lamp greedily, a cup and a red book sampled; denies questions with these words."""

    def answer(request: Request) -> Reply:
        if not request.candidates:
            return Reply("A cup. A red book." if request.decoding.temperature else "A cup. A lamp.")
        no = any(word in request.turns[0].text for word in words)
        return Reply("No" if no else "Yes", candidate_logps=(-2.0, -1.0) if no else (-1.0, -2.0))

    return Answering(answer)


@pytest.mark.parametrize("lexicon", [None, str(TOY / "lexicon.yaml")])
@pytest.mark.parametrize(
    ("denied", "status", "better", "counts"),
    [(["lamp"], "ok", "sampled", (1, 0)), (["red book"], "ok", "greedy", (0, 1)), ([], "tie", None, (0, 0))],
)
def test_claim_by_claim_the_answer_with_fewer_denied_claims_is_chosen(
    lexicon: str | None, denied: list[str], status: str, better: str | None, counts: tuple[int, int]
) -> None:
    vlm = denying("cup", *denied)  # what both claim is not asked
    (pair,) = SelfCritic(form="claims", lexicon=lexicon).pairs(SAMPLES[:1], vlm)
    assert (pair.status, pair.details.get("chosen")) == (status, better)
    assert pair.details["denied"] == dict(zip(("greedy", "sampled"), counts, strict=True))
    asked = [request.turns[0].text for request in vlm.asked if request.candidates]
    assert ["lamp" in asked[0], "red book" in asked[1], len(asked)] == [True, True, 2]


def test_answers_with_the_same_claims_are_a_tie_without_a_question() -> None:
    vlm = Answering(lambda r: "A lamp. A cup." if r.decoding.temperature else "A cup. A lamp.")
    assert [p.status for p in SelfCritic(form="claims").pairs(SAMPLES, vlm)] == ["tie"] * 4
    assert not any("judge" in request.id for request in vlm.asked)


def test_claims_need_an_engine_that_tells_likelihoods() -> None:
    vlm = Answering(lambda r: "A cup." if r.decoding.temperature else "A lamp.")
    with pytest.raises(UserError, match=r"no likelihoods of Yes and No; take vlm\.engine=hf"):
        list(SelfCritic(form="claims").pairs(SAMPLES, vlm))


def judged(number: int, verdicts: tuple[str, ...], status: str = "ok") -> list[Preference]:
    return [
        Preference(f"{verdicts}{n}", status, "x", "y", details={"verdicts": list(verdicts)})
        for n in range(number)
    ]


def test_a_critic_that_always_picks_the_same_side_is_detected() -> None:
    one_sided = judged(28, ("1", "1"), "disagree") + judged(4, ("1", "2"))
    with pytest.raises(UserError, match=r"60 of 64 verdicts name answer 1.*max_one_side=0\.9"):
        SelfCritic(min_yield=0.0).check(one_sided)
    SelfCritic(min_yield=0.0, max_one_side=0.95).check(one_sided)
    fair = judged(10, ("1", "1"), "disagree") + judged(10, ("1", "2")) + judged(5, ("2", "1"))
    SelfCritic().check(fair)
    SelfCritic(min_yield=0.0).check(judged(9, ("1", "1"), "disagree"))  # too few to tell


def test_a_cell_with_few_surviving_pairs_stops_with_their_number() -> None:
    few = judged(9, ("1", "2")) + judged(40, (), "equal")
    few += judged(31, ("1", "1"), "disagree") + judged(20, ("2", "2"), "disagree")
    with pytest.raises(UserError, match=r"9 of 100 samples gave a pair \(disagree 51, equal 40, ok 9\)"):
        SelfCritic().check(few)
    SelfCritic().check(few + judged(2, ("2", "1")))
    SelfCritic(min_yield=0.05).check(few)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "free"}, "pairing.form=free"),
        ({"verdict": "guess"}, "pairing.verdict=guess"),
        ({"orders": 3}, "pairing.orders=3"),
        ({"temperature": 0.0}, "pairing.temperature=0"),
        ({"min_yield": 10}, "pairing.min_yield=10"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SelfCritic(**changes)


# --- povid, bpo ------------------------------------------------------------------------------------

EDITOR = WordEditor(str(TOY / "lexicon.yaml"), str(TOY / "world.yaml"))
TEXT = "The image shows a kitchen. There is a large red cup at the top left. The cup is above the car."


def test_rules_write_one_error_of_each_kind_into_an_answer() -> None:
    words = yaml.safe_load((TOY / "lexicon.yaml").read_text("utf-8"))
    usual = yaml.safe_load((TOY / "world.yaml").read_text("utf-8"))["scenes"]["kitchen"]["usual"]
    seen = set()
    for n in range(30):
        edited = EDITOR.edit(Sample(str(n), None, "What?", TEXT))
        assert edited
        assert edited == EDITOR.edit(Sample(str(n), None, "What?", TEXT))
        assert "is below the" in edited
        before, after = TEXT.split(), edited.split()
        assert len(before) == len(after)
        changed = {a.strip(".") for a, b in zip(after, before, strict=True) if a != b}
        objects = changed & set(words["categories"])
        assert len(objects) == 1
        assert objects <= set(usual)  # what kitchens have and the answer does not name
        assert len(changed & {*words["colors"], *words["sizes"]}) == 1
        seen |= changed
    assert len(seen) > 8


def test_an_answer_without_a_known_word_is_not_edited() -> None:
    assert EDITOR.edit(Sample("x", None, "What?", "Yes.")) is None
    assert EDITOR.edit(Sample("x", None, "What?", "A red umbrella.")) != "A red umbrella."


def test_each_rejected_answer_is_a_pair_of_its_own() -> None:
    samples = [Sample("a", "a.png", "What?", TEXT), Sample("b", "b.png", "What?", "Yes."), SAMPLES[2]]
    samples += [replace(samples[0], id="t", image=None), Sample("n", None, "What?", "Yes.")]
    vlm = Answering(lambda r: "Fog." if r.id == "a" else "Yes.")
    pairs = {p.id: p for p in Edited(EDITOR, "diffusion:900", seed=1).pairs(samples, vlm)}
    assert {k: p.status for k, p in pairs.items()} == {
        "a": "ok",
        "b": "equal",
        "c": "ok",
        "t": "ok",
        "n": "unedited",
    }
    assert pairs["a"].rejected == EDITOR.edit(samples[0])
    assert pairs["a"].details["others"] == [{"rejected": "Fog.", "rejected_view": "diffusion:900@1|a|0"}]
    assert pairs["b"].details == {"edit": "none", "view": "equal"}
    examples = DPO().examples([Item(s, pairs[s.id]) for s in samples], Random(0))
    assert [e.id for e in examples] == ["a", "a#1", "c", "c#1", "t"]
    assert [e.conversations[1].turns[-1].text for e in examples[:2]] == [pairs["a"].rejected, "Fog."]
    assert {e.conversations[0].turns[-1].text for e in examples[:2]} == {TEXT}


def test_without_a_view_no_model_is_loaded() -> None:
    assert not Edited(EDITOR).needs_vlm
    assert [p.status for p in Edited(EDITOR).pairs([Sample("a", "a.png", "What?", TEXT)], None)] == ["ok"]
    with pytest.raises(UserError, match="nothing is rejected"):
        Edited()


def test_a_cell_whose_answers_the_editor_does_not_know_stops_and_names_the_word_to_add() -> None:
    texts = [TEXT, "Yes.", "Four.", "No."]
    samples = [Sample(str(n), None, "What?", text) for n, text in enumerate(texts)]
    pairs = list(Edited(EDITOR).pairs(samples, None))
    with pytest.raises(UserError, match=r"into 1 of 4 answers.*take pairing=edited_llm"):
        Edited(EDITOR).check(pairs)
    Edited(EDITOR, min_edited=0.25).check(pairs)
    Edited(EDITOR).check([pairs[0]])


def test_an_llms_edits_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    file.write_text(json.dumps({"id": "a", "answer": "A mug."}) + "\n")
    pairs = {p.id: p for p in Edited(FileEditor(str(file))).pairs(SAMPLES[:2], None)}
    assert (pairs["a"].rejected, pairs["a"].status, pairs["b"].status) == ("A mug.", "ok", "unedited")
    file.write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match="line 1 is not"):
        dict(FileEditor(str(file)).edits(SAMPLES))
    with pytest.raises(UserError, match=r"pairing\.editor\.file"):
        dict(FileEditor(str(tmp_path / "no")).edits(SAMPLES))


def test_an_llm_writes_the_errors_and_is_asked_once(tmp_path: Path) -> None:
    def script(body: dict[str, Any], number: int) -> Answer:
        said = json.loads(body["messages"][1]["content"])
        if said["question"] == "What is b?":
            return Answer(body=completion("A m", finish="length"))
        return Answer(body=completion(f" {said['answer'].replace('cup', 'mug')}\n"))

    with serving(script) as server:
        editor = LLMEditor("scripted", str(tmp_path / "editor"), base_url=server.base_url, key_env=None)
        pairs = {p.id: p for p in Edited(editor).pairs(SAMPLES, None)}
        assert {k: (p.status, p.rejected) for k, p in pairs.items() if k != "b"} == dict.fromkeys(
            "acd", ("ok", "A mug.")
        )
        assert (pairs["b"].status, len(server.bodies)) == ("unedited", 4)
        assert server.bodies[0]["temperature"] == 0.8
        again = LLMEditor("scripted", str(tmp_path / "editor"), base_url=server.base_url, key_env=None)
        assert dict(again.edits(SAMPLES)) == {"a": "A mug.", "b": None, "c": "A mug.", "d": "A mug."}
        assert len(server.bodies) == 4
    with pytest.raises(UserError, match=r"pairing\.editor"):
        LLMEditor("scripted", str(tmp_path / "other"), key_env="not a name")


# --- ha_dpo ----------------------------------------------------------------------------------------


def criticised(rejected: str, *errors: tuple[str, str, str], status: str = "ok") -> Item:
    found = tuple(FoundError(c, rejected.find(w), rejected.find(w) + len(w), w, r) for c, w, r in errors)
    preference = Preference("x", status, "Truth.", rejected)
    return Item(Sample("x", "x.png", "What?", "Truth."), preference, Correction("x", "ok", found))


@pytest.mark.parametrize(
    ("rejected", "errors", "mended"),
    [
        ("A red cup. A dog.", [("attribute", "red", "blue")], "A blue cup. A dog."),
        ("A red cup. There is a dog. A hat.", [("existence", "a dog", "")], "A red cup. A hat."),
        (
            "A red cup. There is a dog.",
            [("existence", "dog", "cat"), ("attribute", "red", "blue")],
            "A blue cup.",
        ),
        ("A red dog. A hat.", [("existence", "dog", ""), ("attribute", "red", "blue")], "A hat."),
        (
            "A street with a cup, a dog and a hat.",
            [("existence", "a dog", "")],
            "A street with a cup and a hat.",
        ),
        (
            "A street with a cup, a dog and a hat.",
            [("existence", "a hat", "")],
            "A street with a cup, a dog.",
        ),
        ("A red cup.", [("attribute", "green", "blue")], None),
    ],
)
def test_errors_are_mended_or_taken_out(
    rejected: str, errors: list[tuple[str, str, str]], mended: str | None
) -> None:
    assert mended_answer(criticised(rejected, *errors)) == mended


def test_ha_dpo_prefers_the_mended_answer_to_the_answer() -> None:
    items = [
        criticised("A red cup.", ("attribute", "red", "blue")),
        criticised("A cup."),
        criticised("A cup.", ("attribute", "green", "blue")),
        criticised("Truth.", status="equal"),
    ]
    (example,) = HADPO().examples(items, Random(0))
    assert [c.turns[-1].text for c in example.conversations] == ["A blue cup.", "A red cup."]
    assert HADPO().left_out(items) == {"no error was found": 1, "no error could be mended": 1}


# --- whole cells -----------------------------------------------------------------------------------

QUICK = (*DEBUG, *POPE_ONLY, "limit=1")


def manifests(root: Path, stage: str) -> list[dict[str, Any]]:
    files = sorted((root / "runs" / stage).glob("*/manifest.json"), key=lambda f: f.stat().st_mtime_ns)
    return [json.loads(file.read_text("utf-8")) for file in files]


@pytest.mark.parametrize("method", ["povid", "bpo"])
def test_two_rejected_answers_of_a_sample_are_two_pairs(method: str, tmp_path: Path, toy_data: Path) -> None:
    words = (f"method={method}", "pairing.max_new_tokens=12")
    assert run_nsft(tmp_path, toy_data, *QUICK, *words) == 0
    trainings = manifests(tmp_path, "train")
    assert len(trainings) == (2 if method == "povid" else 1)
    assert {m["models_held"] for m in trainings} == {1}
    counts = trainings[-1]["counts"]
    assert counts["pairs"] > 0
    assert counts["examples"] == 2 * counts["pairs"]
    assert trainings[0]["counts"]["examples"] == trainings[0]["counts"]["pairs"] or method == "bpo"


def test_a_check_that_fails_stops_the_cell_every_time(
    tmp_path: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert run_nsft(tmp_path, toy_data, "method=sima", *QUICK, "pairing.max_new_tokens=12") == 2
        assert "0 of 8 samples gave a pair (unparseable 8)" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "train").exists()


# --- recipes ---------------------------------------------------------------------------------------


def test_povids_two_rounds_are_as_long_as_published() -> None:
    for words, epochs in ((["recipe=published"], [3, 1]), ([], [2, 2])):  # the toy's recipe: 2
        config = configs.compose_config(["method=povid", *words])
        choices = {g: str(o) for g, o in config.hydra.runtime.choices.items() if "/" not in g}
        steps = make_plan(configs.resolved(config), choices, "preference")
        trainings = [s for s in steps if s.kind == "train"]
        assert [s.nodes["recipe"]["epochs"] for s in trainings] == epochs
        views = [s.nodes["pairing"]["view"] for s in steps if s.kind == "respond"]
        assert views == [None, "diffusion:500"]
