"""Preference files that users have: what is read, what is refused, and cells that train on them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nsft_exp.pairing.given import Given
from nsft_exp.records import Exchange, Preference, Sample, UserError
from nsft_exp.source.preference import Preferences
from source_files import FIXTURES, picture, talk, write, write_pope

Make = Callable[..., Preferences]
QUESTION, GOOD, BAD = "What is the man doing?", "He rides a bike.", "He rides a horse."


def said(role: str, text: str, image: bool = False) -> dict[str, Any]:
    """A message with typed parts, as TRL's vision format has it."""
    parts = [{"type": "image"}] if image else []
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


TRL = {
    "images": ["a.png"],
    "prompt": [said("user", QUESTION, image=True)],
    "chosen": [said("assistant", GOOD)],
    "rejected": [said("assistant", BAD)],
}
SEVA = {"question": QUESTION, "chosen": GOOD, "reject": BAD, "image_id": "a.png"}
FORMS: dict[str, dict[str, Any]] = {
    "TRL": TRL,
    "TRL, strings as contents": {
        "images": ["a.png"],
        "prompt": [{"role": "user", "content": f"<image>\n{QUESTION}"}],
        "chosen": [{"role": "assistant", "content": GOOD}],
        "rejected": [{"role": "assistant", "content": BAD}],
    },
    "TRL, prompt inside of the answers": {
        "images": ["a.png"],
        "chosen": [said("user", QUESTION, image=True), said("assistant", GOOD)],
        "rejected": [said("user", QUESTION, image=True), said("assistant", BAD)],
    },
    "TRL, texts": {"image": "a.png", "prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": f"<image>\n{QUESTION}"}],
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
        "images": ["a.png"],
    },
    "RLHF-V": {
        "ds_name": "RLHF-V",
        "image": {"bytes": None, "path": "0.jpg"},
        "text": json.dumps({"question": QUESTION, "chosen": GOOD, "rejected": BAD}),
        "idx": 0,
        "image_path": "a.png",
    },
    "RLAIF-V": {"question": QUESTION, "chosen": GOOD, "rejected": BAD, "image_path": "a.png", "idx": "0"},
    "SeVa": SEVA,
}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write rows as a JSON list beside the picture a.png, and return the source of that file."""

    def source(rows: list[Any], name: str = "pairs.json", **options: Any) -> Preferences:
        text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows)
        picture(tmp_path / "a.png")
        return Preferences(write(tmp_path / name, text), str(tmp_path / "unpacked"), **options)

    return source


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("file", ["pairs.json", "pairs.jsonl"])
def test_each_form_gives_question_answers_and_image(make: Make, tmp_path: Path, name: str, file: str) -> None:
    (sample,) = make([FORMS[name]], file).samples()
    assert (sample.question, sample.answer, sample.rejected) == (QUESTION, GOOD, BAD)
    assert sample.image == str(tmp_path / "a.png")
    assert (sample.id, sample.history, sample.cluster) == ("0", (), "a.png")


def test_earlier_turns_of_the_prompt_become_the_history(make: Make) -> None:
    prompt = [said("user", "Who?", image=True), said("assistant", "A man."), said("user", QUESTION)]
    (sample,) = make([{**TRL, "prompt": prompt}]).samples()
    assert (sample.history, sample.question) == ((Exchange("Who?", "A man."),), QUESTION)


def test_a_row_without_an_image_is_text_only(make: Make) -> None:
    (sample,) = make([{"prompt": "Hi?", "chosen": "Hello.", "rejected": "Bye.", "images": []}]).samples()
    assert sample.image is None


def test_rows_that_say_that_they_are_no_pair_are_counted(make: Make) -> None:
    wrong = {"image_id": 7, "question": QUESTION, "chosen": "No.", "reject": "Yes.", "correct": False}
    source = make([wrong, {**wrong, "correct": True}], check=False)
    (sample,) = source.samples()
    assert Path(str(sample.image)).name == "7.jpg"
    assert source.counts["of no interest"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": None}, "has no `chosen` answer"),
        ({"rejected": None}, "has no `rejected` answer"),
        ({"chosen": [said("assistant", " ")]}, "the chosen answer is empty"),
        ({"chosen": [said("assistant", "a"), said("user", "b")]}, "`chosen` is not one answer"),
        ({"prompt": [said("assistant", "Hm?")]}, "turns do not alternate"),
        ({"prompt": [said("system", "Be good."), said("user", QUESTION)]}, "has a turn of system"),
        ({"prompt": [said("user", "")]}, "a turn of the prompt is empty"),
        ({"prompt": [said("user", "<image>\nWhat?", image=True)]}, "the prompt has 2 images"),
        ({"prompt": [{"role": "user", "content": [{"type": "video"}]}]}, "a part of type 'video'"),
        ({"images": ["a.png", "b.png"]}, "`images` names 2 images"),
        ({"images": ["../a.png"]}, "lies outside of"),
        ({"prompt": None}, "has no question"),
    ],
)
def test_a_broken_row_is_one_line(make: Make, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        make([TRL, {**TRL, "id": "bad", **change}]).samples()
    text = str(refused.value)
    assert text.startswith(f"{tmp_path / 'pairs.json'}: record bad: ")
    assert message in text
    assert "\n" not in text


def test_text_of_rlhf_v_that_is_no_json_is_one_line(make: Make) -> None:
    with pytest.raises(UserError, match="record 3: `text` is not a JSON object"):
        make([{"text": "What is it?", "idx": 3, "image_path": "a.png"}]).samples()


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.csv", "a,b\n")
    with pytest.raises(UserError, match=r"pairs.csv: is no .json, .jsonl or .parquet file"):
        Preferences(file, "x").samples()


# --- tables and folders ------------------------------------------------------------------------------


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def embedded(count: int) -> list[dict[str, Any]]:
    """Rows as RLHF-V's parquet has them, the image's bytes inside."""
    text = [
        json.dumps({"question": f"{QUESTION} {n}", "chosen": GOOD, "rejected": BAD}) for n in range(count)
    ]
    return [
        {
            "idx": n,
            "text": text[n],
            "image": {"bytes": png(n), "path": f"{n}.png"},
            "image_path": f"coco/{n}.jpg",
        }
        for n in range(count)
    ]


def test_images_inside_of_a_parquet_file_are_written_once_and_opened(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "pairs.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(embedded(3)), file)
    for _ in range(2):
        samples = sorted(Preferences(str(file), str(tmp_path / "unpacked")).samples(), key=lambda s: s.id)
    assert [s.rejected for s in samples] == [BAD] * 3
    assert [s.cluster for s in samples] == [f"coco/{n}.jpg" for n in range(3)]
    assert [Path(str(s.image)).read_bytes() for s in samples] == [png(n) for n in range(3)]
    assert len(list((tmp_path / "unpacked").iterdir())) == 3


def test_a_data_set_that_datasets_saved_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{**TRL, "images": [{"bytes": png(n), "path": None}]} for n in range(2)]
    table = datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
    table.save_to_disk(str(tmp_path / "saved"))
    samples = Preferences(str(tmp_path / "saved"), str(tmp_path / "unpacked")).samples()
    assert sorted(Path(str(s.image)).read_bytes() for s in samples) == sorted(png(n) for n in range(2))
    assert {(s.question, s.answer, s.rejected) for s in samples} == {(QUESTION, GOOD, BAD)}


def test_a_folder_with_one_jsonl_file_is_read_and_with_two_refused(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    picture(folder / "images" / "a.png")
    row = {**TRL, "images": ["images/a.png"], "images_file_names": ["images/a.png"]}
    write(folder / "metadata.jsonl", json.dumps(row) + "\n")
    (sample,) = Preferences(str(folder), "x").samples()
    assert sample.image == str(folder / "images" / "a.png")
    write(folder / "more.jsonl", json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"has 2 .jsonl and 0 .parquet files; name one"):
        Preferences(str(folder), "x").samples()


# --- the pairing -------------------------------------------------------------------------------------


def test_the_given_pairing_takes_the_samples_own_answers() -> None:
    samples = [
        Sample("a", None, "Q", "Yes. ", rejected=" No."),
        Sample("b", None, "Q", "Yes.", rejected="Yes."),
        Sample("c", None, "Q", "Yes.", rejected=" "),
    ]
    assert list(Given().pairs(samples, None)) == [
        Preference("a", "ok", "Yes.", "No."),
        Preference("b", "equal", "Yes.", "Yes."),
        Preference("c", "empty", "Yes.", ""),
    ]


def test_a_source_without_rejected_answers_is_refused_with_what_to_choose() -> None:
    with pytest.raises(UserError, match=r"record a: the source gives no rejected answer; take source=pref"):
        list(Given().pairs([Sample("a", None, "Q", "A")], None))


def test_dpo_and_nsft_train_on_a_file_of_pairs(tmp_path: Path) -> None:
    from nsft_exp.__main__ import main

    numbers = range(8)
    rows = [
        {"question": "What is this?", "chosen": "a cup.", "reject": f"a ball {n}.", "image_id": f"{n}.png"}
        for n in numbers
    ]
    for n in numbers:
        picture(tmp_path / f"{n}.png", n)
    words = ["-m", "method=gt_dpo,nsft", "pairing=given", "source=preference", "preset=debug"]
    words += [f"source.file={write(tmp_path / 'pairs.json', rows)}"]
    words += write_pope(tmp_path / "pope", {"a.jpg": 9})
    with chdir(tmp_path), pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code
    records = [
        json.loads(line)
        for f in (tmp_path / "runs" / "respond").rglob("records.jsonl")
        for line in f.read_text("utf-8").splitlines()
    ]
    assert {r["rejected"] for r in records} == {f"a ball {n}." for n in numbers}
    manifests = [json.loads(f.read_text("utf-8")) for f in (tmp_path / "runs/train").rglob("manifest.json")]
    assert [m["counts"]["pairs"] for m in manifests] == [8, 8]


# --- the shared fixtures -----------------------------------------------------------------------------


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the shared fixtures are not here")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "RLHF-V-Dataset_rows.jsonl",
            ("He is riding a bike.", "He is riding a horse.", "coco/000000000030.jpg"),
        ),
        (
            "RLAIF-V-Dataset_rows.jsonl",
            ("He is riding a bike.", "He is riding a horse.", "coco/000000000030.jpg"),
        ),
        (
            "seva_ocrvqa_dpo_8k_diffusion_step500.json",
            ("A. Writer wrote it.", "Nobody knows.", "0140000001.jpg"),
        ),
        (
            "seva_textvqa_dpo_8k_diffusion_step500.json",
            ("The sign says stop.", "The sign says shop.", "00aa11bb22cc33dd.jpg"),
        ),
        ("hadpo_pope_data.json", ("No, there is no horse.", "Yes, there is a horse.", "2316634.jpg")),
    ],
)
def test_the_shared_fixtures_are_read(name: str, expected: tuple[str, str, str]) -> None:
    (sample,) = Preferences(str(FIXTURES / name), "x", image_root="data", check=False).samples()
    assert (sample.answer, sample.rejected, sample.cluster) == expected
    assert sample.image == f"data/{expected[2]}"


def test_llava_conversations_are_no_preferences(make: Make) -> None:
    with pytest.raises(UserError, match="has no `chosen` answer; this must be a file of preferences"):
        make([{"id": "x", "conversations": talk("Q", "A")}]).samples()
