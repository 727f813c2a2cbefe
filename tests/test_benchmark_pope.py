from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmark_files import S, answers, fixture_lines, score_all, touch, write_lines
from nsft_exp.benchmark.answers import read_answers, sum_counts, summarise
from nsft_exp.benchmark.pope import Pope, read_yes_no, says_neither
from nsft_exp.records import Reply, UserError

IMAGES = ["a.jpg", "b.jpg"]
OBJECTS = {"random": ["dog", "cup"], "popular": ["cat", "car"], "adversarial": ["fork", "bed"]}
FIRST = {"adversarial": 1, "random": 10000001, "popular": 20000001}


def write_pope(root: Path, llava: bool = True) -> Path:
    """Four questions a split: for each of two images one that is there (yes) and one that is not (no)."""
    asked = []
    for split, (there, absent) in OBJECTS.items():
        rows = [
            {"question_id": k + 1, "image": image, "text": f"Is there a {noun} in the image?", "label": label}
            for k, (image, noun, label) in enumerate(
                (image, noun, label) for image in IMAGES for noun, label in ((there, "yes"), (absent, "no"))
            )
        ]
        write_lines(root / "coco" / f"coco_pope_{split}.json", rows)
        asked += [
            {"question_id": FIRST[split] + k, "image": r["image"], "text": r["text"] + S, "category": split}
            for k, r in enumerate(rows)
        ]
    if llava:
        write_lines(root / "llava_pope_test.jsonl", asked)
    touch(root / "images", IMAGES)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_pope(tmp_path)


def pope(root: Path, **options: object) -> Pope:
    return Pope(str(root), str(root / "images"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("No", "no"),
        ("no", "no"),
        ("Yes, there is no doubt", "no"),
        ("There is not a dog", "no"),
        ("No,", "no"),
        ("The answer: No.", "no"),
        ("NO", "yes"),
        ("Nope", "yes"),
        ("no!", "yes"),
        ("No\nThere is a wall.", "yes"),
        ("There isn't a dog", "yes"),
        ("Mr. No", "yes"),
        (". no", "yes"),
        ("", "yes"),
        ("No\tdog", "yes"),
        ("no\u00a0dog", "yes"),
    ],
)
def test_the_first_sentence_is_no_if_it_has_exactly_one_of_three_words(answer: str, read: str) -> None:
    assert read_yes_no(answer) == read


def test_answers_are_read_as_the_shared_cases_say() -> None:
    cases = fixture_lines("pope_parse_cases.jsonl")
    assert [read_yes_no(c["answer"]) for c in cases] == [c["parsed"] for c in cases]


def test_an_answer_without_yes_or_no_is_flagged_but_still_read_as_yes(root: Path) -> None:
    flagged = [says_neither(t) for t in ("A wall.", "", "Nope", "YES!", "There isn't", "no one", "Yesterday")]
    assert flagged == [True, True, True, False, False, False, True]
    score = score_all(pope(root, splits=["random"]), ["A wall.", "No", "No", "No"])[0]
    assert (score.unparseable, score.parsed, score.counts["random/tp"]) == (True, "yes", 1)


def test_questions_carry_llavas_ids_and_text_and_ask_for_the_likelihood_of_yes_and_no(root: Path) -> None:
    requests = pope(root).requests()
    assert [r.id for r in requests[:5]] == ["10000001", "10000002", "10000003", "10000004", "20000001"]
    assert requests[0].turns[0].text == "Is there a dog in the image?" + S
    assert requests[0].image == str(root / "images" / "a.jpg")
    assert requests[0].candidates == ("Yes", "No")
    assert requests[0].decoding.max_new_tokens == 128
    assert pope(root, likelihood=False).requests()[0].candidates == ()
    bare = pope(root, prompt="official").requests()
    assert bare[0].turns[0].text == "Is there a dog in the image?"


def test_without_llavas_file_the_same_questions_come_from_popes_own(tmp_path: Path) -> None:
    with_file, without = write_pope(tmp_path / "a"), write_pope(tmp_path / "b", llava=False)
    asked = [(r.id, r.turns) for r in pope(with_file).requests()]
    assert asked == [(r.id, r.turns) for r in pope(without).requests()]


def test_scores_of_a_split_follow_from_its_confusion_table(root: Path) -> None:
    # labels of each split: yes no yes no. random: tp fp fn tn; popular: tp tn tp tn; adversarial: tp fp tp fp
    texts = ["Yes", "Yes", "No", "No", "Yes", "No", "Yes", "No", "Yes", "yes", "Yes", "It is"]
    metrics = pope(root).metrics(sum_counts(score_all(pope(root), texts)))
    assert metrics["random_accuracy"] == metrics["random_f1"] == 50
    assert metrics["popular_precision"] == metrics["popular_recall"] == metrics["popular_f1"] == 100
    assert metrics["adversarial_precision"] == metrics["adversarial_accuracy"] == 50
    assert metrics["adversarial_recall"] == metrics["adversarial_yes_ratio"] == 100
    assert metrics["adversarial_f1"] == pytest.approx(200 / 3)
    assert metrics["f1"] == pytest.approx((50 + 100 + 200 / 3) / 3)
    assert metrics["accuracy"] == pytest.approx(200 / 3)


