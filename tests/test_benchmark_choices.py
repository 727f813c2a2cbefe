"""MME, ScienceQA, SEED-Bench and MMBench."""

from __future__ import annotations

import base64
import csv
import io
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmark_files import L, S, answers, fixture_lines, score_all, touch, write_json
from nsft_exp.benchmark import mme, scienceqa
from nsft_exp.benchmark.answers import sum_counts, summarise
from nsft_exp.benchmark.mmbench import MmBench, read_letter
from nsft_exp.benchmark.mme import Mme
from nsft_exp.benchmark.scienceqa import ScienceQa
from nsft_exp.benchmark.seedbench import SeedBench
from nsft_exp.records import ItemScore, UserError


def metrics_of(benchmark: Any, scores: list[ItemScore]) -> dict[str, Any]:
    scores = benchmark.combine(scores) if hasattr(benchmark, "combine") else scores
    return dict(benchmark.metrics(sum_counts(scores)))


# --- MME


@pytest.fixture
def mme_root(tmp_path: Path) -> Path:
    below = tmp_path / "MME_Benchmark_release_version"
    for stem, noun in (("0001", "dog"), ("0002", "cat")):
        folder = below / "existence"
        touch(folder, [f"{stem}.jpg"])
        sentence = " Please answer yes or no."  # one blank before it, or two
        pair = f"Is there a {noun}?{sentence}\tYes\nIs there a cow? {sentence}\tNo\n"
        (folder / f"{stem}.txt").write_text(pair)
    touch(below / "artwork", ["images/7.png", "questions_answers_YN/7.txt"])
    (below / "artwork/questions_answers_YN/7.txt").write_bytes(
        b"Old? Please answer yes or no.\tYes\r\nNew? Please answer yes or no.\tNo"
    )
    return tmp_path


def small_mme(root: Path) -> Mme:
    return Mme(str(root), categories=["existence", "artwork"])


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("Yes", "yes"),
        ("  yes", "other"),  # "  ye"
        (" yes", "yes"),
        ("Not really", "no"),
        ("snow", "no"),
        ("know", "no"),
        ("now it is", "no"),
        ("Yes\n", "yes"),
        ("Yeah", "other"),
        ("I know", "other"),
        ("noyes", "no"),
        ("no. yes", "no"),
        ("It is yes", "other"),
        ("", "other"),
    ],
)
def test_mme_reads_the_first_four_characters(answer: str, read: str) -> None:
    assert mme.read_yes_no(answer) == read


def test_mme_answers_are_read_as_the_shared_cases_say() -> None:
    cases = fixture_lines("mme_parse_cases.jsonl")
    assert [mme.read_yes_no(c["answer"]) for c in cases] == [c["parsed"] for c in cases]


def test_mme_asks_without_its_sentence_and_finds_images_in_both_layouts(mme_root: Path) -> None:
    requests = small_mme(mme_root).requests()
    assert [r.id for r in requests] == [
        "existence/0001#1",
        "existence/0001#2",
        "existence/0002#1",
        "existence/0002#2",
        "artwork/7#1",
        "artwork/7#2",
    ]
    assert requests[1].turns[0].text == "Is there a cow?" + S
    assert str(requests[4].image).endswith("artwork/images/7.png")


def test_mme_adds_accuracy_and_accuracy_of_pairs(mme_root: Path) -> None:
    benchmark = small_mme(mme_root)
    scores = score_all(benchmark, ["Yes", "No", "Yes", "maybe", "No", "No"])
    metrics = metrics_of(benchmark, scores)
    assert (metrics["existence_acc"], metrics["existence_acc_plus"], metrics["existence"]) == (75, 50, 125)
    assert (metrics["artwork_acc"], metrics["artwork_acc_plus"], metrics["artwork"]) == (50, 0, 50)
    assert metrics["perception"] == 175
    assert "cognition" not in metrics
    assert scores[3].unparseable
    assert len({s.cluster for s in scores}) == 3


