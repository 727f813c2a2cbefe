"""W&B runs, written offline and read back from their files."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from conftest import DEBUG, POPE_ONLY
from nsft_exp.records import UserError
from nsft_exp.report.cell import Cell
from nsft_exp.wandb_log import ANSWERS, Wandb, history, mark_words, staging_in, tags_of, without_secrets
from synthetic_study import make_study, write_jsonl


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    cells, _ = make_study(tmp_path_factory.mktemp("study"), seeds=(0,), num_images=8)
    return next(c for c in cells if c.label == "nsft")


@pytest.fixture(scope="module")
def written(cell: Cell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the cell's run, written twice: the second stands for a re-run."""
    sink = Wandb(str(tmp_path_factory.mktemp("wandb")), project="test", tags=["toy"])
    for config in ({"method": "an older config"}, cell.config):
        folder = sink.log(dataclasses.replace(cell, config=config), group="demo")
        wandb.teardown()  # as at the end of a process: the service has written all
    return folder


def chunks(file: Path) -> Iterator[bytes]:
    """Yield the records of a .wandb file: a LevelDB log (blocks of 32 KiB, chunks of crc, length, type)."""
    data, at, block = file.read_bytes(), 7, 32768  # seven bytes of W&B's own header
    assert data[:4] == b":W&B"
    record = b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # no chunk header fits: the rest of the block is padding
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or last of several
            yield record
            record = b""


def read_run(folder: Path) -> dict[str, Any]:
    """Return what an offline run holds: run, config, history rows, summary, whether it ended."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 1, "a re-run must replace the folder"
    found: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "exit": None}
    for chunk in chunks(files[0]):
        record = Record.FromString(chunk)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"] |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
        elif kind == "history":
            keys = ((i.key or "/".join(i.nested_key), i.value_json) for i in record.history.item)
            found["history"].append({key: json.loads(value) for key, value in keys})
        elif kind == "summary":
            for u in record.summary.update:
                found["summary"][u.key or "/".join(u.nested_key)] = json.loads(u.value_json)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def test_a_run_has_its_names_tags_and_config(written: Path, cell: Cell) -> None:
    found = read_run(written)
    run = found["run"]
    assert run.display_name == cell.name
    assert run.project == "test"
    assert run.run_group == "demo: nsft-toy_instruct-600-toy"
    assert list(run.tags) == ["nsft", "source=toy_instruct", "size=600", "vlm=toy", "seed=0", "toy"]
    assert found["config"]["seed"] == 0
    assert found["config"]["method"] == {"name": "nsft"}
    assert found["exit"] == 0


def test_the_training_history_is_that_of_the_stages_files(written: Path, cell: Cell) -> None:
    rows = [row for row in read_run(written)["history"] if "loss" in row]
    theirs = [row for row in cell.history() if "loss" in row]
    assert [row["_step"] for row in rows] == [row["step"] for row in theirs]
    assert [row["loss"] for row in rows] == [row["loss"] for row in theirs]
    assert [row["correction"] for row in rows] == [row["correction"] for row in theirs]
    held_out = {row["step"]: row["validation/loss"] for row in cell.history() if "validation/loss" in row}
    assert {row["_step"]: row["validation/loss"] for row in rows if "validation/loss" in row} == held_out


def test_scores_and_counts_are_in_the_summary(written: Path, cell: Cell) -> None:
    summary = read_run(written)["summary"]
    for evaluation in cell.evaluations:
        for name, value in evaluation.metrics.items():
            assert summary[f"{evaluation.name}/{name}"] == pytest.approx(value)
    assert summary["counts"]["corrections"]["ok"] == 540


def test_sample_answers_are_in_tables_with_their_images(written: Path, cell: Cell) -> None:
    tables = {f.name.split("_")[0]: json.loads(f.read_text("utf-8")) for f in written.rglob("*.table.json")}
    assert set(tables) == {"pope", "chair", "vqa"}
    for evaluation in cell.evaluations:
        table = tables[evaluation.name]
        answers = {row.id: row.answer for row in evaluation.rows()}
        assert table["columns"][:4] == ["id", "image", "question", "answer"]
        assert len(table["data"]) == min(ANSWERS, len(answers))
        assert all(row[3] == answers[row[0]] for row in table["data"])
    staged = [f for f in (written / "staging").rglob("*") if f.is_file()]
    assert any(f.read_bytes().startswith(b"\x89PNG") for f in staged)


def test_no_key_is_in_any_file(written: Path) -> None:
    for file in (f for f in written.rglob("*") if f.is_file()):
        assert b"secret-value" not in file.read_bytes(), file
    assert read_run(written)["config"]["critic"] == {"api_key": "(left out)"}


def test_only_what_is_named_a_secret_is_left_out() -> None:
    config = {
        "chat": {"api_key": "x", "hf_token": "y", "model": "m"},
        "max_new_tokens": 64,
        "list": [{"token": "z"}],
    }
    assert without_secrets(config) == {
        "chat": {"api_key": "(left out)", "hf_token": "(left out)", "model": "m"},
        "max_new_tokens": 64,
        "list": [{"token": "(left out)"}],
    }


@pytest.mark.parametrize("before", [None, "somewhere"])
def test_the_staging_folder_is_set_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str | None
) -> None:
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    if before:
        monkeypatch.setenv("WANDB_DATA_DIR", before)
    with staging_in(tmp_path):
        assert os.environ["WANDB_DATA_DIR"] == str(tmp_path)
    assert os.environ.get("WANDB_DATA_DIR") == before


def test_speeds_stand_beside_the_metrics_of_their_step(cell: Cell, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    write_jsonl(tmp_path / "times.jsonl", [{"step": 2, "tokens_per_second": 900.0}])
    rows = history(dataclasses.replace(cell, train_folder=tmp_path))
    assert rows == [{"step": 1, "loss": 2.0}, {"time/tokens_per_second": 900.0, "step": 2, "loss": 1.0}]


def test_tags_stay_within_what_is_allowed(cell: Cell) -> None:
    long = dataclasses.replace(cell, source="s" * 200, size=None, seed=None)
    assert all(0 < len(tag) <= 64 for tag in tags_of(long, ("",)))


def test_marks_are_put_into_words() -> None:
    assert mark_words(((0, 1, "right"), (2, 3, "wrong"), (4, 5, "right"))) == "2 right, 1 wrong"


class Run:
    """Stands for a W&B run, which needs the network: keeps what it is told."""

    def __init__(self, told: list[Any], **options: Any) -> None:
        self.told, self.options = told, options
        self.summary: dict[str, Any] = {}
        told.append(("init", options["id"], options["resume"]))

    def log(self, row: dict[str, Any], step: int | None = None) -> None:
        self.told.append(("log", step, row))

    def finish(self, exit_code: int = 0) -> None:
        self.told.append(("finish", exit_code))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the runs that are opened in the test were told, in order."""
    told: list[Any] = []
    monkeypatch.setattr(wandb, "init", lambda **options: Run(told, **options))
    monkeypatch.setattr("nsft_exp.wandb_log.answer_table", lambda evaluation: evaluation.name)
    return told


