"""Benchmarks during training: what is recorded, and that nothing of the training changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel

from nsft_exp.benchmark.pope import Pope
from nsft_exp.keys import is_ignored
from nsft_exp.method.dpo import DPO
from nsft_exp.records import Item, Request, Turn, UserError
from nsft_exp.vlm.scratch import ScratchLlava
from nsft_exp.watching import WatchedBenchmark, some_images, watched_benchmarks
from test_benchmark_pope import write_pope
from test_training import OPTIONS, Stop, Stopped
from tiny_training import adapter, draw, make_items, rows, train


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return make_items(tmp_path_factory.mktemp("items"))


@pytest.fixture(scope="module")
def pope(tmp_path_factory: pytest.TempPathFactory) -> WatchedBenchmark:
    """POPE's twelve questions about two pictures, sampled so that they would use up random numbers."""
    root = tmp_path_factory.mktemp("pope")
    write_pope(root)
    pictures = draw(root / "drawn", 2)
    for name, picture in zip(sorted(p.name for p in (root / "images").iterdir()), pictures, strict=True):
        (root / "images" / name).write_bytes(Path(picture).read_bytes())
    benchmark = Pope(str(root), image_root=str(root / "images"), max_new_tokens=3)
    return WatchedBenchmark("pope", benchmark, benchmark.requests())


def test_how_often_is_looked_is_in_no_key() -> None:
    assert is_ignored("trainer.evaluate_every")
    assert is_ignored("trainer.evaluate_limit")


def watching(folder: Path) -> list[dict[str, Any]]:
    return [row for row in rows(folder) if any(name.startswith("benchmark/") for name in row)]


def test_watching_changes_nothing_in_what_is_trained(
    items: list[Item], pope: WatchedBenchmark, tmp_path: Path
) -> None:
    options = {"lora_dropout": 0.3, "train_projector": True, "sample_answers": 2}
    train(DPO(), items, tmp_path / "alone" / "run", **options)
    run = tmp_path / "watched" / "run"
    train(DPO(), items, run, **options, watched=[pope], evaluate_every=3)
    file = "adapter/adapter_model.safetensors"
    assert (run / file).read_bytes() == (tmp_path / "alone" / "run" / file).read_bytes()
    seen = watching(run)
    assert [row["step"] for row in seen] == [3, 4]  # every third, and the last
    assert [row for row in rows(run) if row not in seen] == rows(tmp_path / "alone" / "run")
    answers = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["benchmark"], row["id"]) for row in answers] == [
        (step, "pope", request.id) for step in (3, 4) for request in pope.requests[:2]
    ]
    assert answers[0]["question"] == pope.requests[0].turns[-1].text


def test_the_last_look_is_at_the_model_that_is_kept(
    items: list[Item], pope: WatchedBenchmark, tmp_path: Path
) -> None:
    for precision in ("32-true", "bf16-mixed"):
        run = tmp_path / precision / "run"
        changes = {"precision": precision, "learning_rate": 0.05, "schedule": "constant"}
        train(DPO(), items, run, **changes, watched=[pope], evaluate_every=4, sample_answers=12)
        loaded = ScratchLlava(device="cpu").load()
        PeftModel.from_pretrained(loaded.model, run / "adapter")
        texts = {key: reply.text for key, (reply,) in loaded.generate(pope.requests)}
        seen = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
        same = sum(row["answer"] == texts[row["id"]] for row in seen)
        assert same == 12 if precision == "32-true" else same >= 10  # bf16 rounds


def test_a_stopped_training_has_the_same_looks_as_one_that_was_not(
    items: list[Item], pope: WatchedBenchmark, tmp_path: Path
) -> None:
    options = {**OPTIONS, "watched": [pope], "evaluate_every": 3}
    train(DPO(), items, tmp_path / "whole" / "run", items[:2], **options)
    run = tmp_path / "stopped" / "run"
    with pytest.raises(Stop):
        train(Stopped(), items, run, items[:2], **options)
    train(DPO(), items, run, items[:2], **options)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / "run" / name).read_bytes(), name
    assert len(watching(run)) == 3
    assert adapter(run).keys() == adapter(tmp_path / "whole" / "run").keys()


def test_the_questions_of_an_image_stay_together() -> None:
    requests = [Request(f"{n}", f"/images/{n % 10}.png", (Turn("prompt", "?"),)) for n in range(40)]
    some = some_images(requests, 10)
    assert len(some) == 12  # three images of four questions
    assert {r.image for r in requests if r not in some}.isdisjoint({r.image for r in some})
    assert some == [r for r in requests if r in some]
    assert some_images(requests, 64) == requests
    elsewhere = [Request(r.id, f"/data{r.image}", r.turns) for r in requests]
    assert [r.id for r in some_images(elsewhere, 10)] == [r.id for r in some]


def test_what_a_judge_scores_is_not_watched(tmp_path: Path) -> None:
    judge = {"_target_": "nsft_exp.benchmark.judge.Judge", "model": "gpt"}
    node = {"_target_": "nsft_exp.benchmark.mmhal.MmHal", "root": str(tmp_path), "judge": judge}
    with pytest.raises(UserError, match="evaluate_every: no rule scores mmhal; watch another benchmark"):
        watched_benchmarks({"mmhal": {**node, "name": "mmhal"}}, 64)
