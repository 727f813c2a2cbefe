"""GQA, TextVQA and VQAv2."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark_files import S, answers, fixture_lines, score_all, touch, write_json, write_lines
from nsft_exp.benchmark.answers import read_answers, sum_counts, summarise
from nsft_exp.benchmark.gqa import Gqa, read_answer
from nsft_exp.benchmark.textvqa import TextVqa
from nsft_exp.benchmark.vqa_text import m4c_accuracy, normalise_m4c, normalise_vqa, vqa_accuracy
from nsft_exp.benchmark.vqav2 import Vqav2
from nsft_exp.records import UserError

# --- GQA


def gqa_row(question: str, answer: str, structural: str, image: str, balanced: bool = True) -> dict[str, Any]:
    return {
        "question": question,
        "answer": answer,
        "imageId": image,
        "isBalanced": balanced,
        "groups": {"global": "color" if structural == "query" else None, "local": "x"},
        "types": {"structural": structural, "semantic": "attr", "detailed": f"{structural}Attr"},
    }


@pytest.fixture
def gqa_root(tmp_path: Path) -> Path:
    rows = {
        "01": gqa_row("Is it overcast?", "yes", "verify", "n1"),
        "02": gqa_row("What color is it?", "red", "query", "n1"),
        "03": gqa_row("Which color is it?", "blue", "query", "n2"),
        "04": gqa_row("Is it day?", "no", "verify", "n2", balanced=False),
    }
    write_json(tmp_path / "testdev_balanced_questions.json", rows)
    touch(tmp_path / "images", ["n1.jpg", "n2.jpg"])
    return tmp_path


def gqa(root: Path, **options: Any) -> Gqa:
    return Gqa(str(root), str(root / "images"), **options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Red.", "red"),
        ("red...", "red"),
        (" red", " red"),
        ("red. ", "red. "),
        ("A red", "a red"),
        ("Mrs. X.", "mrs. x"),
    ],
)
def test_only_final_full_stops_and_case_are_forgiven(text: str, said: str) -> None:
    assert read_answer(text) == said


def test_gqa_counts_balanced_questions_by_type(gqa_root: Path) -> None:
    benchmark = gqa(gqa_root)
    requests = benchmark.requests()
    assert (requests[0].id, requests[0].turns[0].text) == ("01", "Is it overcast?" + S)
    assert len(requests) == 3
    scores = score_all(benchmark, ["No", "Red.", "a blue"])
    metrics = benchmark.metrics(sum_counts(scores))
    assert metrics["accuracy"] == pytest.approx(100 / 3)
    assert (metrics["open"], metrics["binary"], metrics["structural/query"]) == (50, 0, 50)
    assert metrics["detailed/queryAttr"] == 50
    assert set(metrics) == {m.name for m in benchmark.describe()}
    assert [s.cluster for s in scores] == ["n1", "n1", "n2"]
    assert gqa(gqa_root, prompt="official").requests()[0].turns[0].text == "Is it overcast?"


def test_gqas_classes_are_question_types_with_an_answer(gqa_root: Path) -> None:
    assert gqa(gqa_root).classes() == {
        "01": "verify attr: yes",
        "02": "query attr: red",
        "03": "query attr: blue",
    }


def test_an_answer_that_is_no_word_or_phrase_is_flagged(gqa_root: Path) -> None:
    scores = score_all(gqa(gqa_root), ["", "It is as red as a rose.", "red"])
    assert [s.unparseable for s in scores] == [True, True, False]


def test_the_distribution_score_is_chi_square_over_the_global_groups(gqa_root: Path) -> None:
    summary, _ = summarise(gqa(gqa_root), answers([("01", "yes"), ("02", "red"), ("03", "red")]))
    # group color: gold red 1, blue 1; said red 2, blue 0: (1 + 1) / 100
    assert summary["metrics"]["distribution"] == pytest.approx(0.02)
    assert summary["metrics"]["accuracy"] == pytest.approx(200 / 3)
    assert summary["complete"] is True


def test_the_last_gqa_answer_counts_and_a_missing_one_stops(gqa_root: Path) -> None:
    lines = [("01", "no"), ("02", "red"), ("03", "blue"), ("01", "yes"), ("99", "x")]
    summary, _ = summarise(gqa(gqa_root), answers(lines))
    assert summary["metrics"]["accuracy"] == 100
    assert (summary["complete"], summary["duplicate"]["ids"], summary["unknown"]["ids"]) == (
        False,
        ["01"],
        ["99"],
    )
    with pytest.raises(UserError, match=r"2 of 3 balanced questions have no answer \(first: 02\)"):
        summarise(gqa(gqa_root), answers([("01", "yes"), (2, "red")]))


def test_gqas_own_predictions_are_not_converted_again(gqa_root: Path) -> None:
    rows = [{"questionId": i, "prediction": p} for i, p in (("01", "yes"), ("02", "Red"), ("03", "blue."))]
    summary, _ = summarise(gqa(gqa_root), read_answers(write_json(gqa_root / "p.json", rows)))
    assert summary["metrics"]["accuracy"] == pytest.approx(100 / 3)


# --- normal forms and soft accuracy


def test_normal_forms_are_as_the_shared_cases_say() -> None:
    cases = fixture_lines("textvqa_normalizer_cases.jsonl")
    assert {c["raw"]: normalise_m4c(c["raw"]) for c in cases} == {c["raw"]: c["processed"] for c in cases}


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("The Dogs.", "dogs"),
        ("1,000", "1000"),
        ("10:30", "10:30"),
        ("u.s.a.", "usa"),
        ("3.14.", "3.14"),
        ("up / down", "up down"),
        ("up/down", "up down"),
        ("a-b - c", "ab c"),  # a mark next to a blank anywhere goes everywhere
        ("bob's", "bob 's"),
        ("dont", "don't"),
        ("Im", "im"),
        ("none", "0"),
        ("." * 40, "." * 8),  # at most 32 full stops go
        ("a", ""),
    ],
)
def test_the_m4c_normal_form_keeps_its_slips(raw: str, normal: str) -> None:
    assert normalise_m4c(raw) == normal


def test_vqas_normal_form_keeps_the_comma_rule_and_the_possessive() -> None:
    assert normalise_vqa("1,000 up/down") == "1000 updown"
    assert normalise_vqa("bob's up/down") == "bob's up down"
    assert normalise_vqa("What? No!") == "what no"


@pytest.mark.parametrize(("people", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_soft_accuracy_leaves_each_person_out_in_turn(people: int, score: float) -> None:
    assert m4c_accuracy("Red.", ["red"] * people + ["blue"] * (10 - people)) == pytest.approx(score)


def test_an_answer_of_nothing_scores_where_people_said_nothing_that_counts() -> None:
    assert m4c_accuracy("", ["a", "the", "an", "."] + ["red"] * 6) == 1


def test_vqa_puts_nothing_in_normal_form_where_all_people_agree() -> None:
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0
    assert vqa_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1
    assert vqa_accuracy("the dog\n", ["the dog"] * 10) == 1


def test_a_hundred_thousand_answers_take_seconds() -> None:
    people = ["red", "Red.", "blue", "dark red", "1,000", "one", "a car", "cars", "it's red", "none"]
    started = time.perf_counter()
    for k in range(10000):
        vqa_accuracy(f"red {k % 500}", people)
        m4c_accuracy(f"red {k % 500}", people)
    assert time.perf_counter() - started < 2


# --- TextVQA

PEOPLE = {"what brand?": ["dell"] * 3 + ["hp"] * 7, "what year?": ["1999"] * 10}


@pytest.fixture
def text_root(tmp_path: Path) -> Path:
    rows = [
        {"question_id": 34602 + k, "image_id": "im1", "question": question, "answers": people}
        for k, (question, people) in enumerate(PEOPLE.items())
    ]
    write_json(tmp_path / "TextVQA_0.5.1_val.json", {"data": rows})
    tokens = [{"image_id": "im1", "ocr_tokens": ["DELL", "1999"]}]
    write_json(tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": tokens})
    touch(tmp_path / "images", ["im1.jpg"])
    return tmp_path


def textvqa(root: Path, **options: Any) -> TextVqa:
    return TextVqa(str(root), str(root / "images"), **options)


def test_textvqa_asks_with_or_without_the_ocr_tokens(text_root: Path) -> None:
    first = textvqa(text_root).requests()[0]
    assert first.id == "34602"
    assert first.turns[0].text == "What brand?\nReference OCR token: DELL, 1999" + S
    assert textvqa(text_root, ocr=False).requests()[0].turns[0].text == "What brand?" + S
    llava = [
        {"question_id": "im1", "image": "im1.jpg", "text": f"{q.capitalize()}\nReference OCR token: X{S}"}
        for q in PEOPLE
    ]
    write_lines(text_root / "llava_textvqa_val_v051_ocr.jsonl", llava)
    assert textvqa(text_root).requests()[0].turns[0].text == "What brand?\nReference OCR token: X" + S


def test_textvqa_scores_are_means_of_soft_accuracy(text_root: Path) -> None:
    benchmark = textvqa(text_root)
    metrics = benchmark.metrics(sum_counts(score_all(benchmark, ["Dell.", "2000"])))
    assert metrics["accuracy"] == pytest.approx(45)


@pytest.mark.parametrize(
    "prompt",
    [
        "What brand?\nReference OCR token: DELL" + S,
        "Reference OCR token: DELL\nWhat brand?" + S,
        "What brand?" + S,
        "OCR tokens: DELL, x. Question: What brand? Short answer:",
    ],
)
def test_textvqa_joins_on_image_and_question_in_every_form_of_prompt(text_root: Path, prompt: str) -> None:
    summary, _ = summarise(textvqa(text_root), answers([("im1", "hp")], [prompt]))
    assert summary["metrics"]["accuracy"] == pytest.approx(100)
    assert (summary["complete"], summary["answered"], summary["missing"]["ids"]) == (False, 1, ["34603"])


def test_textvqa_counts_every_line_and_stops_at_one_it_cannot_place(text_root: Path) -> None:
    prompts = ["What brand?" + S, "What year?" + S, "What brand?" + S]
    summary, _ = summarise(textvqa(text_root), answers([("im1", t) for t in ("hp", "x", "hp")], prompts))
    assert summary["metrics"]["accuracy"] == pytest.approx(200 / 3)
    assert (summary["answered"], summary["duplicate"]["ids"]) == (2, ["34602"])
    for key, prompt in (("im2", prompts[0]), (1, prompts[0]), ("im1", "Who?" + S), ("im1", "What brand?")):
        with pytest.raises(UserError, match=r"answers.jsonl: line 1"):
            summarise(textvqa(text_root), answers([(key, "hp")], [prompt]))


def test_textvqas_protocol_says_whether_the_answered_prompts_had_tokens(text_root: Path) -> None:
    forms = ["What brand?" + S, "What year?\nReference OCR token: 1999" + S]
    said = {}
    for name, lines in (("without", forms[:1]), ("with", forms[1:]), ("some", forms)):
        said[name] = summarise(textvqa(text_root), answers([("im1", "x")] * len(lines), lines))[0]["protocol"]
    assert "prompt without OCR tokens;" in said["without"]
    assert "prompt with OCR tokens;" in said["with"]
    assert "prompt with OCR tokens in some lines;" in said["some"]


def test_textvqa_wants_ten_answers(text_root: Path) -> None:
    path = text_root / "TextVQA_0.5.1_val.json"
    data = json.loads(path.read_text())
    data["data"][1]["answers"].pop()
    write_json(path, data)
    with pytest.raises(UserError, match="data 1: 9 answers, not 10"):
        textvqa(text_root).requests()


# --- VQAv2


@pytest.fixture
def vqa_root(tmp_path: Path) -> Path:
    people = {1: (["yes"] * 10, "yes/no"), 2: (["2"] * 3 + ["3"] * 7, "number")}
    questions = [{"question_id": i, "image_id": 42, "question": f"Q{i}?"} for i in people]
    notes = [
        {
            "question_id": i,
            "image_id": 42,
            "question_type": "x",
            "answer_type": kind,
            "answers": [{"answer": a, "answer_id": k} for k, a in enumerate(said)],
        }
        for i, (said, kind) in people.items()
    ]
    write_json(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write_json(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": notes})
    touch(tmp_path / "images", ["COCO_val2014_000000000042.jpg"])
    return tmp_path


def vqav2(root: Path, **options: Any) -> Vqav2:
    return Vqav2(str(root), str(root / "images"), **options)


def test_vqav2_scores_answers_as_llavas_upload_would(vqa_root: Path) -> None:
    benchmark = vqav2(vqa_root)
    request = benchmark.requests()[0]
    assert request.turns[0].text == "Q1?" + S
    assert request.image is not None
    assert request.image.endswith("COCO_val2014_000000000042.jpg")
    metrics = benchmark.metrics(sum_counts(score_all(benchmark, ["Yes.", "two"])))
    assert metrics["accuracy"] == pytest.approx((100 + 90) / 2)
    assert (metrics["yes/no"], metrics["number"]) == (100, pytest.approx(90))
    assert np.isnan(metrics["other"])


def test_vqav2s_classes_are_question_types_with_what_most_people_said(vqa_root: Path) -> None:
    assert vqav2(vqa_root).classes() == {"1": "x: yes", "2": "x: 3"}


def test_a_vqa_results_file_is_scored_as_it_is(vqa_root: Path) -> None:
    rows = [{"question_id": 1, "answer": "Yes"}, {"question_id": 2, "answer": "two"}]
    summary, _ = summarise(vqav2(vqa_root), read_answers(write_json(vqa_root / "r.json", rows)))
    assert summary["metrics"]["yes/no"] == 0  # all people said "yes", and nothing is put in normal form
    assert summary["metrics"]["number"] == pytest.approx(90)
    for wrong, message in (
        (rows[:1], "2 is missing"),
        ([*rows, {"question_id": 3, "answer": "x"}], "question 3 is not"),
    ):
        with pytest.raises(UserError, match=message):
            summarise(vqav2(vqa_root), read_answers(write_json(vqa_root / "r.json", wrong)))


def test_llavas_vqa_lines_are_converted_and_a_missing_one_is_an_answer_of_nothing(vqa_root: Path) -> None:
    summary, _ = summarise(vqav2(vqa_root), answers([(1, "no"), (1, "Yes."), (7, "x")]))
    assert summary["metrics"]["accuracy"] == 50
    assert (summary["answered"], summary["missing"]["ids"], summary["unknown"]["ids"]) == (1, [2], [7])
    assert summary["complete"] is False


def test_a_vqa_test_split_gives_its_servers_results_file(vqa_root: Path) -> None:
    (vqa_root / "v2_mscoco_val2014_annotations.json").unlink()
    path = vqa_root / "v2_OpenEnded_mscoco_val2014_questions.json"
    path.rename(vqa_root / "v2_OpenEnded_mscoco_test-dev2015_questions.json")
    benchmark = vqav2(vqa_root, split="test-dev2015")
    said = {"1": "The dog's.", "2": "1,000"}
    (name,) = benchmark.submission(said)
    assert name == "v2_OpenEnded_mscoco_test-dev2015_results.json"
    rows = [{"question_id": 1, "answer": "dog 's"}, {"question_id": 2, "answer": "1000"}]
    assert json.loads(benchmark.submission(said)[name]) == rows
    whole = [{"question_id": i, "image_id": 42, "question": "Q?"} for i in (3, 2, 1)]
    write_json(vqa_root / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": whole})
    assert json.loads(benchmark.submission(said)[name]) == [{"question_id": 3, "answer": ""}, *rows[::-1]]
    assert benchmark.submission({"1": "x"}) == {}


def test_gqas_predictions_file_is_what_its_program_reads(gqa_root: Path) -> None:
    said = {"01": "Yes.", "02": "Red", "03": " blue"}
    ((name, text),) = gqa(gqa_root).submission(said).items()
    assert name == "testdev_balanced_predictions.json"
    assert json.loads(text)[2] == {"questionId": "03", "prediction": " blue"}
    (gqa_root / name).write_text(text)
    summary, _ = summarise(gqa(gqa_root), read_answers(gqa_root / name))
    assert summary["metrics"]["accuracy"] == pytest.approx(200 / 3)
    assert gqa(gqa_root).submission({"01": "yes"}) == {}


def test_a_vqa_test_split_gives_questions_and_no_scores(vqa_root: Path) -> None:
    (vqa_root / "v2_mscoco_val2014_annotations.json").unlink()
    benchmark = vqav2(vqa_root)
    assert score_all(benchmark, ["yes", "2"]) == [None, None]
    with pytest.raises(UserError, match="no annotations of val2014; its server scores it"):
        summarise(benchmark, answers([(1, "yes")]))
