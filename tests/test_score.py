"""`nsft score`: official files and answers made elsewhere in, numbers out."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmark_files import L, S, write_json, write_lines
from nsft_exp.records import Reply, UserError
from nsft_exp.score import score
from nsft_exp.scoring import score_answers
from nsft_exp.store import StageFolder
from test_benchmark_chair import TABLE, write_coco
from test_benchmark_choices import mme_root, science_root, seed_root, write_mmbench  # noqa: F401
from test_benchmark_pope import IDS, TEXTS, write_pope
from test_benchmark_short_answers import gqa, gqa_root, text_root, vqa_root  # noqa: F401

POPE_F1 = (50 + 100 + 200 / 3) / 3  # of TEXTS, derived in test_benchmark_pope


def line(key: Any, text: str, prompt: str = "") -> dict[str, Any]:
    """LLaVA's answer line."""
    return {
        "question_id": key,
        "prompt": prompt,
        "text": text,
        "answer_id": "x",
        "model_id": "m",
        "metadata": {},
    }


@pytest.fixture
def pope_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with POPE's files in `pope` and answers to them in `answers.jsonl`."""
    write_pope(tmp_path / "pope")
    write_lines(tmp_path / "answers.jsonl", map(line, IDS, TEXTS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


POPE = ["benchmark=pope", "benchmark.root=pope", "answers=answers.jsonl", "out=new/folder/scores.json"]


def scores_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "new/folder/scores.json").read_text()))


def test_a_whole_file_gives_every_metric_and_a_record_an_item(
    pope_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(POPE) == 0
    out = scores_of(pope_folder)
    assert out["metrics"]["f1"] == pytest.approx(POPE_F1)
    assert all(isinstance(value, float) for value in out["metrics"].values())
    assert (out["complete"], out["answered"], out["expected"], out["warnings"]) == (True, 12, 12, [])
    assert out["counts"]["random/tp"] == 1
    assert "eval_pope" in out["protocol"]
    records = [json.loads(x) for x in (pope_folder / "new/folder" / out["items"]).read_text().splitlines()]
    assert [(r["id"], r["answer"]) for r in records] == [(str(i), t) for i, t in zip(IDS, TEXTS, strict=True)]
    assert records[0]["score"]["parsed"] == "yes"
    assert "POPE F1" in capsys.readouterr().out


def test_it_runs_without_torch_in_under_two_seconds(pope_folder: Path) -> None:
    heavy = "sorted({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    code = "import sys\nfrom nsft_exp.__main__ import main\ntry: main(sys.argv[1:])\n"
    code += f"except SystemExit as end: print(end.code, {heavy})"
    started = time.process_time()
    done = subprocess.run([sys.executable, "-c", code, "score", *POPE], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert time.process_time() - started < 2


def test_an_incomplete_file_is_scored_with_its_ids_and_a_warning(
    pope_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(pope_folder / "answers.jsonl", map(line, [*IDS[:-1], IDS[0]], [*TEXTS[:-1], "Yes"]))
    assert score(POPE) == 0
    out = scores_of(pope_folder)
    assert (out["complete"], out["answered"], out["expected"]) == (False, 11, 12)
    assert out["missing"] == {"count": 1, "ids": [4]}
    assert out["duplicate"] == {"count": 1, "ids": [10000001]}
    assert "nsft: warning: pope: 11 of 12 questions answered, 1 missing (4)" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"11 of 12 .*strict=true"):
        score([*POPE, "strict=true"])
    assert not list((pope_folder / "new/folder").iterdir()), "the earlier numbers would be taken for these"


def test_where_the_official_program_stops_no_number_is_written(pope_folder: Path) -> None:
    score(POPE)
    write_lines(pope_folder / "answers.jsonl", (line(i, "No") for i in IDS))
    with pytest.raises(
        UserError, match="f1 divides by zero on these answers, where the official program stops"
    ):
        score(POPE)
    assert not list((pope_folder / "new/folder").iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["answer=a.jsonl"], "^answer: there is no such key; did you mean answers"),
        (
            ["benchmark.splitz=[random]"],
            "^benchmark.splitz: there is no such key; did you mean benchmark.splits",
        ),
        (["benchmark.synonyms=x"], "^benchmark.synonyms: there is no such key"),
        (["benchmark=popee"], "^benchmark=popee: there is no such option; did you mean pope"),
        (["benchmark=toy"], "^benchmark=toy: is a suite; an answer file belongs to one benchmark .pope, "),
        (["strict=maybe"], "^strict=maybe: is neither true nor false"),
        (["answers=none.jsonl"], "^none.jsonl: no such file; give answers=FILE"),
        (["out=answers.jsonl"], "^out=answers.jsonl: would overwrite the answers"),
        (["out=pope"], "^out=pope: is a folder"),
        (["benchmark.root=nowhere"], "^nowhere/coco/coco_pope_random.json: no such file"),
        (["benchmark.prompt=x"], "^benchmark.prompt: `x` is not known to POPE"),
    ],
)
def test_words_that_cannot_be_are_refused_in_one_line(
    pope_folder: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        score([*POPE, *words])
    assert "\n" not in str(error.value)
    assert (pope_folder / "answers.jsonl").stat().st_size > 0


def test_missing_words_are_asked_for(pope_folder: Path) -> None:
    with pytest.raises(UserError, match=r"^benchmark=... is missing; it can be: .*pope"):
        score(POPE[1:])
    with pytest.raises(UserError, match=r"^benchmark.root has no value"):
        score([POPE[0], *POPE[2:]])
    with pytest.raises(UserError, match=r"^answers=FILE is missing"):
        score(POPE[:2])


def test_an_existing_place_is_taken_literally_whatever_its_name(pope_folder: Path) -> None:
    strange = pope_folder / "a b,(c)=it's"
    (pope_folder / "pope").rename(strange)
    (pope_folder / "answers.jsonl").rename(strange / "d e=f.jsonl")
    assert score([POPE[0], f"benchmark.root={strange}", f"answers={strange}/d e=f.jsonl", POPE[3]]) == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xef\xbb\xbf{}\n", "answers.jsonl: line 1: begins with a byte order mark"),
        (b'{"question_id": 1, "text": "caf\xe9"}\n', "answers.jsonl: line 1: not UTF-8"),
        (b'{"question_id": 1, "text": NaN}\n', "answers.jsonl: line 1: field `text` is NaN, not str"),
        (b'{"question_id": 1, "text": "a"}\n\n', "answers.jsonl: line 2: the line is empty"),
        (b'{"question_id": ' + b"9" * 5000 + b', "text": "a"}\n', "answers.jsonl: line 1: not JSON"),
        (b"[" * 100_000, "answers.jsonl: not JSON"),
        (b"[]", "answers.jsonl: no answers"),
        (b"{}\n", "answers.jsonl: line 1: has no field `text`"),
        (b'{"id": 1, "text": "a"}\n', "answers.jsonl: line 1: has no field `question_id`"),
    ],
)
def test_a_malformed_answer_file_gives_one_line_and_no_number(
    pope_folder: Path, data: bytes, message: str
) -> None:
    (pope_folder / "answers.jsonl").write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        score(POPE)
    assert "\n" not in str(error.value)
    assert not (pope_folder / "new").exists()


