"""`nsft export`: rows in TRL's and LLaMA-Factory's forms, their folder, and the way back through `source`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import run_nsft
from nsft_exp.export.data import write_data
from nsft_exp.export.finding import MARKER, compose_cell
from nsft_exp.export.rows import (
    Row,
    completion_rows,
    conversation_rows,
    llama_factory_row,
    preference_rows,
    trl_row,
)
from nsft_exp.method.nsft import NSFT
from nsft_exp.method.sft import SFT
from nsft_exp.records import Conversation, Example, Exchange, Item, Preference, Sample, Turn, UserError
from nsft_exp.source.preference import Preferences
from nsft_exp.stages import examples_of
from source_files import picture, talk, write
from tiny_training import make_items

PAIR = Row(
    "r1",
    "a.png",
    (Turn("prompt", "Hi?"), Turn("prompt", "Hello."), Turn("prompt", "What?")),
    {"chosen": Turn("chosen", "A cat."), "rejected": Turn("rejected", "A dog.")},
)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_a_pair_is_written_in_trls_conversational_vision_form() -> None:
    row = trl_row(PAIR, ["images/x.png"])
    assert row["prompt"] == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
        {"role": "user", "content": [{"type": "text", "text": "What?"}]},
    ]
    assert row["chosen"] == [{"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]
    assert row["rejected"] == [{"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}]
    assert row["images"] == row["images_file_names"] == ["images/x.png"]


def test_a_pair_is_written_in_llama_factorys_sharegpt_form() -> None:
    assert llama_factory_row(PAIR, ["images/x.png"]) == {
        "id": "r1",
        "conversations": [
            {"from": "human", "value": "<image>\nHi?"},
            {"from": "gpt", "value": "Hello."},
            {"from": "human", "value": "What?"},
        ],
        "chosen": {"from": "gpt", "value": "A cat."},
        "rejected": {"from": "gpt", "value": "A dog."},
        "images": ["images/x.png"],
    }


def test_a_text_that_holds_the_mark_of_an_image_is_refused_for_llama_factory() -> None:
    row = Row("r2", None, (Turn("prompt", "What does <image> mean?"), Turn("chosen", "A mark.")))
    with pytest.raises(UserError, match=r"example r2: the text .* holds <image>; take it out"):
        llama_factory_row(row, [])


def test_samples_without_a_pair_are_left_out_and_counted() -> None:
    items = [
        Item(Sample(f"s{n}", None, "Q", "A"), Preference(f"s{n}", status, "A", "B"))
        for n, status in enumerate(["ok", "equal", "equal", "no_answer"])
    ]
    rows, left_out = preference_rows([*items, Item(Sample("s9", None, "Q", "A"))])
    assert [row.id for row in rows] == ["s0"]
    assert left_out == {"equal": 2, "no_answer": 1, "no preference": 1}


def test_every_conversation_of_an_example_is_a_row_of_its_own(tmp_path: Path) -> None:
    items = make_items(tmp_path, 2)
    rows = conversation_rows(NSFT(correction_as="examples").examples(items, None))  # type: ignore[arg-type]
    assert [row.id for row in rows] == ["s0", "s1", "s1/1"]
    assert [turn.text for turn in rows[2].turns[1::2]] == ["Yes, there is.", "No."]


def test_only_a_last_answer_can_be_a_completion(tmp_path: Path) -> None:
    items = make_items(tmp_path, 2)
    rows = completion_rows(SFT().examples(items, None))  # type: ignore[arg-type]
    assert rows[1].answers["completion"].text == items[1].sample.answer
    assert [turn.text for turn in rows[1].turns] == ["Hello?", "Yes.", "What is number 1?"]
    with pytest.raises(UserError, match=r"example s1: more than its last answer is trained on"):
        completion_rows(SFT(supervise_history=True).examples(items, None))  # type: ignore[arg-type]


def test_an_image_under_a_view_is_refused() -> None:
    turns = (Turn("prompt", "Q"), Turn("chosen", "A"))
    with pytest.raises(UserError, match=r"example e1: its image is seen through diffusion:500"):
        conversation_rows([Example("e1", (Conversation("a.png", turns, view="diffusion:500"),))])


def test_a_shared_image_is_copied_once_and_another_with_the_same_name_apart(tmp_path: Path) -> None:
    for name, colour in (("one/a.PNG", "red"), ("two/a.PNG", "blue"), ("three/b.png", "red")):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (4, 4), colour).save(tmp_path / name, "PNG")
    pictures = ["one/a.PNG", "two/a.PNG", "three/b.png", "one/a.PNG", None]
    rows = [Row(f"r{n}", p and str(tmp_path / p), PAIR.turns, PAIR.answers) for n, p in enumerate(pictures)]
    out = tmp_path / "out"
    out.mkdir()
    assert write_data(out, "d", rows, "trl", "preference") == {"rows": 5, "images": 2}
    named = [row["images"] for row in lines(out / "metadata.jsonl")]
    assert named[0] == named[2] == named[3] != named[1]
    assert named[4] == []
    assert (out / named[0][0]).read_bytes() == (tmp_path / "one/a.PNG").read_bytes()
    assert sorted(f"images/{f.name}" for f in (out / "images").iterdir()) == sorted({*named[0], *named[1]})


def test_an_image_that_cannot_be_read_is_named_with_its_record(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    row = Row("r7", str(tmp_path / "broken.jpg"), PAIR.turns, PAIR.answers)
    with pytest.raises(UserError, match=r"broken\.jpg: record r7: the image cannot be read"):
        write_data(tmp_path, "d", [row], "trl", "preference")


def test_a_picture_that_is_no_file_is_written_as_png(tmp_path: Path) -> None:
    picture = Image.new("RGB", (5, 3), (1, 2, 3))
    row = Row("r1", "scene 12", PAIR.turns, PAIR.answers)
    write_data(tmp_path, "d", [row], "trl", "preference", open_image=lambda name: picture)
    ((name,),) = [row["images"] for row in lines(tmp_path / "metadata.jsonl")]
    with Image.open(tmp_path / name) as read:
        assert (read.format, read.size, read.getpixel((0, 0))) == ("PNG", (5, 3), (1, 2, 3))


@pytest.mark.parametrize("form", ["trl", "llama_factory"])
def test_pairs_come_back_through_the_preference_source(form: str, tmp_path: Path) -> None:
    items = make_items(tmp_path, 5)
    items.append(
        Item(
            Sample("über", None, "Zeilen\nund 12 é?", "Ja.", (Exchange("a", "b"),)),
            Preference("über", "ok", "Ja.", "Nein,\n<nie>."),
        )
    )
    rows, _ = preference_rows(items)
    out = tmp_path / "out"
    out.mkdir()
    write_data(out, "d", rows, form, "preference")
    back = {s.id: s for s in Preferences(str(out), folder=str(tmp_path / "unpacked")).samples()}
    assert back.keys() == {item.sample.id for item in items}
    for item in items:
        sample = back[item.sample.id]
        assert (sample.question, sample.history) == (item.sample.question, item.sample.history)
        assert sample.answer == item.sample.answer
        assert item.preference
        assert sample.rejected == item.preference.rejected
        if item.sample.image is not None:
            assert sample.image
            assert Path(sample.image).read_bytes() == Path(item.sample.image).read_bytes()


def test_datasets_loads_a_folder_with_real_images(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="comes with TRL, a test extra")
    rows, _ = preference_rows(make_items(tmp_path, 3))
    text_only = Row("t", None, PAIR.turns, PAIR.answers)
    out = tmp_path / "out"
    out.mkdir()
    write_data(out, "d", [*rows, text_only], "trl", "preference")
    data = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.features["images"] == datasets.List(datasets.Image())
    assert [row["id"] for row in data] == ["s0", "s1", "s2", "t"]
    assert [[i.size for i in row["images"]] for row in data] == [[(40, 24)], [(40, 25)], [(40, 26)], []]
    assert data[1]["prompt"][-1]["content"][0]["text"] == "What is number 1?"
    assert "images_file_names" not in data.column_names


# --- the command -----------------------------------------------------------------------------------


Export = Callable[..., int]
WORDS = ("preset=debug", "source.size=4", "launch=inline")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture
def export(work: Path, toy_data: Path) -> Export:
    return lambda *words, root=work: run_nsft(root, toy_data, "export", *words, *WORDS)


def test_a_cells_pairs_are_written_with_a_card_and_their_stage(
    export: Export, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("method=gt_dpo", "to=exports/pairs") == 0
    folder = work / "exports" / "pairs"
    rows = lines(folder / "metadata.jsonl")
    assert len(rows) == 4
    assert all((folder / name).is_file() for row in rows for name in row["images"])
    (stage,) = (work / "runs" / "respond").iterdir()
    answered = {row["id"]: row for row in lines(stage / "records.jsonl")}
    assert all(row["rejected"][0]["content"][0]["text"] == answered[row["id"]]["rejected"] for row in rows)
    marker = json.loads((folder / MARKER).read_text("utf-8"))
    assert stage.name.endswith(marker["stages"]["respond"])
    card = (folder / "README.md").read_text("utf-8")
    assert card.startswith("---\n")
    assert marker["stages"]["respond"] in card
    assert "4 rows (preference) with 4 images: exports/pairs" in capsys.readouterr().out
    assert not (work / "runs" / "train").exists()


def test_a_second_export_finds_the_stage_and_writes_the_same_bytes(export: Export, work: Path) -> None:
    assert export("method=gt_dpo", "to=exports/first") == 0
    (stage,) = (work / "runs" / "respond").iterdir()
    before = (stage / "records.jsonl").stat().st_mtime_ns
    first = {f.name: f.read_bytes() for f in (work / "exports/first").rglob("*") if f.is_file()}
    assert export("method=gt_dpo", "to=exports/first") == 0
    assert (stage / "records.jsonl").stat().st_mtime_ns == before
    assert {f.name: f.read_bytes() for f in (work / "exports/first").rglob("*") if f.is_file()} == first


def test_nsfts_conversations_are_written_for_llama_factory(export: Export, work: Path) -> None:
    assert export("method=nsft", "to=exports/lf", "format=llama_factory") == 0
    folder = work / "exports" / "lf"
    assert json.loads((folder / "dataset_info.json").read_text("utf-8")) == {
        "lf": {
            "file_name": "data.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "images": "images"},
        }
    }
    for row in lines(folder / "data.jsonl"):
        speakers = [remark["from"] for remark in row["conversations"]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2)
        assert "".join(r["value"] for r in row["conversations"]).count("<image>") == len(row["images"]) == 1


def test_earlier_answers_that_the_method_only_reads_are_told(
    export: Export, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("method=cont_sft", "to=exports/sft") == 0
    assert "4 rows hold earlier answers that the method only reads" in capsys.readouterr().out
    assert export("method=cont_sft", "to=exports/completion", "kind=prompt_completion") == 0
    assert "note" not in capsys.readouterr().out
    row = lines(work / "exports" / "completion" / "metadata.jsonl")[0]
    assert [m["role"] for m in (row["prompt"][-1], *row["completion"])] == ["user", "assistant"]


@pytest.mark.parametrize("size", ["null", "5"])
def test_what_training_holds_out_is_left_out_and_told(
    size: str, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of seven records: a whole source is trained on less those held out, one of five is larger by them."""
    record = lambda n: {"id": f"r{n}", "image": "a.png", "conversations": talk(f"<image>\n{n}?", f"{n}.")}  # noqa: E731
    file, image = write(tmp_path / "talks.json", [record(n) for n in range(7)]), picture(tmp_path / "a.png")
    words = [f"source.file={file}", f"source.image_root={image.parent}", f"source.size={size}"]
    words += ["preset=debug", "method=cont_sft", "source=llava150k", "trainer.held_out=2"]
    assert run_nsft(tmp_path, toy_data, "export", "to=out", *words) == 0
    assert "2 samples are held out of training and are left out" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / MARKER).read_text("utf-8"))["counts"]["held_out"] == 2
    cell = compose_cell(words)
    step = cell.step("train")
    assert step
    _, trained, held_out = examples_of(step, cell.run)
    assert [row["id"] for row in lines(tmp_path / "out" / "metadata.jsonl")] == [e.id for e in trained]
    assert (len(trained), len(held_out)) == (5, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=gt_dpo"], "nsft export needs a folder to write: to=exports/<name>"),
        (["method=gt_dpo", "to=x", "format=csv"], "format=csv: there is no such choice"),
        (["method=gt_dpo", "to=x", "kind=sft"], "method=gt_dpo trains on no conversations"),
        (["method=base", "to=x"], "method=base trains on no conversations"),
        (["method=cont_sft", "to=x", "kind=preference"], "method=cont_sft has no preferences to export"),
        (["metod=gt_dpo", "to=x"], "metod: there is no such key; did you mean method"),
        (["method=gt_dpo", "to=taken"], "taken: is not empty and was not written by nsft export"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    words: list[str], message: str, export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("precious")
    assert export(*words, root=tmp_path) == 2
    (line,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("nsft: ")]
    assert message in line
    assert (tmp_path / "taken" / "mine.txt").read_text() == "precious"


def test_a_failed_export_leaves_the_old_folder_and_nothing_else(
    export: Export, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(work / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("jobs"))
    assert export("method=gt_dpo", "to=out/x", root=tmp_path) == 0
    before = (tmp_path / "out" / "x" / "metadata.jsonl").read_bytes()

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("nsft_exp.export.data.data_card", full)
    with pytest.raises(OSError, match="no space"):
        export("method=gt_dpo", "to=out/x", root=tmp_path)
    assert (tmp_path / "out" / "x" / "metadata.jsonl").read_bytes() == before
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["x"]
