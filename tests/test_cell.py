"""Whole cells through the real main job, on a random model: what runs, what is skipped, what is resumed."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import conftest
from conftest import run_nsft
from nsft_exp.finished import ended_well

Run = Callable[..., int]
METHODS = ("base", "cont_sft", "gt_dpo", "nsft")
CUT = ("benchmark.chair.max_new_tokens=16", "benchmark.chair_t1.max_new_tokens=16")
"""A random model's answers do not end by themselves."""
DEBUG = (*conftest.DEBUG, "trainer.checkpoint_every=1", *CUT)
QUICK = (*DEBUG, *conftest.POPE_ONLY)
SWEEP = ("-m", f"method={','.join(METHODS)}", *DEBUG)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """The directory in which a sweep over the methods ran once."""
    root = tmp_path_factory.mktemp("swept")
    assert run_nsft(root, toy_data, *SWEEP) == 0
    return root


def outcomes(root: Path, study: str = "sweep") -> list[dict[str, Any]]:
    return json.loads((root / "runs" / "studies" / study / "cells.json").read_text("utf-8"))


def contents(root: Path, folders: Iterable[str] = ("runs",)) -> dict[str, bytes]:
    """Every file of a run that holds a result: records, metrics, weights (no times, no logs)."""
    names = ("records.jsonl", "metrics.jsonl", "adapter_model.safetensors", "samples.jsonl")
    found = sorted(p for folder in folders for p in (root / folder).rglob("*") if p.name in names)
    return {str(p.relative_to(root)): p.read_bytes() for p in found}


def test_a_sweep_runs_every_method_and_writes_the_report(swept: Path) -> None:
    rows = outcomes(swept)
    assert [(o["label"], o["status"]) for o in rows] == [(m, "ok") for m in METHODS]
    assert "train" not in rows[0]["folders"]
    assert [sorted(k for k in o["folders"] if ":" not in k) for o in rows[1:]] == [
        ["train"],
        ["respond", "train"],
        ["critique", "respond", "train"],
    ]
    assert rows[2]["folders"]["respond"] == rows[3]["folders"]["respond"], "one answer pass serves both"
    assert (swept / "report" / "sweep" / "index.html").stat().st_size > 10_000