def test_line_ends_of_other_systems_and_lone_surrogates_are_read(pope_folder: Path) -> None:
    rows = [*map(line, IDS, TEXTS)]
    rows[-1]["text"] += "\ud83d"
    text = "\r\n".join(json.dumps(row) for row in rows)
    (pope_folder / "answers.jsonl").write_bytes(text.encode())
    assert score(POPE) == 0
    assert scores_of(pope_folder)["metrics"]["f1"] == pytest.approx(POPE_F1)


# --- every benchmark that a rule scores, in its official layout


def pope_case(tmp_path: Path) -> tuple[Path, list[dict[str, Any]], list[str]]:
    return write_pope(tmp_path) / "coco", [*map(line, IDS, TEXTS)], []


def chair_case(tmp_path: Path) -> tuple[Path, list[dict[str, Any]], list[str]]:
    for split, image in (("train2014", 7), ("val2014", 3)):
        write_coco(tmp_path, split, {image: (["dog"], ["A man."])})
    (tmp_path / "table.txt").write_text(TABLE)
    captions = [{"image_id": 3, "caption": "A dog and a cup."}]
    return tmp_path / "annotations", captions, [f"benchmark.synonyms={tmp_path}/table.txt"]


def mmbench_case(tmp_path: Path) -> tuple[Path, list[dict[str, Any]], list[str]]:
    letters = {1: "A", 1000001: "B", 2: "C", 1000002: "A", 2000002: "D"}
    return write_mmbench(tmp_path), [line(i, letter, "q") for i, letter in letters.items()], []


