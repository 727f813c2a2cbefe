"""Training on several processes: the same curve as with one, resumed with another number, ended whole."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from conftest import DEBUG, POPE_ONLY, run_nsft
from nsft_exp.records import UserError
from nsft_exp.torchrun import torchrun_words
from nsft_exp.world import World

WORDS = (
    *DEBUG,
    *POPE_ONLY,
    "source.size=12",
    "recipe.batch_size=5",
    "recipe.epochs=2",
    "trainer.micro_batch=2",
)
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.threads=1", "trainer.devices=2")
PARTS = ("trainer=fsdp2", *TWO[1:])
ZERO = ("trainer=deepspeed", *TWO[1:])
ZERO_3 = (*ZERO, "trainer.zero_stage=3")
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="there is no DeepSpeed here: make deepspeed"
)
LONG = "recipe.epochs=40"
"""120 steps: enough to be stopped in."""
ONE = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.threads=1", "trainer.devices=1")


ANSWERS = ("chosen", "rejected")


def folder_of(root: Path) -> Path:
    """The one train folder beneath a directory."""
    (folder,) = (root / "runs" / "train").iterdir()
    return folder


def curve(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder_of(root) / "metrics.jsonl").read_text("utf-8").splitlines()]


def weights(root: Path) -> dict[str, torch.Tensor]:
    folder = folder_of(root)
    whole = folder / "model" / "model.safetensors"
    return load_file(whole if whole.exists() else folder / "adapter" / "adapter_model.safetensors")


def assert_same_curve(one: Path, two: Path) -> list[int]:
    """Losses within 1e-5; ten times that for diagnostics. Differences of answers' log-probabilities may be
    off by what the sums in float32 are.
    """
    first, second = curve(one), curve(two)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        rounding = 4 * torch.finfo(torch.float32).eps * sum(abs(a.get(f"logp/{r}", 0.0)) for r in ANSWERS)
        for name, value in a.items():
            exact = name.partition("/")[0] not in ("margin", "logratio")
            assert b[name] == pytest.approx(value, rel=1e-4, abs=1e-5 if exact else 1e-5 + rounding), name
        losses = {name for name in a if name.split("/")[0] in ("loss", "validation") and "loss" in name}
        assert {n: b[n] for n in losses} == pytest.approx({n: a[n] for n in losses}, rel=1e-5, abs=1e-6)
    return [row["step"] for row in second]


def assert_same_training(one: Path, two: Path, steps: int = 6) -> None:
    assert assert_same_curve(one, two) == list(range(1, steps + 1))
    assert_same_weights(one, two)


def assert_same_weights(one: Path, two: Path) -> None:
    there = weights(two)
    for name, value in weights(one).items():
        assert torch.allclose(there[name], value, rtol=1e-3, atol=1e-6), name


def started_in(folder: Path, data: Path, words: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nsft_exp", *WORDS, f"paths.data={data}", *words]
    return subprocess.Popen(command, cwd=folder, text=True, stderr=subprocess.PIPE, start_new_session=True)


@pytest.fixture
def cell(tmp_path: Path, toy_data: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `nsft` with these words in a directory of its own (`at`); the process is given.

    What a failed test has left running ends with the test, its ranks too.
    """
    started: list[subprocess.Popen[str]] = []

    def start(at: str, *words: str) -> subprocess.Popen[str]:
        (tmp_path / at).mkdir(exist_ok=True)
        started.append(started_in(tmp_path / at, toy_data, words))
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Callable[..., Path]:
    """Run `nsft` with these words in this process, once for all tests; its directory is given."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*words: str) -> Path:
        if words not in made:
            made[words] = tmp_path_factory.mktemp("alone")
            assert run_nsft(made[words], toy_data, *WORDS, *words) == 0
        return made[words]

    return run


def done(process: subprocess.Popen[str]) -> str:
    """Wait for a process that must end well; returns what it said."""
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nsft", "gt_dpo"])
def test_two_processes_train_as_one_does(method: str, tmp_path: Path, cell: Any, alone: Any) -> None:
    words = (f"method={method}", "trainer.held_out=3", "trainer.validate_every=6", "trainer.evaluate_every=3")
    two = cell("two", *TWO, *words)
    one = alone(*words)
    done(two)
    assert assert_same_curve(one, tmp_path / "two") == [1, 2, 3, 3, 4, 5, 6, 6, 6]
    *_, validated, watched = curve(tmp_path / "two")
    assert "validation/loss" in validated
    assert "benchmark/pope/accuracy" in watched


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "method", "tuning", "reference"),
    [
        (PARTS, "nsft", "full", "auto"),
        (PARTS, "nsft", "lora", "auto"),
        (PARTS, "gt_dpo", "lora", "adapter_off"),
        (PARTS, "gt_dpo", "full", "cached"),
        (PARTS, "gt_dpo", "full", "copy"),
        pytest.param(ZERO, "nsft", "full", "auto", marks=needs_deepspeed),
        pytest.param(ZERO, "gt_dpo", "lora", "adapter_off", marks=needs_deepspeed),
        pytest.param(ZERO_3, "nsft", "lora", "auto", marks=needs_deepspeed),
        pytest.param(ZERO_3, "gt_dpo", "lora", "adapter_off", marks=needs_deepspeed),
        pytest.param(ZERO_3, "gt_dpo", "full", "copy", marks=needs_deepspeed),
    ],
)
def test_parts_on_every_rank_train_as_one_process_does(
    how: Sequence[str], method: str, tuning: str, reference: str, tmp_path: Path, cell: Any, alone: Any
) -> None:
    words = (f"method={method}", f"tuning={tuning}", f"trainer.reference={reference}")
    words += ("tuning.train_projector=true",) if method == "nsft" else ()
    # three held out for two ranks, so that one of them has a pass less; answers are all ranks' work too
    held_out = ("trainer.held_out=3", "trainer.validate_every=3", "trainer.sample_answers=2")
    process = cell("two", *how, *words, *held_out)
    one, two = alone(*words, *held_out), tmp_path / "two"
    done(process)
    assert assert_same_curve(one, two)[-1] == 6
    assert_same_weights(one, two)
    answers = [(folder_of(root) / "samples.jsonl").read_text("utf-8") for root in (one, two)]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_a_rank_holds_its_part_of_the_layers_and_their_gradients_are_summed(tmp_path: Path) -> None:
    script = Path(__file__).with_name("layers_in_parts.py")
    words = ["--standalone", "--nproc-per-node=2", str(script), str(tmp_path)]
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    for rank in ranks:
        assert rank["held"] == pytest.approx(rank["layers"] / 2, rel=0.02)
        assert rank["gradient"] == pytest.approx(rank["expected"], rel=1e-5)
        assert rank["norm"] == pytest.approx(rank["whole_norm"], rel=1e-5)


@pytest.mark.slow
def test_a_cached_reference_is_made_by_all_processes_together(tmp_path: Path, cell: Any, alone: Any) -> None:
    words = ("method=gt_dpo", "trainer.reference=cached")
    process = cell("two", *TWO, *words)
    one = alone(*words)
    done(process)
    assert_same_training(one, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "tuning"),
    [
        pytest.param(TWO, ONE, "lora", id="2 to 1"),
        pytest.param(ONE, TWO, "lora", id="1 to 2"),
        pytest.param(PARTS, ONE, "full", id="parts to 1"),
        pytest.param(ONE, PARTS, "full", id="1 to parts"),
        pytest.param(PARTS, PARTS, "lora", id="parts to parts"),
        pytest.param(ZERO, ONE, "lora", id="ZeRO-2 to 1", marks=needs_deepspeed),
        pytest.param(ONE, ZERO, "full", id="1 to ZeRO-2", marks=needs_deepspeed),
        pytest.param(ZERO_3, PARTS, "full", id="ZeRO-3 to parts", marks=needs_deepspeed),
        pytest.param(TWO, ZERO_3, "full", id="2 to ZeRO-3", marks=needs_deepspeed),
    ],
)
def test_a_stopped_training_goes_on_with_another_number_of_processes(
    before: Sequence[str], after: Sequence[str], tuning: str, tmp_path: Path, cell: Any, alone: Any
) -> None:
    how = ("method=cont_sft", f"tuning={tuning}", LONG, "recipe.learning_rate=1e-5")
    stopped = cell("stopped", *before, *how)
    wait_for_rows(tmp_path / "stopped", 2, stopped)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, said
    assert "the same command goes on" in said
    assert (folder_of(tmp_path / "stopped") / "checkpoint" / "last.ckpt").exists()
    assert len(curve(tmp_path / "stopped")) < 120
    done(cell("stopped", *after, *how))
    assert_same_training(alone(*how), tmp_path / "stopped", 120)


def wait_for_rows(root: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until a training has logged so many steps."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        files = list((root / "runs").glob("train/*/metrics.jsonl"))
        if files and files[0].read_text("utf-8").count("\n") >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {count} rows: {process.communicate()[1] if process.poll() is not None else ''}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [TWO, PARTS, pytest.param(ZERO_3, marks=needs_deepspeed)],
    ids=["whole", "in parts", "ZeRO-3"],
)
def test_a_killed_rank_ends_the_cell_and_the_same_command_goes_on(
    how: Sequence[str], tmp_path: Path, cell: Any, alone: Any
) -> None:
    process = cell("cell", "method=cont_sft", *how, LONG)
    wait_for_rows(tmp_path / "cell", 1, process)
    ranks = [
        p for p in psutil.Process(process.pid).children(recursive=True) if "nsft_exp.rank" in p.cmdline()
    ]
    rank = next(p for p in ranks if p.environ().get("RANK") == "1")
    rank.kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "training on several processes ended" in said
    assert not (folder_of(tmp_path / "cell") / "adapter").exists()
    assert not (folder_of(tmp_path / "cell") / "manifest.json").exists()
    done(cell("cell", "method=cont_sft", *how, LONG))
    assert_same_training(alone("method=cont_sft", LONG), tmp_path / "cell", 120)


@pytest.mark.slow
def test_two_groups_of_processes_meet_at_a_rendezvous(tmp_path: Path, cell: Any, alone: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    words = ("method=cont_sft", *ONE, "trainer.num_nodes=2", f"trainer.rendezvous={place}")
    nodes = [cell("nodes", *words) for _ in range(2)]
    one = alone("method=cont_sft")
    for node in nodes:
        done(node)
    assert_same_training(one, tmp_path / "nodes")


def test_shares_are_whole_examples_of_about_as_many_tokens() -> None:
    lengths = [90, 10, 50, 40, 60, 20, 30]
    shares = [World(rank, 3).share(range(7), lengths) for rank in range(3)]
    assert sorted(n for share in shares for n in share) == list(range(7))
    assert [sum(lengths[n] for n in share) for share in shares] == [90 + 20 + 10, 60 + 30, 50 + 40]
    assert World(1, 2).share([4], lengths) == []


def test_several_nodes_need_a_place_to_meet() -> None:
    with pytest.raises(UserError, match=r"trainer\.rendezvous"):
        torchrun_words({"devices": 2, "num_nodes": 2}, [])
    assert "--rdzv-endpoint=a:1" in torchrun_words({"devices": 2, "num_nodes": 2, "rendezvous": "a:1"}, [])
