"""Whole cells through the real main job, on a random model: what runs, what is skipped, what is resumed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., int]
DEBUG = ("preset=debug", "limit=6")
METHODS = ("base", "cont_sft", "gt_dpo", "nsft")


def outcomes(root: Path, study: str = "sweep") -> list[dict[str, Any]]:
    return json.loads((root / "runs" / "studies" / study / "cells.json").read_text("utf-8"))


def contents(root: Path) -> dict[str, bytes]:
    """Every file that holds a result: metrics, weights, per-item scores (no times, no logs)."""
    names = ("metrics.jsonl", "adapter_model.safetensors", "samples.jsonl")
    found = [p for p in root.rglob("*") if p.name in names]
    found += root.glob("evaluate/*/records.jsonl")
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(found)}


def test_a_sweep_runs_every_method_and_writes_the_report(nsft: Run, tmp_path: Path) -> None:
    assert nsft("-m", f"method={','.join(METHODS)}", *DEBUG) == 0
    rows = outcomes(tmp_path)
    assert [(o["label"], o["status"]) for o in rows] == [(m, "ok") for m in METHODS]
    assert "train" not in rows[0]["folders"]
    assert [sorted(k for k in o["folders"] if ":" not in k) for o in rows[1:]] == [
        ["train"],
        ["respond", "train"],
        ["critique", "respond", "train"],
    ]
    assert rows[2]["folders"]["respond"] == rows[3]["folders"]["respond"], "one answer pass serves both"
    assert (tmp_path / "report" / "sweep" / "index.html").stat().st_size > 10_000


def test_a_finished_sweep_is_skipped_and_its_report_left_alone(nsft: Run, tmp_path: Path) -> None:
    words = ("-m", "method=base,cont_sft", *DEBUG)
    assert nsft(*words) == 0
    page = tmp_path / "report" / "sweep" / "index.html"
    before, made = contents(tmp_path / "runs"), page.stat().st_mtime_ns
    started = time.perf_counter()
    assert nsft(*words) == 0
    assert time.perf_counter() - started < 10
    assert contents(tmp_path / "runs") == before
    assert page.stat().st_mtime_ns == made


def test_one_failed_cell_stops_no_other_and_is_named_with_its_log(
    nsft: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("-m", "method=cont_sft", "recipe.max_length=12,512", *DEBUG)
    assert nsft(*words) == 1
    rows = outcomes(tmp_path)
    assert [o["status"] for o in rows] == ["failed", "ok"]
    assert "recipe.max_length" in rows[0]["error"]
    assert Path(rows[0]["log"]).read_text("utf-8").count("UserError") >= 1
    assert rows[0]["log"] in capsys.readouterr().err
    assert "failed" in (tmp_path / "report" / "sweep" / "index.html").read_text("utf-8")


def test_a_single_cell_prints_its_scores(nsft: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert nsft("method=cont_sft", *DEBUG) == 0
    assert "cont_sft" in capsys.readouterr().out


def test_more_samples_extend_the_answers_that_are_there(nsft: Run, tmp_path: Path) -> None:
    assert nsft("method=gt_dpo", *DEBUG, "source.size=4") == 0
    (folder,) = (tmp_path / "runs" / "respond").iterdir()
    first = (folder / "records.jsonl").read_bytes()
    assert nsft("method=gt_dpo", *DEBUG, "source.size=8") == 0
    assert list((tmp_path / "runs" / "respond").iterdir()) == [folder]
    second = (folder / "records.jsonl").read_bytes()
    assert second.startswith(first)
    assert len(second.splitlines()) == len(first.splitlines()) + 4


def test_the_same_seed_gives_the_same_bytes(nsft: Run, tmp_path: Path) -> None:
    words = ("method=nsft", *DEBUG)
    assert nsft(*words, "paths.runs=a") == 0
    assert nsft(*words, "paths.runs=b") == 0
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first == second
    assert any(name.endswith("metrics.jsonl") for name in first)


KILL = """
import os, sys
import nsft_exp.store as store
stage, rows = sys.argv[1], int(sys.argv[2])
written = 0
def kill():
    os.kill(os.getpid(), 9)
if stage == "train":
    import nsft_exp.training as training
    original = training.Checkpoints.on_train_batch_end
    def after(self, trainer, *a):
        original(self, trainer, *a)
        if trainer.global_step == rows:
            kill()
    training.Checkpoints.on_train_batch_end = after
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


@pytest.mark.parametrize(("stage", "rows"), [("respond", 3), ("critique", 2), ("train", 1), ("evaluate", 4)])
def test_a_kill_in_any_stage_and_a_rerun_give_the_same_bytes(
    stage: str, rows: int, nsft: Run, tmp_path: Path, toy_data: Path
) -> None:
    words = ["method=nsft", *DEBUG, "trainer.checkpoint_every=1", f"paths.data={toy_data}"]
    assert nsft(*words, "paths.runs=whole") == 0
    command = [sys.executable, "-c", KILL, stage, str(rows), *words, "paths.runs=killed"]
    killed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert nsft(*words, "paths.runs=killed") == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_stage_in_a_process_of_its_own_gives_the_same_bytes(nsft: Run, tmp_path: Path) -> None:
    words = ("method=cont_sft", *DEBUG, "~benchmark.chair", "~benchmark.chair_t1", "~benchmark.vqa")
    assert nsft(*words, "paths.runs=here") == 0
    assert nsft(*words, "paths.runs=there", "launch=child") == 0
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


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
    assert nsft("method=gt_dpo", *DEBUG, *words) == 2
    (line,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("nsft: ")]
    assert re.search(message, line)
    assert not (tmp_path / "runs" / "respond").exists()