def science_case(science_root: Path) -> tuple[Path, list[dict[str, Any]], list[str]]:  # noqa: F811
    lines = [line("7", "B", "q"), line("8", "A", "<image>\nq"), line("9", "A", "<image>\nq")]
    return science_root, lines, []


def seed_case(seed_root: Path) -> tuple[Path, list[dict[str, Any]], list[str]]:  # noqa: F811
    return seed_root, [line(101, "A", "q" + L), line(102, "a"), line("v9", "C")], []


def mme_case(mme_root: Path) -> tuple[Path, list[dict[str, Any]], list[str]]:  # noqa: F811
    lines = [
        line(f"existence/000{k}.jpg", "Yes", f"Is there a {noun}?{S}") for k, noun in ((1, "dog"), (2, "cat"))
    ]
    cow = [line(f"existence/000{k}.jpg", "No", f"Is there a cow?{S}") for k in (1, 2)]
    lines = [lines[0], cow[0], lines[1], cow[1]]
    lines += [line("artwork/images/7.png", "yes", f"{word}?{S}") for word in ("Old", "New")]
    return mme_root / "MME_Benchmark_release_version", lines, ["benchmark.categories=[existence,artwork]"]


def textvqa_case(text_root: Path) -> tuple[Path, list[dict[str, Any]], list[str]]:  # noqa: F811
    return text_root, [line("im1", "HP.", "What brand?" + S), line("im1", "2000", "What year?" + S)], []


def vqav2_case(vqa_root: Path) -> tuple[Path, list[dict[str, Any]], list[str]]:  # noqa: F811
    return vqa_root, [{"question_id": 1, "answer": "yes"}, {"question_id": 2, "answer": "two"}], []


def gqa_case(gqa_root: Path) -> tuple[Path, list[dict[str, Any]], list[str]]:  # noqa: F811
    return gqa_root, [line("01", "Yes"), line("02", "red."), line("03", "a blue")], []


CASES = {
    "pope": pope_case,
    "chair": chair_case,
    "mmbench": mmbench_case,
    "scienceqa": science_case,
    "seedbench": seed_case,
    "mme": mme_case,
    "textvqa": textvqa_case,
    "vqav2": vqav2_case,
    "gqa": gqa_case,
}


@pytest.mark.parametrize(
    ("name", "root", "headline"),
    [
        ("pope", "tmp_path", {"f1": POPE_F1}),
        ("chair", "tmp_path", {"chair_s": 100, "chair_i": 50}),
        ("mmbench", "tmp_path", {"circular": 50}),
        ("scienceqa", "science_root", {"img": 50}),
        ("seedbench", "seed_root", {"image": 50}),
        ("mme", "mme_root", {"perception": 100 + 100 + 50 + 0}),
        ("textvqa", "text_root", {"accuracy": 50}),
        ("vqav2", "vqa_root", {"accuracy": 95}),
        ("gqa", "gqa_root", {"accuracy": 200 / 3}),
    ],
)
def test_every_benchmark_is_scored_from_its_official_layout(
    name: str, root: str, headline: dict[str, float], request: pytest.FixtureRequest
) -> None:
    place, rows, more = CASES[name](request.getfixturevalue(root))
    answers, out = place.parent / "a.jsonl", place.parent / "s.json"
    write_lines(answers, rows)
    for file in (answers, write_json(place.parent / "a.json", rows)):
        assert (
            score([f"benchmark={name}", f"benchmark.root={place}", f"answers={file}", f"out={out}", *more])
            == 0
        )
        found = json.loads(out.read_text())
        assert {k: found["metrics"][k] for k in found["headline"]} == pytest.approx(headline)
        assert (found["complete"], found["benchmark"]) == (True, name)
        records = (place.parent / "s.items.jsonl").read_text().splitlines()
        said = [json.loads(record)["answer"] for record in records]
        assert set(said) == {row.get("text", row.get("answer", row.get("caption"))) for row in rows}


def test_an_evaluation_leaves_the_file_that_the_official_program_takes(
    gqa_root: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    benchmark = gqa(gqa_root)
    requests = benchmark.requests()
    said = {request.id: Reply("Red.") for request in requests}
    folder = StageFolder(tmp_path / "stage")
    score_answers(benchmark, requests, said, folder)
    (path,) = (tmp_path / "stage" / "submission").iterdir()
    assert json.loads(path.read_text())[0] == {"questionId": "01", "prediction": "red"}