def test_mme_lines_are_found_by_category_stem_and_question(mme_root: Path) -> None:
    ids = ["existence/0001.jpg"] * 2 + ["existence/0002.jpg"] * 2 + ["artwork/images/7.png"] * 2
    prompts = ["Is there a dog?" + S, "Is there a cow?" + S, "Is there a cat?", "Is there a cow?"]
    prompts += ["Old? Please answer yes or no.", "New?" + S]
    lines = answers(zip(ids, ["Yes", "No", "Yes", "may\tbe", "No", "No"], strict=True), prompts)
    summary, _ = summarise(small_mme(mme_root), lines)
    assert summary["metrics"]["perception"] == 175
    assert summary["complete"] is True
    shifted, _ = summarise(small_mme(mme_root), [lines[0], lines[3], lines[1], lines[2], *lines[4:]])
    assert shifted["metrics"]["existence_acc_plus"] == 50  # No + Yes of two images are a right pair
    assert "pairs of consecutive lines are of two images" in " ".join(shifted["warnings"])
    assert shifted["complete"] is False


def test_mme_passes_over_categories_that_are_not_asked_for_and_wants_its_blanks(mme_root: Path) -> None:
    lines = answers(
        [("artwork/images/7.png", "Yes"), ("existence/0001.jpg", "Yes"), ("existence/0001.jpg", "No")],
        ["who?", "Is there a dog?" + S, "Is there a cow?" + S],
    )
    one = Mme(str(mme_root), categories=["existence"])
    assert summarise(one, lines)[0]["metrics"]["existence"] == 200
    # with the sentence in the prompt the official program does not try a second blank before it
    lines[2] = answers([("existence/0001.jpg", "No")], ["Is there a cow? Please answer yes or no."])[0]
    with pytest.raises(UserError, match="has no question"):
        summarise(one, lines)


def test_mme_stops_where_the_official_program_does(mme_root: Path) -> None:
    prompt = "Is there a dog?" + S
    with pytest.raises(UserError, match="an odd number of answers in existence"):
        summarise(small_mme(mme_root), answers([("existence/0001.jpg", "Yes")], [prompt]))
    with pytest.raises(UserError, match="no answer in artwork"):
        summarise(small_mme(mme_root), answers([("existence/0001.jpg", "Yes")] * 2, [prompt] * 2))
    with pytest.raises(UserError, match=r"line 1: 'existence/0009.jpg' has no question"):
        summarise(small_mme(mme_root), answers([("existence/0009.jpg", "Yes")], [prompt]))
    with pytest.raises(UserError, match=r"no question files of MME's category count"):
        Mme(str(mme_root), categories=["count"]).requests()
    path = mme_root / "MME_Benchmark_release_version/existence/0001.txt"
    path.write_text("Is there a dog? Please answer yes or no. Yes\n")
    with pytest.raises(UserError, match=r"0001.txt: line 1: not `question<TAB>Yes\|No`"):
        small_mme(mme_root).requests()


# --- ScienceQA


@pytest.fixture
def science_root(tmp_path: Path) -> Path:
    problems = {
        "7": {"question": "Which?", "choices": ["ant", "cow"], "answer": 1, "hint": "Size.", "image": None},
        "8": {"question": "Who?", "choices": ["x", "y", "z"], "answer": 0, "hint": "", "image": "image.png"},
        "9": {"question": "Why?", "choices": ["p", "q"], "answer": 1, "hint": "", "image": "image.png"},
    }
    write_json(tmp_path / "problems.json", problems)
    write_json(tmp_path / "pid_splits.json", {"test": ["8", "7", "9"], "train": []})
    touch(tmp_path / "images", ["8/image.png", "9/image.png"])
    return tmp_path


def science(root: Path, **options: Any) -> ScienceQa:
    return ScienceQa(str(root), str(root / "images"), **options)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. cow", "B"),
        ("B.", "FAILED"),
        ("b", "FAILED"),
        (" B", "FAILED"),
        ("(B)", "FAILED"),
        ("F", "FAILED"),
        ("The answer is B.", "B"),
        ("So. The answer is B!", "B"),
        ("The answer is B", "FAILED"),  # one more character must follow
        ("The answer is A. The answer is A.", "FAILED"),
        ("The answer is Q.", "Q"),
        ("", "FAILED"),
    ],
)
def test_science_letters_are_read_without_any_mercy(text: str, letter: str) -> None:
    assert scienceqa.read_letter(text) == letter