def test_a_finished_sweep_is_skipped_and_its_report_left_alone(
    swept: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = swept / "report" / "sweep" / "index.html"
    before, made = contents(swept), page.stat().st_mtime_ns
    started = sum(os.times()[:4])  # seconds of this process and its children, not of tests beside it
    assert run_nsft(swept, toy_data, *SWEEP) == 0
    assert sum(os.times()[:4]) - started < 10
    assert capsys.readouterr().err == "4 of 4 cells are finished\n"
    assert contents(swept) == before
    assert page.stat().st_mtime_ns == made


def test_one_failed_cell_stops_no_other_and_is_named_with_its_log(
    nsft: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = ("recipe.max_length=12,512,${nowhere}", "seed=${hydra:job.num}")
    words = ("-m", "method=cont_sft", *moved, *QUICK)
    assert nsft(*words) == 1
    rows = outcomes(tmp_path)
    assert [o["status"] for o in rows] == ["failed", "ok", "failed"]
    assert "nowhere" in rows[2]["error"]
    assert "recipe.max_length" in rows[0]["error"]
    assert Path(rows[0]["log"]).read_text("utf-8").count("UserError") >= 1
    assert rows[0]["log"] in capsys.readouterr().err
    assert "failed" in (tmp_path / "report" / "sweep" / "index.html").read_text("utf-8")
    assert nsft(*words) == 1
    again = outcomes(tmp_path)
    assert [o["status"] for o in again] == ["failed", "ok", "failed"]
    assert again[1]["folders"] == rows[1]["folders"]
    assert "1 of 3 cells are finished\ncont_sft seed 0" in capsys.readouterr().err
    assert not logging.getLogger().handlers, "a cell's log is closed with it"


def test_without_readable_outcomes_no_cell_is_known_to_have_ended_well(swept: Path, tmp_path: Path) -> None:
    assert len(ended_well(swept / "runs" / "studies" / "sweep" / "cells.json")) == len(METHODS)
    text = (swept / "runs" / "studies" / "sweep" / "cells.json").read_text("utf-8")
    for damaged in (text[: len(text) // 2], "[1]", '[{"status": "ok"}]', "\x00"):
        (tmp_path / "cells.json").write_text(damaged)
        assert ended_well(tmp_path / "cells.json") == set()
    assert ended_well(tmp_path / "nowhere.json") == set()


def test_a_single_cell_prints_its_scores(
    swept: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_nsft(swept, toy_data, "method=cont_sft", *DEBUG) == 0
    assert "cont_sft" in capsys.readouterr().out


def test_more_samples_extend_the_answers_that_are_there(nsft: Run, tmp_path: Path) -> None:
    assert nsft("method=gt_dpo", *QUICK, "pairing.max_new_tokens=16", "source.size=4") == 0
    (folder,) = (tmp_path / "runs" / "respond").iterdir()
    first = (folder / "records.jsonl").read_bytes()
    assert nsft("method=gt_dpo", *QUICK, "pairing.max_new_tokens=16", "source.size=8") == 0
    assert list((tmp_path / "runs" / "respond").iterdir()) == [folder]
    second = (folder / "records.jsonl").read_bytes()
    assert second.startswith(first)
    assert len(second.splitlines()) == len(first.splitlines()) + 4


KILL = """
import os, sys
import nsft_exp.store as store
stage, rows = sys.argv[1], int(sys.argv[2])
written = 0
def kill():
    os.kill(os.getpid(), 9)
if stage == "train":
    import nsft_exp.checkpoint as checkpoint
    original = checkpoint.Checkpoints.on_train_batch_end
    def after(self, trainer, *a):
        original(self, trainer, *a)
        if trainer.global_step == rows:
            kill()
    checkpoint.Checkpoints.on_train_batch_end = after
else:
    original = store.Appender.__call__
    def counting(self, row):
        global written
        original(self, row)
        if stage in self.handle.name:
            written += 1
            if written == rows:
                self.handle.write(b'{"half": ')
                self.handle.flush()
                kill()
    store.Appender.__call__ = counting
from nsft_exp.__main__ import main
main(sys.argv[3:])
"""


ONCE_IN_EACH = (("respond", 3), ("critique", 2), ("train", 1), ("evaluate", 4))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_also_where_each_stage_was_killed(
    swept: Path, nsft: Run, tmp_path: Path, toy_data: Path
) -> None:
    words = ["method=nsft", *DEBUG, f"paths.data={toy_data}"]
    for stage, rows in ONCE_IN_EACH:
        command = [sys.executable, "-c", KILL, stage, str(rows), *words]
        killed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert killed.returncode == -9, killed.stderr
    assert nsft(*words) == 0
    expected = contents(swept, outcomes(swept)[METHODS.index("nsft")]["folders"].values())
    assert contents(tmp_path) == expected
    assert {name.split("/")[1] for name in expected} == {stage for stage, _ in ONCE_IN_EACH}


@pytest.mark.slow
def test_a_stage_in_a_process_of_its_own_gives_the_same_bytes(swept: Path, nsft: Run, tmp_path: Path) -> None:
    assert nsft("method=cont_sft", *QUICK, "launch=child") == 0
    folders = outcomes(swept)[METHODS.index("cont_sft")]["folders"]
    assert contents(tmp_path) == contents(swept, [folders["train"], folders["evaluate:pope"]])


def test_what_cannot_be_written_is_refused_before_any_work(
    nsft: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert nsft("method=cont_sft", *DEBUG, "paths.runs=file/runs") == 2
    assert "set paths.runs to a writable folder" in capsys.readouterr().err


def llava_source(root: Path, content: bytes, changes: dict[str, Any]) -> list[str]:
    """The words that choose a LLaVA-format source of one record with this image file."""
    (root / "images").mkdir(exist_ok=True)
    (root / "images" / "a.png").write_bytes(content)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    record = {"id": "r1", "image": "a.png", "conversations": turns} | changes
    (root / "data.json").write_text(json.dumps([record]))
    return [
        "source.files_from=null",
        f"source.file={root / 'data.json'}",
        f"source.image_root={root / 'images'}",
        "source.size=1",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"a\.png"),  # the image is no image
        ({"image": "b.png"}, r"b\.png"),
        ({"image": "../../etc/passwd"}, r"r1"),
        ({"conversations": []}, r"r1"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    changes: dict[str, Any], message: str, nsft: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = llava_source(tmp_path, b"\x89PNG broken", changes)
    assert nsft("method=gt_dpo", "preset=debug", *words) == 2
    (line,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("nsft: ")]
    assert re.search(message, line)
    assert not (tmp_path / "runs" / "respond").exists()


def test_held_out_samples_that_leave_none_to_train_on_are_refused_before_any_answer(
    nsft: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("method=gt_dpo", *QUICK, "source.size=null", "trainer.held_out=100000")
    assert nsft(*words) == 2
    assert "none is left to train on; lower it" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "respond").exists()
