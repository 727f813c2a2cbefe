"""Benchmarks that an LLM judges: the official rules on awkward replies, and files of official judgements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmark_files import fixture, write_json, write_lines
from judged_files import (
    BENCH,
    HAL_PROMPT,
    VET_PROMPT,
    hal_rows,
    read,
    write_llavabench,
    write_mmhal,
    write_mmvet,
)
from nsft_exp.benchmark.judge import Judge
from nsft_exp.benchmark.llavabench import LlavaBench, read_scores
from nsft_exp.benchmark.mmhal import MmHal, read_rating
from nsft_exp.benchmark.mmvet import MmVet, read_grade
from nsft_exp.records import UserError
from nsft_exp.score import score


def vet(root: Path, **judge: Any) -> MmVet:
    return MmVet(str(root), Judge("gpt", str(root / "mm-vet_evaluator.py"), **judge))


def hal(root: Path) -> MmHal:
    return MmHal(str(root), Judge("gpt", str(root / "eval_gpt_mmhal.py")))


def bench(root: Path) -> LlavaBench:
    return LlavaBench(str(root), Judge("gpt", str(root / "rule.json")))


def summed(scores: list[Any]) -> dict[str, float]:
    total: dict[str, float] = {}
    for item in scores:
        for key, value in item.counts.items():
            total[key] = total.get(key, 0) + value
    return total


# --- how replies are read


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("0.5", 0.5),
        ("1", 1.0),
        ("0.3 because", 0.3),
        ("1.0\n", 1.0),
        (".7", 0.7),
        ("0", 0.0),
        ("", None),
        (" 0.5", None),  # nothing stands before its first space
        ("0.5\nbecause", None),
        ("1.1", None),
        ("-0.1", None),
        ("0,5", None),
        ("0.5.", None),
        ("Score: 0.5", None),
        ("inf", None),
    ],
)
def test_mmvet_reads_what_stands_before_the_first_space(reply: str, grade: float | None) -> None:
    assert read_grade(reply) == grade


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Explanation ...\n- Rating: 5, very informative", 5),
        ("RATING: 0", 0),
        ("Rating: 10", 1),
        ("rating: 6 ... rating: 6", 6),
        ("Rating:5", None),
        ("Rating: five", None),
        ("Rating: 7", None),
        ("Rating: 2, not Rating: 4", None),
        ("", None),
    ],
)
def test_mmhal_takes_the_only_rating_in_a_reply(reply: str, rating: int | None) -> None:
    assert read_rating(reply) == rating


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 9\nBoth are fine.", (8, 9)),
        ("8,9", (8, 9)),
        ("8.5 7", (8.5, 7)),
        ("8 9\r\nBoth", (8, 9)),
        ("8, 9", (-1, -1)),  # a comma and a blank make three parts
        ("8 9 ", (-1, -1)),
        ("Scores: 8 9", (-1, -1)),
        ("8\n9", (-1, -1)),
        ("8 nine", (-1, -1)),
        ("\n8 9", (-1, -1)),
        ("", (-1, -1)),
    ],
)
def test_llavabench_reads_two_numbers_in_the_first_line(reply: str, scores: tuple[float, float]) -> None:
    assert read_scores(reply) == scores


# --- what is asked


def test_mmvet_asks_by_the_programs_prompt_and_again_warmer_each_time(tmp_path: Path) -> None:
    benchmark = vet(write_mmvet(tmp_path))
    table = f"{VET_PROMPT}\nWhat is x? | -1 <AND> -5 | x is 3 | "
    first = benchmark.ask("v1_0", "x is 3", [])
    assert first is not None
    assert first.messages == (("user", table),)
    again = table + "\nPredict the correctness of the answer (digit): "
    bad = "The answer"
    for tries, warmer in ((1, 0.0), (2, 0.5), (3, 1.0), (4, 1.5)):
        ask = benchmark.ask("v1_0", "x is 3", [bad] * tries)
        assert ask is not None
        assert (ask.messages, ask.warmer) == ((("user", again),), warmer)
        assert benchmark.judge.call(ask, "v1_0", 0).body["temperature"] == warmer
    assert benchmark.ask("v1_0", "x is 3", [bad] * 5) is None
    assert benchmark.ask("v1_0", "x is 3", [bad, "0.4"]) is None


def test_mmhal_fills_the_four_places_of_the_programs_prompt(tmp_path: Path) -> None:
    ask = hal(write_mmhal(tmp_path)).ask("5", "A {cup}.", [])
    assert ask is not None
    said = "Contents Cat, Tree\nQuestion Question 5?\nTruth Truth 5.\nAnswer A {cup}.\n"
    assert ask.messages == (("user", said),)
    (tmp_path / "eval_gpt_mmhal.py").write_text("template = 'Only {} and {}'\n")
    with pytest.raises(
        UserError, match=r"eval_gpt_mmhal.py: has not the four places {} of MMHal-Bench's prompt"
    ):
        hal(tmp_path).ask("5", "", [])


def test_llavabench_shows_both_answers_and_joins_the_caption_as_the_program_does(tmp_path: Path) -> None:
    benchmark = bench(write_llavabench(tmp_path))
    ask = benchmark.ask("3", "M3", [])
    assert ask is not None
    (system, (role, text)) = ask.messages
    assert (system[0], role) == ("system", "user")
    assert text == (
        "[Context]\nA cup.\nA cat.\n\n[Question]\nQ3?\n\n[Assistant 1]\nG3\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nM3\n\n[End of Assistant 2]\n\n[System]\nTwo scores, please.\n\n"
    )
    first = benchmark.ask("0", "M0", [])
    assert first is not None
    assert first.messages[1][1].startswith("[Context]\nS\ne\na\n\n")  # a caption that is one text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "benchmark.judge.file=.*mm-vet_evaluator.py: no such file; it is mm-vet_evaluator.py of"),
        ("x = 1\n", "assigns no text to `prompt`"),
        ("prompt = (\n", "is no Python program"),
    ],
)
def test_a_prompt_that_is_not_there_is_told_before_anything_is_asked(
    tmp_path: Path, content: str | None, message: str
) -> None:
    program = write_mmvet(tmp_path) / "mm-vet_evaluator.py"
    program.unlink() if content is None else program.write_text(content)
    with pytest.raises(UserError, match=message):
        vet(tmp_path).files()


def test_a_prompt_can_be_a_text_file(tmp_path: Path) -> None:
    write_mmvet(tmp_path)
    (tmp_path / "prompt.txt").write_text(VET_PROMPT)
    benchmark = MmVet(str(tmp_path), Judge("gpt", str(tmp_path / "prompt.txt")))
    assert benchmark.ask("v1_1", "x", []) == vet(tmp_path).ask("v1_1", "x", [])


# --- metrics


def test_mmvet_counts_an_item_in_each_of_its_capabilities_and_a_failed_one_as_zero(tmp_path: Path) -> None:
    benchmark = vet(write_mmvet(tmp_path))
    replies = {"v1_0": ["0.5"], "v1_1": ["no", "1.0"], "v1_2": ["0.2"], "v1_3": ["bad"] * 5}
    scores = [benchmark.judged(key, "", [said]) for key, said in replies.items()]
    found = benchmark.metrics(summed(scores))
    assert found["total"] == pytest.approx(100 * (0.5 + 1 + 0.2 + 0) / 4)
    assert found["total_parsed"] == pytest.approx(100 * (0.5 + 1 + 0.2) / 3)
    assert found["failed"] == 1
    assert found["ocr"] == pytest.approx(100 * (0.5 + 1 + 0) / 3)
    assert (found["math"], found["rec"], found["know"]) == pytest.approx((50, 20, 20))
    assert (found["set_math_ocr"], found["set_ocr"], found["set_know_rec"]) == pytest.approx((50, 50, 20))
    assert [s.unparseable for s in scores if s] == [False, False, False, True]


def test_mmvet_averages_its_runs_and_tells_their_deviation(tmp_path: Path) -> None:
    benchmark = vet(write_mmvet(tmp_path), runs=2)
    scores = [benchmark.judged(key, "", [["1.0"], ["0.5"]]) for key in benchmark.items()]
    found = benchmark.metrics(summed(scores))
    assert (found["total"], found["std"]) == pytest.approx((75, 25))  # runs of 100 and 50


def test_mmhal_has_score_rate_and_types_and_takes_a_failed_reply_for_zero(tmp_path: Path) -> None:
    benchmark = hal(write_mmhal(tmp_path))
    replies = ["Rating: 6"] * 96
    replies[0], replies[8], replies[1], replies[2] = "Rating: 2", "Rating: 10", "none", "Rating: 3"
    found = benchmark.metrics(summed([benchmark.judged(str(k), "", [[r]]) for k, r in enumerate(replies)]))
    total = 92 * 6 + 2 + 1 + 0 + 3
    assert found["score"] == pytest.approx(total / 96)
    assert found["hallucination"] == pytest.approx(100 * 3 / 96)  # 2, 1 and the failed one
    assert found["score_parsed"] == pytest.approx(total / 95)
    assert found["hallucination_parsed"] == pytest.approx(100 * 2 / 95)
    assert found["failed"] == 1
    assert found["attribute"] == pytest.approx((10 * 6 + 2 + 1) / 12)
    assert found["adversarial"] == pytest.approx(11 * 6 / 12)
    assert found["comparison"] == pytest.approx((11 * 6 + 3) / 12)


def test_llavabenchs_means_include_failed_replies_as_minus_one(tmp_path: Path) -> None:
    benchmark = bench(write_llavabench(tmp_path))
    replies = ["8 6", "10 10", "9 3", "8, 9"]
    found = benchmark.metrics(summed([benchmark.judged(str(k), "", [[r]]) for k, r in enumerate(replies)]))
    gpt4, model = round((8 + 10 + 9 - 1) / 4, 3), round((6 + 10 + 3 - 1) / 4, 3)
    assert found["relative"] == pytest.approx(100 * model / gpt4)
    assert (found["gpt4"], found["model"]) == pytest.approx((65, 45))
    assert found["conv"] == pytest.approx(100 * (5 / 2) / (7 / 2))
    assert (found["detail"], found["complex"]) == pytest.approx((100, 100 * 3 / 9))
    parsed = round(19 / 3, 3) / 9
    assert (found["relative_parsed"], found["failed"]) == (pytest.approx(100 * parsed), 1)


# --- files of official judgements, without a judge


def scored(tmp_path: Path, name: str, answers: Path, *words: str) -> dict[str, Any]:
    out = tmp_path / "out" / "scores.json"
    root = tmp_path / name
    assert (
        score([f"benchmark={name}", f"benchmark.root={root}", f"answers={answers}", f"out={out}", *words])
        == 0
    )
    return dict(read(out))


def grades(**given: list[float]) -> dict[str, Any]:
    return {
        key: {"model": ["gpt-4-0613"] * len(g), "content": [str(x) for x in g], "score": g}
        for key, g in given.items()
    }


def test_mmvets_grade_file_is_scored_as_it_stands(tmp_path: Path) -> None:
    write_mmvet(tmp_path / "mmvet")
    rows = grades(v1_0=[0.5], v1_1=[1.0], v1_2=[0.0], v1_3=[0.0])
    rows["v1_3"]["content"] = ["The answer is"]  # what is left where five replies were no grade
    out = scored(tmp_path, "mmvet", write_json(tmp_path / "grade.json", rows))
    assert out["metrics"]["total"] == pytest.approx(37.5)
    assert out["metrics"]["total_parsed"] == pytest.approx(50)
    assert (out["metrics"]["failed"], out["complete"]) == (1, True)
    assert "gpt-4-0613" in out["protocol"]
    records = (tmp_path / "out" / "scores.items.jsonl").read_text().splitlines()
    assert json.loads(records[0])["judge"] == rows["v1_0"]


def test_a_grade_file_of_several_runs_gives_their_first_or_as_many_as_are_asked_for(tmp_path: Path) -> None:
    write_mmvet(tmp_path / "mmvet")
    file = write_json(tmp_path / "g.json", grades(v1_0=[1, 0], v1_1=[1, 0], v1_2=[1, 0], v1_3=[1, 1]))
    assert scored(tmp_path, "mmvet", file)["metrics"]["total"] == 100
    both = scored(tmp_path, "mmvet", file, "benchmark.judge.runs=2")["metrics"]
    assert (both["total"], both["std"]) == pytest.approx((62.5, 37.5))


def test_a_grade_file_with_a_question_missing_has_no_total(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mmvet(tmp_path / "mmvet")
    file = write_json(tmp_path / "g.json", grades(v1_0=[0.5], v1_1=[1.0], v1_2=[0.0]))
    out = scored(tmp_path, "mmvet", file)
    assert (out["metrics"]["total"], out["metrics"]["ocr"], out["complete"]) == (None, None, False)
    assert out["metrics"]["total_parsed"] == pytest.approx(50)
    assert "1 without the judge's reply" in capsys.readouterr().err
    with pytest.raises(UserError, match="strict=true"):
        scored(tmp_path, "mmvet", file, "strict=true")
    foreign = write_json(tmp_path / "f.json", grades(v1_99=[0.5]))
    with pytest.raises(UserError, match=r"v1_99 is not in .*mm-vet.json; the official program stops there"):
        scored(tmp_path, "mmvet", foreign)


def test_mmhals_evaluation_file_is_scored_and_another_length_is_refused(tmp_path: Path) -> None:
    write_mmhal(tmp_path / "mmhal")
    texts = ["Rating: 4"] * 95 + ["Rating: 1 or Rating: 2"]
    rows = [{"model": "gpt-4-0314", "choices": [{"message": {"content": text}}]} for text in texts]
    out = scored(tmp_path, "mmhal", write_json(tmp_path / "e.json", rows))
    assert out["metrics"]["score"] == pytest.approx(95 * 4 / 96)
    assert out["metrics"]["hallucination"] == pytest.approx(100 / 96)
    assert out["metrics"]["other"] == pytest.approx(11 * 4 / 12)
    assert (out["metrics"]["score_parsed"], out["metrics"]["failed"]) == (4, 1)
    assert "gpt-4-0314" in out["protocol"]
    with pytest.raises(UserError, match="95 records, not 96; the official program stops"):
        scored(tmp_path, "mmhal", write_json(tmp_path / "e.json", rows[:-1]))


def test_llavabenchs_review_file_is_scored_by_its_tuples(tmp_path: Path) -> None:
    write_llavabench(tmp_path / "llavabench")
    pairs = [[8.0, 6.0], [10.0, 5.0], [-1, -1], [9.0, 9.0]]
    rows = [
        {"id": k + 1, "question_id": i, "category": f"llava_bench_{c}", "content": "...", "tuple": pair}
        for k, ((i, _, c), pair) in enumerate(zip(BENCH, pairs, strict=True))
    ]
    out = scored(tmp_path, "llavabench", write_lines(tmp_path / "r.jsonl", rows))
    assert out["metrics"]["relative"] == pytest.approx(100 * (19 / 4) / (26 / 4))
    assert out["metrics"]["conv"] == pytest.approx(100 * 15 / 17)
    assert out["metrics"]["complex"] == pytest.approx(100)  # -1 / -1
    assert out["metrics"]["relative_parsed"] == pytest.approx(100 * round(20 / 3, 3) / 9)
    assert (out["metrics"]["failed"], out["complete"]) == (1, True)
    short = scored(tmp_path, "llavabench", write_lines(tmp_path / "r.jsonl", rows[:2]))
    assert short["metrics"]["relative"] == pytest.approx(100 * 11 / 18)
    assert (short["complete"], short["missing"]) == (False, {"count": 2, "ids": [2, 3]})


# --- files of answers that cannot be judged


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("mmvet", [{"question_id": 0, "text": "x"}], r"3 of 4 questions have no answer \(v1_1, v1_2, v1_3\)"),
        ("mmhal", hal_rows()[:5], "5 records, not 96"),
        ("mmhal", [hal_rows()[1], *hal_rows()[1:]], "record 0: asks another question than"),
        ("llavabench", [{"question_id": 1, "text": "x"}], "answers question 1 where questions.jsonl has 0"),
        ("mmvet", {f"v1_{k}": "x" for k in range(4)}, "out=FILE is missing: the judge's replies are kept"),
    ],
)
def test_answers_that_the_official_program_cannot_take_are_refused_in_one_line(
    tmp_path: Path, name: str, rows: Any, message: str
) -> None:
    {"mmvet": write_mmvet, "mmhal": write_mmhal, "llavabench": write_llavabench}[name](tmp_path)
    write = write_lines if name == "llavabench" else write_json
    file = write(tmp_path / "answers.json", rows)
    with pytest.raises(UserError, match=message) as error:
        score([f"benchmark={name}", f"benchmark.root={tmp_path}", f"answers={file}"])
    assert "\n" not in str(error.value)


def test_the_shared_llavabench_files_are_read(tmp_path: Path) -> None:
    for name in ("questions", "context", "answers_gpt4"):
        (tmp_path / f"{name}.jsonl").write_bytes(fixture(f"formats/llavabench_{name}.jsonl").read_bytes())
    write_json(tmp_path / "rule.json", read(write_llavabench(tmp_path / "other") / "rule.json"))
    ask = bench(tmp_path).ask("0", "A hill.", [])
    assert ask is not None
    assert "[Assistant 1]\nIt is a crater.\n" in ask.messages[1][1]


def test_the_prompt_is_in_the_protocol(tmp_path: Path) -> None:
    before = vet(write_mmvet(tmp_path)).protocol
    (tmp_path / "mm-vet_evaluator.py").write_text("prompt = 'Another.'\n")
    assert vet(tmp_path).protocol != before
    assert HAL_PROMPT.count("{}") == 4