def test_science_questions_have_context_choices_and_no_image_mark(science_root: Path) -> None:
    requests = science(science_root, images_only=False).requests()
    assert [r.id for r in requests] == ["8", "7", "9"]
    assert requests[1].turns[0].text == "Context: Size.\nWhich?\nA. ant\nB. cow" + L
    assert requests[1].image is None
    assert requests[0].turns[0].text == "Who?\nA. x\nB. y\nC. z" + L
    assert requests[0].image == str(science_root / "images" / "8" / "image.png")
    assert [r.id for r in science(science_root).requests()] == ["8", "9"]


def test_science_img_is_over_problems_with_an_image(science_root: Path) -> None:
    every = science(science_root, images_only=False)
    metrics = metrics_of(every, score_all(every, ["A", "B", "A. p"]))
    assert (metrics["img"], metrics["accuracy"]) == (50, pytest.approx(200 / 3))
    pictured = science(science_root)
    metrics = metrics_of(pictured, score_all(pictured, ["A", "D"]))
    assert metrics["img"] == 50
    assert np.isnan(metrics["accuracy"])


def test_an_unanswered_image_problem_leaves_img_and_is_wrong_over_all(science_root: Path) -> None:
    lines = answers([("8", "B"), ("7", "B"), ("8", "A"), ("x", "A")], ["<image>\nq", "q", "<image>\nq", "q"])
    summary, _ = summarise(science(science_root), lines)
    assert summary["metrics"] == {"img": 100, "accuracy": pytest.approx(200 / 3)}
    assert summary["complete"] is False
    assert [summary[k]["ids"] for k in ("missing", "duplicate", "unknown")] == [["9"], ["8"], ["x"]]
    with pytest.raises(UserError, match="img divides by zero"):
        summarise(science(science_root), answers([("8", "A"), ("7", "B"), ("9", "B")]))


# --- SEED-Bench


@pytest.fixture
def seed_root(tmp_path: Path) -> Path:
    choices = {"choice_a": "p", "choice_b": "q", "choice_c": "r", "choice_d": "s"}
    rows = [
        {
            "question_id": q,
            "question_type_id": t,
            "data_type": kind,
            "data_id": d,
            "question": "W?",
            "answer": a,
        }
        for q, t, kind, d, a in (
            ("101", 1, "image", "10_1", "A"),
            ("102", 2, "image", "10_2", "B"),
            ("v9", 10, "video", "x.mp4", "C"),
        )
    ]
    types = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    write_json(
        tmp_path / "SEED-Bench.json", {"questions": [r | choices for r in rows], "question_type": types}
    )
    touch(tmp_path / "images", ["10_1", "10_2"])
    return tmp_path


def test_seed_wants_the_letter_and_nothing_else(seed_root: Path) -> None:
    benchmark = SeedBench(str(seed_root), str(seed_root / "images"))
    requests = benchmark.requests()
    assert [r.id for r in requests] == ["101", "102"]
    assert requests[0].turns[0].text == "W?\nA. p\nB. q\nC. r\nD. s" + L
    metrics = metrics_of(benchmark, score_all(benchmark, ["A", "B."]))
    assert (metrics["image"], metrics["Scene Understanding"], metrics["Instance Identity"]) == (50, 100, 0)
    assert np.isnan(metrics["video"])


def test_seed_ids_are_numbers_where_the_files_are_and_a_missing_answer_is_wrong(seed_root: Path) -> None:
    benchmark = SeedBench(str(seed_root))
    summary, _ = summarise(benchmark, answers([(101, "A"), ("102", "B"), ("v9", "A"), ("v9", "C")]))
    assert (summary["metrics"]["image"], summary["metrics"]["video"]) == (50, 100)
    assert summary["metrics"]["total"] == pytest.approx(200 / 3)
    assert [summary[k]["ids"] for k in ("missing", "duplicate", "unknown")] == [[102], ["v9"], ["102"]]


# --- MMBench

