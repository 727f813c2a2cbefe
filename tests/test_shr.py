"""SHR: sentences, judgements and n-grams by HA-DPO's rules, with scores that are worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmark_files import touch, write_json, write_lines
from conftest import run_nsft
from judged_files import SHR_IMAGES, read, replying, write_shr
from nsft_exp.benchmark.answers import sum_counts
from nsft_exp.benchmark.judge import Judge
from nsft_exp.benchmark.sentences import judgements, repetition, sentences
from nsft_exp.benchmark.shr import Shr
from nsft_exp.records import UserError
from nsft_exp.score import score
from scripted_critic import Server, serving
from tiny_training import draw

CAT = "A cat sits on a red mat. The cat is asleep. It has a long tail"
HILL = "A green hill stands under a sky. A green hill"


def shr(root: Path, **options: Any) -> Shr:
    judge = Judge("gpt-4", str(root / "gpt_utils.py"), temperature=0.7, runs=options.pop("runs", 1))
    return Shr(str(root), judge, **{"image_root": str(root), **options})


def said(*labels: str) -> str:
    return "Judgement:\n" + "\n".join(f"{k}. {label}: because" for k, label in enumerate(labels, 1))


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("A cat. A mat.", ["A cat", "A mat"]),
        ("A cat.  A cat .A mat", ["A cat", "A mat"]),  # a repeat
        ("A cat sits. A cat", ["A cat sits"]),  # within an earlier one
        ("A cat. A cat sits", ["A cat", "A cat sits"]),  # the longer one comes later: both stay
        ("It is 2.5 m. Wide?! Yes", ["It is 2", "5 m", "Wide?! Yes"]),
        ("A\nB. ... ", ["A\nB"]),
        ("", []),
    ],
)
def test_a_description_is_cut_at_full_stops_and_what_is_said_already_is_dropped(
    description: str, expected: list[str]
) -> None:
    assert sentences(description) == expected


@pytest.mark.parametrize(
    ("reply", "labels"),
    [
        (said("Correct", "Hallucination"), ["correct", "hallucination"]),
        ("Sure.\n\nJudgement: see\n\n1. Cannot judge: x\n 2. correct", ["cannot judge", "2. correct"]),
        ("Judgement:\r\n1. correct: a: b\r\n2. Correct : c\r", ["correct", "correct "]),
        ("Judgement:\nOne\n1. correct: x\n- wrong: y", ["correct", "wrong"]),  # a word alone leaves nothing
        (said("correct"), None),
        (said("correct", "correct", "correct"), None),
        ("Judgement:\n1. correct: x\n2. correct: y\nIn all, fine", None),
        ("Judgement\n1. correct: x\n2. correct: y", None),
        ("judgement:\n1. correct: x\n2. correct: y", None),
        ("", None),
    ],
)
def test_a_judgement_is_read_after_its_word_and_void_unless_it_has_one_class_a_sentence(
    reply: str, labels: list[str] | None
) -> None:
    assert judgements(reply, "A. B.") == labels


def test_ngrams_are_counted_without_marks_over_words() -> None:
    assert repetition("a b a b.", 1) == 0.5
    assert repetition("a, b: a? b", 2) == pytest.approx(2 / 3)  # ab ba ab
    assert repetition("a\nb a b", 1) == 1  # "ab a b": the line's end glues
    assert repetition("A a", 1) == 1
    assert repetition("a b a", 4) is None


def test_the_judge_is_told_regions_facts_and_numbered_sentences(tmp_path: Path) -> None:
    benchmark = shr(write_shr(tmp_path))
    first = benchmark.ask("7", "A cat. A mat. A cat", [])
    assert first is not None
    regions = "[0.1, 0.33, 0.4, 1.0]: a cat\n"
    assert first.messages[0][1] == (
        f"Regions:\n{regions}Facts:\n1. A cat.\n2. A mat.\nComments:\n1. A cat\n2. A mat\n"
    )
    other = benchmark.ask("12", "A hill", [])
    assert other is not None
    # 1/200 and 61/200 with two decimals, as a float prints them
    assert other.messages[0][1] == "Regions:\n[0.01, 0.33, 0.3, 1.0]: a hill\nFacts:\nComments:\n1. A hill\n"


def test_a_reply_without_the_word_is_asked_for_again_as_another_request_up_to_a_bound(
    tmp_path: Path,
) -> None:
    benchmark = shr(write_shr(tmp_path), tries=3)
    asks = [benchmark.ask("7", CAT, ["I cannot"] * k) for k in range(4)]
    assert asks[3] is None
    calls = [benchmark.judge.call(ask, "7", 0) for ask in asks[:3] if ask]
    assert len({call.key for call in calls}) == 3
    assert len({json.dumps(call.body) for call in calls}) == 1
    assert benchmark.ask("7", CAT, ["I cannot", "Judgement"]) is None


def test_the_ratio_is_over_all_sentences_of_known_class_and_void_images_are_left_out(tmp_path: Path) -> None:
    benchmark = shr(write_shr(tmp_path))
    one = benchmark.judged("7", CAT, [[said("correct", "hallucination", "Cannot judge")]])
    two = benchmark.judged("12", HILL, [["no", said("maybe")]])
    found = benchmark.metrics(sum_counts([one, two]))
    assert found["shr"] == 33.3
    assert found["shr_words"] == pytest.approx(100 * round(4 / 16, 3))  # of 7, 4 and 5 words
    assert (found["sentences"], found["words"]) == (2, 11.5)
    assert (found["hallucinated_sentences"], found["hallucinated_words"]) == (0.5, 2)
    assert found["gram1"] == round((14 / 16 + 7 / 10) / 2, 3)  # "cat" and "a" again; "A green hill" again
    assert (found["failed"], found["skipped"]) == (0, 0)
    assert [m[2] for m in one.marks] == ["right", "wrong"]
    assert CAT[slice(*one.marks[1][:2])] == "The cat is asleep"
    void = benchmark.judged("12", HILL, [[said("correct", "correct")]])
    found = benchmark.metrics(sum_counts([one, void]))
    assert (found["shr"], found["sentences"], found["failed"]) == (33.3, 2, 1)
    assert void.unparseable


def test_several_runs_are_averaged_after_each_is_rounded(tmp_path: Path) -> None:
    benchmark = shr(write_shr(tmp_path), runs=2)
    runs = [
        [said("hallucination", "correct", "correct")],
        [said("correct", "Hallucination", "hallucination")],
    ]
    assert (
        benchmark.metrics(sum_counts([benchmark.judged("7", CAT, runs)]))["shr"] == 50.0
    )  # (33.3 + 66.7) / 2


def test_an_image_with_a_long_prompt_is_skipped_but_its_ngrams_count(tmp_path: Path) -> None:
    benchmark = shr(write_shr(tmp_path), skip_above=100)
    assert benchmark.ask("12", HILL, []) is not None
    assert benchmark.ask("7", CAT + ". More" * 9, []) is None
    both = [benchmark.judged("12", HILL, [[said("correct")]]), benchmark.judged("7", "a a a a", [[]])]
    found = benchmark.metrics(sum_counts(both))
    assert (found["shr"], found["sentences"], found["skipped"]) == (0, 1, 1)
    assert found["gram4"] == 1
    assert "skipped" in benchmark.protocol
    assert shr(tmp_path, skip_above=None).ask("7", CAT * 9, []) is not None


def test_a_description_too_short_for_the_official_ngrams_has_none(tmp_path: Path) -> None:
    benchmark = shr(write_shr(tmp_path))
    found = benchmark.metrics(sum_counts([benchmark.judged("12", "A hill", [[said("correct")]])]))
    assert found["gram1"] != found["gram1"]
    assert found["shr"] == 0


def test_every_image_is_described_by_five_beams(tmp_path: Path) -> None:
    touch(write_shr(tmp_path), ("VG_100K/7.jpg", "VG_100K/12.jpg"))
    first, second = shr(tmp_path).requests()
    assert (first.id, first.turns[0].text) == ("7", "Describe this image in detail.")
    assert (first.decoding.num_beams, first.decoding.max_new_tokens, first.decoding.temperature) == (
        5,
        512,
        0,
    )
    assert second.image == str(tmp_path / "VG_100K" / "12.jpg")
    assert "5 beams" in shr(tmp_path).protocol


def words(root: Path, answers: Path, *more: str) -> list[str]:
    out = root / "out" / "shr.json"
    return ["benchmark=shr", f"benchmark.root={root}", f"answers={answers}", f"out={out}", *more]


@pytest.fixture
def judge() -> Any:
    """A judge that has a judgement at the second time: a sentence with `cat` is a hallucination."""

    def reply(prompt: str, times: int) -> str:
        listed = prompt.partition("Comments:\n")[2].splitlines()
        return said(*("hallucination" if "cat" in x else "correct" for x in listed)) if times else "Well."

    with serving(replying(reply)) as server:
        yield server


def test_a_responses_file_is_judged_over_the_network_and_paid_for_once(tmp_path: Path, judge: Server) -> None:
    file = write_json(tmp_path / "responses.json", {"7": CAT, "12": HILL, "5": "Not asked for."})
    order = words(write_shr(tmp_path), file, f"benchmark.judge.base_url={judge.base_url}")
    assert score(order) == 0
    out = read(tmp_path / "out" / "shr.json")
    assert out["metrics"]["shr"] == 50.0  # two of three and none of one
    assert (out["complete"], out["unknown"]["ids"]) == (False, ["5"])
    assert out["judge"]["replies"] == 4
    sent = judge.bodies[0]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("gpt-4", 0.7, 800)
    assert (sent["stop"], sent["logit_bias"]) == (["###"], {"50256": -100})
    number = len(judge.bodies)
    assert score(order) == 0
    assert len(judge.bodies) == number


def graded(**runs: dict[str, tuple[str, list[str | None]]]) -> dict[str, Any]:
    """A judgement.json; json_eval.py's has `mode_response` where LLaVA's script has `model_response`."""
    return {
        run: {
            key: {
                "raw_judgement": "...",
                "mode_response": text,
                "judgement": [
                    {"model_response": f"{s}.", "judgement": label, "classification": label}
                    for s, label in zip(sentences(text), labels, strict=True)
                ],
            }
            for key, (text, labels) in images.items()
        }
        for run, images in runs.items()
    }


def test_the_official_programs_judgements_are_scored_without_a_judge(tmp_path: Path) -> None:
    write_shr(tmp_path)
    run = {"7": (CAT, ["hallucination", "correct", "other"]), "12": (HILL, [None])}
    assert score(words(tmp_path, write_json(tmp_path / "judgement.json", graded(run1=run)))) == 0
    out = read(tmp_path / "out" / "shr.json")
    assert out["metrics"]["shr"] == 50.0
    assert out["metrics"]["shr_words"] == 63.6  # 7 of 11 words
    assert (out["metrics"]["failed"], out["complete"]) == (1, True)
    assert score(words(tmp_path, write_json(tmp_path / "j.json", graded(run1={"7": run["7"]})))) == 0
    out = read(tmp_path / "out" / "shr.json")
    assert (out["missing"]["ids"], out["metrics"]["gram1"], out["metrics"]["shr"]) == (["12"], None, 50.0)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"7": CAT}, r"1 of 2 questions have no answer \(12\); the official program stops there"),
        (
            {"7": CAT, "12": "A hill"},
            "image 12: a description of fewer than 4 words, where the official program",
        ),
        ({"7": CAT, "12": 3}, "field `12` is 3, not str"),
        (graded(run1={"7": (CAT, [None] * 3)}, run2={}), "run2: image 7: has no field `7`"),
    ],
)
def test_a_responses_file_that_the_official_program_cannot_take_is_refused(
    tmp_path: Path, answers: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        score(words(write_shr(tmp_path), write_json(tmp_path / "r.json", answers)))


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("val_images_final.json", [{"image_id": 8}], "record 0: image 8 is not in .*image_data.json"),
        ("val_images_final.json", {"image_id": 8}, "is no list of records"),
        ("image_data.json", [{"image_id": 7, "width": 0, "height": 1, "url": "a/b"}], "0 x 1 pixels"),
        ("region_descriptions.json", [], "has no regions of image 7"),
        ("shr_factual_part1.jsonl", [{}], "line 1: names no image"),
        ("shr_factual_part1.jsonl", [{"7": [1]}], "a fact about image 7 is not text"),
    ],
)
def test_official_files_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, rows: Any, message: str
) -> None:
    write_shr(tmp_path)
    (write_lines if name.endswith("jsonl") else write_json)(tmp_path / name, rows)
    with pytest.raises(UserError, match=message):
        shr(tmp_path).ask("7", CAT, [])


def test_a_prompt_without_its_three_places_is_refused(tmp_path: Path) -> None:
    (write_shr(tmp_path) / "gpt_utils.py").write_text("GPT_JUDGE_PROMPT = 'A {} and {}'\n")
    with pytest.raises(UserError, match="three places"):
        shr(tmp_path).files()


def test_a_models_beams_are_judged_end_to_end_and_an_engine_without_beams_is_refused(
    tmp_path: Path, toy_data: Path, judge: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shr(tmp_path)
    draw(tmp_path / "VG_100K", 2)
    for name, image in zip(("0.png", "1.png"), SHR_IMAGES, strict=True):
        (tmp_path / "VG_100K" / name).rename(tmp_path / "VG_100K" / f"{image}.jpg")
    words = ["evaluate", "vlm=tiny_random", "launch=inline", "benchmark=shr", f"benchmark.root={tmp_path}"]
    words += [f"benchmark.image_root={tmp_path}", "benchmark.max_new_tokens=9", "vlm.device=cpu"]
    words += [f"benchmark.judge.base_url={judge.base_url}", "to=out"]
    assert run_nsft(tmp_path, toy_data, *words) == 0
    scores = read(tmp_path / "out" / "shr.json")
    assert (scores["n"], scores["judge"]["replies"]) == (2, 4)
    assert "SHR (HA-DPO), 5 beams, judged by gpt-4, temperature 0.7" in scores["protocol"]
    (submission,) = (tmp_path / "runs").glob("evaluate/*/submission/responses.json")
    assert set(read(submission)) == {"7", "12"}
    assert run_nsft(tmp_path, toy_data, *words, "vlm.engine=vllm") == 2
    assert "benchmark shr: its beam search is Hugging Face's only" in capsys.readouterr().err