def test_metrics_of_arrays_of_counts_are_elementwise_with_nan_where_undefined() -> None:
    counts = {"random/tp": np.array([3.0, 0.0]), "random/fn": np.array([1.0, 4.0]), "random/fp": np.zeros(2)}
    metrics = Pope("nowhere", splits=["random"]).metrics(counts)
    np.testing.assert_allclose(metrics["random_f1"], [100 * 6 / 7, np.nan])
    np.testing.assert_allclose(metrics["random_recall"], [75, 0])
    assert math.isnan(Pope("nowhere", splits=["random"]).metrics({})["f1"])


def test_the_likelihood_of_yes_over_no_is_ranked_by_split(root: Path) -> None:
    request = pope(root).requests()[1]
    score = pope(root).score(request, Reply("Yes", candidate_logps=(-0.25, -1.0)))
    assert score.ranks == {"random": (0, 0.75)}
    assert score.cluster == "a.jpg"
    assert {m.name for m in pope(root).describe()} >= {"random_auc", "adversarial_auc"}


def test_files_of_two_releases_are_refused_with_both_places(root: Path) -> None:
    labels = root / "coco" / "coco_pope_random.json"
    rows = labels.read_text().splitlines()
    labels.write_text("\n".join([rows[1], rows[0], *rows[2:]]) + "\n")
    with pytest.raises(
        UserError, match=r"llava_pope_test.jsonl: line 1: .*coco_pope_random.json line 1.*e3e39262"
    ):
        pope(root).requests()
    labels.write_text("\n".join(rows[:3]) + "\n")
    with pytest.raises(UserError, match=r"4 random questions, but .*coco_pope_random.json has 3"):
        pope(root).requests()


def test_the_old_releases_spelling_is_no_other_question(root: Path) -> None:
    path = root / "llava_pope_test.jsonl"
    path.write_text(path.read_text().replace("dog in the image", "dog in the imange"))
    assert pope(root).requests()[0].turns[0].text.startswith("Is there a dog in the imange?")


def test_a_missing_image_and_one_outside_of_the_folder_are_refused(root: Path) -> None:
    (root / "images" / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"b.jpg: record 10000003: image not found \(1 missing\)"):
        pope(root).requests()
    path = root / "coco" / "coco_pope_random.json"
    path.write_text(path.read_text().replace("a.jpg", "../a.jpg"))
    (root / "llava_pope_test.jsonl").unlink()
    with pytest.raises(UserError, match=r"10000001: image `../a.jpg` lies outside"):
        pope(root).requests()


TEXTS = ["Yes", "Yes", "No", "No", "Yes", "No", "Yes", "No", "Yes", "yes", "Yes", "It is"]
IDS = [FIRST[s] + k for s in ("random", "popular", "adversarial") for k in range(4)]


def test_a_whole_file_of_answers_gets_the_scores_of_the_answers(root: Path) -> None:
    summary, scores = summarise(pope(root), answers(zip(IDS, TEXTS, strict=True)))
    assert summary["complete"] is True
    assert (summary["answered"], summary["expected"], len(scores)) == (12, 12, 12)
    assert summary["metrics"]["f1"] == pytest.approx((50 + 100 + 200 / 3) / 3)
    assert summary["warnings"] == []


def test_a_file_cut_at_its_end_is_scored_and_called_incomplete(root: Path) -> None:
    lines = answers(zip(IDS[:-1], TEXTS[:-1], strict=True))
    summary, _ = summarise(pope(root), lines)
    # the adversarial split keeps yes no yes: tp fp tp, so precision 2/3, recall 1
    assert summary["metrics"]["adversarial_f1"] == pytest.approx(80)
    assert summary["complete"] is False
    assert summary["missing"] == {"count": 1, "ids": [4]}
    assert "11 of 12 questions answered" in summary["warnings"][0]
    with pytest.raises(UserError, match=r"11 of 12 .*1 missing \(4\)"):
        summarise(pope(root), lines, strict=True)


def test_a_missing_line_shifts_the_labels_as_officially_and_the_scores_by_id_stand_beside(root: Path) -> None:
    keep = [k for k in range(12) if k != 5]
    summary, _ = summarise(pope(root), answers((IDS[k], TEXTS[k]) for k in keep))
    # popular answers Yes Yes No meet labels yes no yes: tp fp fn; by id they are tp tp tn
    assert summary["metrics"]["popular_f1"] == pytest.approx(50)
    assert summary["complete"] is False
    by_id = (50 + 100 + 200 / 3) / 3
    assert f"joined by id the mean F1 is {by_id:.2f}" in " ".join(summary["warnings"])