COLUMNS = (
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "l2-category",
    "split",
)
PICTURE, OTHER = (base64.b64encode(b"\xff\xd8" + name).decode() for name in (b"picture", b"other"))


def write_mmbench(root: Path) -> Path:
    rows = [
        (1, "Q1?", "H", "cat", "dog", "", "None", "A", "c1", PICTURE, "l1", "dev"),
        (2, "Q2?", "nan", "up", "down", "left", "", "C", "c2", OTHER, "l1", "dev"),
        (1000001, "Q1?", "H", "dog", "cat", "", "", "B", "c1", "1", "l1", "dev"),
        (1000002, "Q2?", "", "left", "up", "down", "", "A", "c2", PICTURE, "l1", "dev"),
        (2000002, "Q2?", "", "down", "left", "up", "", "B", "c2", PICTURE, "l1", "dev"),
    ]
    with open(root / "mmbench_dev.tsv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return root


def mmbench(root: Path, **options: Any) -> MmBench:
    return MmBench(str(root), str(root / "images"), **options)


OPTIONS = {"A": "cat", "B": "dog", "C": "red car"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("(B)", "B"),
        ("B. dog", "B"),
        ("The answer is C", "C"),
        ("A or B", ""),
        ("a", ""),
        ("It is a red car.", "C"),
        ("A dog", "A"),  # the article is taken for a letter
        ("a cat and a dog", ""),
        ("Z", "Z"),
        ("Cannot determine the answer, A", "Z"),
        ("D", ""),
        ("", ""),
        ("Both A and B show a red car", "C"),
    ],
)
def test_mmbench_letters_are_read_by_vlmevalkits_rules(text: str, letter: str) -> None:
    assert read_letter(text, OPTIONS) == letter


def test_since_2025_08_a_letter_stands_near_the_end_and_option_texts_in_short_answers() -> None:
    assert read_letter("A is what I would say here", OPTIONS, "2025-08") == ""
    assert read_letter("I would say that it is A", OPTIONS, "2025-08") == "A"
    assert read_letter("It is a red car.", OPTIONS, "2025-08") == "C"
    assert read_letter("It is a red car, as far as I can see", OPTIONS, "2025-08") == ""  # over 2 x 13


def test_mmbench_asks_every_rotation_and_writes_each_image_once(tmp_path: Path) -> None:
    benchmark = mmbench(write_mmbench(tmp_path))
    requests = benchmark.requests()
    assert [r.id for r in requests] == ["1", "2", "1000001", "1000002", "2000002"]
    assert requests[0].turns[0].text == "H\nQ1?\nA. cat\nB. dog" + L
    assert requests[1].turns[0].text == "Q2?\nA. up\nB. down\nC. left" + L
    assert requests[2].image == requests[0].image == str(tmp_path / "images" / "1.jpg")
    assert Path(requests[0].image).read_bytes() == b"\xff\xd8picture"
    assert "mmbench_dev.tsv, 2 questions, 5 rows" in benchmark.protocol
    chinese = mmbench(tmp_path, language="cn").requests()
    assert chinese[0].turns[0].text.endswith("\n请直接回答选项字母。")


def test_a_question_is_right_only_if_every_rotation_is(tmp_path: Path) -> None:
    benchmark = mmbench(write_mmbench(tmp_path))
    rows = score_all(benchmark, ["A", "C", "B", "A", "A"])
    scores = benchmark.combine(rows)
    metrics = benchmark.metrics(sum_counts(scores))
    assert (metrics["circular"], metrics["rows"], metrics["c1"], metrics["c2"], metrics["l1"]) == (
        50,
        80,
        100,
        0,
        50,
    )
    assert len({s.cluster for s in scores}) == 2
    partial = benchmark.metrics(sum_counts(benchmark.combine(rows[:3])))
    assert partial["circular"] == 100  # question 2 lacks rows and does not count