ROWS = [{"step": 1, "loss": 2.0}, {"step": 1, "time/seconds": 0.5}, {"step": 2, "loss": 1.5}]


def test_online_a_training_is_told_row_by_row_and_then_overwritten_whole(
    told: list[Any], cell: Cell, tmp_path: Path
) -> None:
    sink = Wandb(str(tmp_path), mode="online")
    description = sink.live_run(cell, group="demo")
    assert json.loads(json.dumps(description)) == description, "a child process gets it as JSON"
    with sink.stream(description) as listen:
        for number, row in enumerate(ROWS, 1):
            listen(row)
            assert len(told) == 1 + number, "each row at once"
    assert told[0] == ("init", description["id"], "allow"), "a killed training goes on in the same run"
    assert told[1:4] == [
        ("log", 1, {"loss": 2.0}),
        ("log", 1, {"time/seconds": 0.5}),
        ("log", 2, {"loss": 1.5}),
    ]
    assert told[4:] == [("finish", 0)]
    sink.log(cell, group="demo")
    assert told[5] == ("init", description["id"], None), "the whole run replaces it"


def test_a_training_that_fails_is_told_as_failed(told: list[Any], cell: Cell, tmp_path: Path) -> None:
    sink = Wandb(str(tmp_path), mode="online")
    with pytest.raises(RuntimeError), sink.stream(sink.live_run(cell)):
        raise RuntimeError
    assert told[-1] == ("finish", 1)


def test_offline_nothing_streams(cell: Cell, tmp_path: Path) -> None:
    assert Wandb(str(tmp_path)).live_run(cell) is None


def test_a_cell_streams_its_training(told: list[Any], nsft: Callable[..., int]) -> None:
    watched = ("trainer.evaluate_every=2", "trainer.evaluate_limit=4")
    assert nsft("method=cont_sft", *DEBUG, *POPE_ONLY, "logger=wandb", "logger.mode=online", *watched) == 0
    ended = told.index(("finish", 0))
    losses = [(step, row["loss"]) for _, step, row in told[1:ended] if "loss" in row]
    assert [step for step, _ in losses] == [1, 2]
    (file,) = Path("runs/train").glob("*/metrics.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert losses == [(row["step"], row["loss"]) for row in rows if "loss" in row]
    (looks,) = [row for row in rows if "loss" not in row]
    assert looks.pop("step") == 2
    assert "benchmark/pope/random_accuracy" in looks or "benchmark/pope/adversarial_accuracy" in looks
    assert ("log", 2, looks) in told[1:ended]
    assert any("time/tokens_per_second" in row for _, _, row in told[1:ended])
    assert told[ended + 1] == ("init", told[0][1], None)
    (table,) = [row["answers/training"] for _, _, row in told[ended + 2 : -1] if "answers/training" in row]
    assert len(table.data) == 4


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UserError, match=r"logger\.mode=live"):
        Wandb("somewhere", mode="live")