def test_a_repeated_answer_shifts_the_rest_and_counts_in_the_yes_ratio_only(root: Path) -> None:
    order = [0, 0, *range(1, 12)]
    summary, _ = summarise(pope(root), answers((IDS[k], TEXTS[k]) for k in order))
    # random answers Yes Yes Yes No (No) meet labels yes no yes no: tp fp tp tn, and 3 of 5 answers are yes
    assert summary["metrics"]["random_f1"] == pytest.approx(80)
    assert summary["metrics"]["random_yes_ratio"] == pytest.approx(60)
    assert summary["duplicate"] == {"count": 1, "ids": [10000001]}


def test_answers_in_another_order_warn_with_the_score_by_id(root: Path) -> None:
    order = [1, 0, *range(2, 12)]
    texts = ["Yes", "No", "Yes", "Yes", *TEXTS[4:]]
    summary, _ = summarise(pope(root), answers((IDS[k], texts[k]) for k in order))
    # random by position: No Yes Yes Yes on yes no yes no: tp 1, fn 1, fp 2
    # by id: Yes No Yes Yes: tp 2, tn 1, fp 1
    assert summary["metrics"]["random_f1"] == pytest.approx(40)
    by_id = (80 + 100 + 200 / 3) / 3
    assert f"joined by id the mean F1 is {by_id:.2f}" in " ".join(summary["warnings"])


def prompts(root: Path) -> dict[int, str]:
    rows = map(json.loads, (root / "llava_pope_test.jsonl").read_text().splitlines())
    return {row["question_id"]: row["text"] for row in rows}


def test_answers_to_another_release_are_refused_by_their_prompts(root: Path) -> None:
    asked = prompts(root)
    (root / "llava_pope_test.jsonl").unlink()
    whole = answers(zip(IDS, TEXTS, strict=True), [asked[i] for i in IDS])
    assert summarise(pope(root), whole)[0]["complete"] is True
    typo = [asked[i].replace("image?", "imange?") for i in IDS]
    assert summarise(pope(root), answers(zip(IDS, TEXTS, strict=True), typo))[0]["complete"] is True
    path = root / "coco" / "coco_pope_random.json"
    path.write_text("\n".join(path.read_text().splitlines()[::-1]) + "\n")
    with pytest.raises(UserError, match=r"line 1: its prompt is another question .*4 such lines.*e3e39262"):
        summarise(pope(root), whole)


def test_prompts_that_the_question_file_does_not_have_are_warned_of_as_the_official_program_goes_on(
    root: Path,
) -> None:
    other = ["Is there a boat in the image?" + S] * len(IDS)
    summary, _ = summarise(pope(root), answers(zip(IDS, TEXTS, strict=True), other))
    assert summary["metrics"]["f1"] == pytest.approx((50 + 100 + 200 / 3) / 3)
    assert "its prompt is another question" in " ".join(summary["warnings"])
    assert summary["complete"] is False


def test_answers_to_splits_that_are_not_asked_for_are_passed_over(root: Path) -> None:
    lines = answers(zip(IDS, TEXTS, strict=True))
    summary, _ = summarise(pope(root, splits=["popular"]), lines)
    assert (summary["metrics"]["f1"], summary["complete"], summary["expected"]) == (100, True, 4)


def test_where_the_official_program_stops_no_score_is_written(root: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: question_id 5 is not in .*llava_pope_test.jsonl"):
        summarise(pope(root), answers([(5, "Yes")]))
    with pytest.raises(UserError, match="no answer to the popular split"):
        summarise(pope(root), answers(zip(IDS[:4], TEXTS[:4], strict=True)))
    with pytest.raises(UserError, match="f1 divides by zero"):
        summarise(pope(root), answers((i, "No") for i in IDS))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b'\xef\xbb\xbf{"question_id": 1, "text": "No"}\n', "line 1: begins with a byte order mark"),
        (b'{"question_id": 1, "text": "No"}\n{"question_id": 2, "te\n', "line 2: not JSON"),
        (
            b'{"question_id": 1, "text": "No"}\n\n{"question_id": 2, "text": "No"}\n',
            "line 2: the line is empty",
        ),
        (b'{"question_id": 1, "text": "caf\xe9"}\n', "line 1: not UTF-8"),
        (b'{"question_id": 1, "text": NaN}\n', "line 1: field `text` is NaN, not str"),
        (b'{"question_id": 1}\n', "line 1: has no field `text`"),
        (b'{"question_id": null, "text": "No"}\n', "line 1: field `question_id` is null"),
        (b"5\n", "line 1: not a JSON object"),
    ],
)
def test_a_malformed_answer_file_is_one_error_with_the_line(
    tmp_path: Path, data: bytes, message: str
) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        read_answers(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_windows_line_ends_are_read_like_others(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"question_id": 1, "text": "No"}\r\n{"question_id": 2, "text": "Yes"}')
    assert [(line.id, line.text) for line in read_answers(path)] == [(1, "No"), (2, "Yes")]