def test_a_row_without_an_answer_is_read_as_nan(tmp_path: Path) -> None:
    benchmark = mmbench(write_mmbench(tmp_path))
    lines = answers([(1, "B"), (1, "A"), (1000001, "cat"), (2, "C"), (1000002, "NA"), (5, "A")])
    summary, _ = summarise(benchmark, lines)
    assert summary["metrics"]["circular"] == 50
    assert (summary["answered"], summary["missing"]["ids"], summary["unknown"]["ids"]) == (4, [2000002], [5])
    assert summary["unparseable"] == 2


def test_one_tsv_with_answers_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one .tsv file of MMBench is needed, found none"):
        mmbench(tmp_path).requests()
    write_mmbench(tmp_path)
    path = tmp_path / "mmbench_dev.tsv"
    text = path.read_text()
    path.write_text(text.replace("\tA\tc1", "\t\tc1", 1))
    with pytest.raises(UserError, match=r"mmbench_dev.tsv: line 2: answer `` is not the letter of an option"):
        mmbench(tmp_path).requests()
    path.write_text(text.replace("question", "text", 1))
    with pytest.raises(UserError, match="line 1: has no column question"):
        mmbench(tmp_path).requests()
    path.write_text(text[: text.rindex("dev") - 20])
    with pytest.raises(UserError, match="line 6: has more or fewer cells than the header"):
        mmbench(tmp_path).requests()


def test_a_right_option_that_reads_as_no_value_cannot_be_chosen(tmp_path: Path) -> None:
    path = write_mmbench(tmp_path) / "mmbench_dev.tsv"
    path.write_text(path.read_text().replace("\tNone\tA\tc1", "\tNone\tD\tc1"))
    summary, _ = summarise(mmbench(tmp_path), answers([(1, "D"), (2, "C"), (1000001, "B")]))
    # pandas reads the cell "None" as no value, so that D is no option of the first pass
    assert (summary["metrics"]["rows"], summary["metrics"]["c1"]) == (40, 0)


SPREADSHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def read_sheet(data: bytes) -> list[dict[str, str]]:
    """The cells of an .xlsx file's sheet, row by row, by column letter."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    rows = sheet.iter(f"{SPREADSHEET}row")
    return [{str(c.get("r"))[0]: "".join(c.itertext()) for c in row} for row in rows]


def test_a_test_split_gives_llavas_upload_file_and_no_scores(tmp_path: Path) -> None:
    path = write_mmbench(tmp_path) / "mmbench_dev.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    without = [[cell for k, cell in enumerate(row) if k != COLUMNS.index("answer")] for row in rows]
    (tmp_path / "mmbench_test.tsv").write_text("".join("\t".join(row) + "\n" for row in without))
    path.unlink()
    benchmark = mmbench(tmp_path)
    said = {
        r.id: text
        for r, text in zip(benchmark.requests(), ["A", "", "<B> & C", "nan", " C\x0b"], strict=True)
    }
    assert score_all(benchmark, list(said.values())) == [None] * 5
    with pytest.raises(UserError, match="has no answers; MMBench's server scores it"):
        summarise(benchmark, answers([(1, "A")]))
    (name,) = benchmark.submission(said)
    sheet = read_sheet(benchmark.submission(said)[name])
    assert name == "mmbench_test.xlsx"
    assert list(sheet[0].values()) == ["index", "question", "A", "B", "C", "D", "prediction", "split"]
    assert sheet[1] == {"A": "1", "B": "Q1?", "C": "cat", "D": "dog", "F": "None", "G": "A", "H": "dev"}
    assert [row["G"] for row in sheet[1:]] == ["A", "", "<B> & C", "nan", " C_x000B_"]
    assert benchmark.submission({"1": "A"}) == {}


def test_the_upload_file_of_a_split_with_answers_has_them_after_the_prediction(tmp_path: Path) -> None:
    benchmark = mmbench(write_mmbench(tmp_path))
    (data,) = benchmark.submission(dict.fromkeys(benchmark.items(), "A")).values()
    assert list(read_sheet(data)[0].values())[6:] == ["prediction", "answer", "split"]
    reader = pytest.importorskip("openpyxl")
    book = reader.load_workbook(io.BytesIO(data))
    assert [c.value for c in book.active[3]] == [2, "Q2?", "up", "down", "left", None, "A", "C", "dev"]
