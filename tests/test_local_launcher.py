"""Several cells at once on one machine: real cells as children, their devices, their failures, their end."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins

import conftest
from nsft_exp.cell_process import environment, how_it_ended
from nsft_exp.device import Slots, assign_slots, device_groups, visible_devices
from nsft_exp.records import UserError

# --- devices: plain values, no GPU needed ----------------------------------------------------------


def test_devices_are_numbered_unless_the_environment_names_them() -> None:
    assert visible_devices(None, 3) == ["0", "1", "2"]
    assert visible_devices("2, GPU-5f", 2) == ["2", "GPU-5f"]
    assert visible_devices("2,3,9", 2) == ["2", "3"], "CUDA counts no name after the first that is not there"
    assert visible_devices("", 0) == []


def test_a_group_has_as_many_devices_as_a_cell_is_given() -> None:
    assert device_groups(["0", "1", "2", "3"], 1) == ["0", "1", "2", "3"]
    assert device_groups(["4", "5", "6", "7", "8"], 2) == ["4,5", "6,7"]
    assert device_groups([], 2) == []


@pytest.mark.parametrize("size", [0, 3])
def test_a_group_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=f"devices_per_cell={size}: there are 2 GPUs; take 1 to 2"):
        device_groups(["0", "1"], size)


def test_slots_follow_the_gpus_and_without_one_the_cores() -> None:
    assert assign_slots(None, ["0,1", "2,3"], threads=2, cores=64) == ["0,1", "2,3"]
    assert assign_slots(None, [], threads=2, cores=7) == [None] * 3
    assert assign_slots(None, [], threads=4, cores=2) == [None]
    assert assign_slots(None, [], threads=None, cores=8) == [None], "such a cell takes all cores"


def test_more_slots_than_groups_share_them_and_fewer_leave_some_unused() -> None:
    assert assign_slots(3, ["0", "1"], None, 1) == ["0", "1", "0"]
    assert assign_slots(1, ["0", "1"], None, 1) == ["0"]
    assert assign_slots(3, [], None, 1) == [None] * 3


def test_a_device_is_given_back_also_after_a_failure() -> None:
    slots = Slots(["0", "1"])
    assert (slots.take(), slots.take()) == ("0", "1")
    with pytest.raises(RuntimeError), slots.giving_back("1"):
        raise RuntimeError
    assert slots.take() == "1"


def test_a_cell_sees_its_devices_only() -> None:
    assert environment({"A": "b", "CUDA_VISIBLE_DEVICES": "0,1"}, "1")["CUDA_VISIBLE_DEVICES"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in environment({"A": "b"}, None)
    assert environment({"A": "b"}, None)["A"] == "b"


def test_the_end_of_a_child_is_put_into_words() -> None:
    assert how_it_ended(-signal.SIGKILL) == "was ended by SIGKILL (out of memory?)"
    assert how_it_ended(-signal.SIGSEGV) == "was ended by SIGSEGV"
    assert how_it_ended(3) == "ended with code 3"


# --- whole sweeps ----------------------------------------------------------------------------------

FAULTS = """
import os, signal, subprocess, time
def die(**_):
    print("about to die", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
def look(**_):
    with open(f"{os.getpid()}.gpus", "w") as file:
        file.write(os.environ["CUDA_VISIBLE_DEVICES"])
    raise ValueError("looked")
def wait(**_):
    other = subprocess.Popen(["sleep", "60"])
    with open(f"{os.getpid()}.part", "w") as file:
        file.write(f"{os.getpid()} {other.pid}")
    os.rename(file.name, f"{os.getpid()}.pids")
    time.sleep(60)
"""
ARMS = {
    "method=gt_dpo": "ok",
    "method=nsft": "ok",
    "method=cont_sft source.file=nowhere.json": "failed",
    "method=cont_sft source._target_=faults.die": "failed",
    "method=base": "ok",
}
DEBUG = (*conftest.DEBUG, *conftest.POPE_ONLY)
LOCAL = ("hydra/launcher=local", "hydra.launcher.slots=2")


def arms(words: list[str]) -> str:
    return f"hydra.sweeper.arms={json.dumps(words)}"


@dataclass
class Sweep:
    """A sweep that was run as a process, and the words to run it again."""

    root: Path
    words: tuple[str, ...]
    code: int
    err: str

    @property
    def outcomes(self) -> list[dict[str, Any]]:
        return json.loads((self.root / "runs/studies/sweep/cells.json").read_text("utf-8"))


def start(root: Path, *words: str) -> subprocess.Popen[str]:
    (root / "faults.py").write_text(FAULTS)
    command = [sys.executable, "-m", "nsft_exp", "-m", *words]
    return subprocess.Popen(
        command,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=listen_to_interrupts,
    )


def listen_to_interrupts() -> None:
    """A shell has the jobs that it starts in the background ignore SIGINT, and their children with them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(root: Path, *words: str) -> Sweep:
    process = start(root, *words)
    _, err = process.communicate()
    return Sweep(root, words, process.returncode, err)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Sweep:
    return run(tmp_path_factory.mktemp("local"), *LOCAL, arms(list(ARMS)), *DEBUG, f"paths.data={toy_data}")


def contents(runs: Path) -> dict[str, bytes]:
    """Every file that holds a result (no times, no logs)."""
    names = ("records.jsonl", "metrics.jsonl", "adapter_model.safetensors")
    found = [p for p in runs.rglob("*") if p.name in names]
    return {str(p.relative_to(runs)): p.read_bytes() for p in sorted(found)}


@pytest.mark.slow
def test_outcomes_are_in_job_order_and_a_failure_stops_nothing(sweep: Sweep) -> None:
    assert [o["status"] for o in sweep.outcomes] == list(ARMS.values()), sweep.err
    assert [o["label"] for o in sweep.outcomes] == ["gt_dpo", "nsft", "cont_sft", "cont_sft", "base"]
    assert sweep.code == 1
    page = (sweep.root / "report/sweep/index.html").read_text("utf-8")
    assert "nowhere.json" in page


@pytest.mark.slow
def test_a_refused_cell_says_what_is_wrong_as_it_would_alone(sweep: Sweep) -> None:
    outcome = sweep.outcomes[2]
    assert outcome["refused"]
    assert "nowhere.json" in outcome["error"]
    assert f"nsft: cont_sft seed 0: {outcome['error']} (log: {outcome['log']})" in sweep.err


@pytest.mark.slow
def test_a_killed_cell_is_a_failed_outcome_with_its_last_lines_in_the_log(sweep: Sweep) -> None:
    outcome = sweep.outcomes[3]
    assert outcome["error"] == (
        "the cell's process was ended by SIGKILL (out of memory?); its last line: about to die"
    )
    assert outcome["seed"] == 0
    assert outcome["config"]["source"]["_target_"] == "faults.die"
    log = Path(outcome["log"])
    assert log == sweep.root / "runs/studies/sweep/3/nsft.log"
    assert log.read_text("utf-8").splitlines()[-1] == "about to die"


@pytest.mark.slow
def test_every_line_names_its_cell(sweep: Sweep) -> None:
    lines = [line for line in sweep.err.splitlines() if " | " in line]
    assert {line.partition(" | ")[0] for line in lines} == {
        f"#{number} {o['label']} seed 0" for number, o in enumerate(sweep.outcomes)
    }
    ends = [line.rpartition("(")[2] for line in lines if line.endswith("/5)")]
    assert ends == [f"cells {number}/5)" for number in range(1, 6)]


@pytest.mark.slow
def test_two_cells_run_at_once_and_never_three(sweep: Sweep) -> None:
    spans = []
    for outcome in sweep.outcomes:
        stamps = [line[:23] for line in Path(outcome["log"]).read_text("utf-8").splitlines()]
        times = [datetime.strptime(s, "%Y-%m-%d %H:%M:%S,%f") for s in stamps if s[:4].isdigit()]
        spans.append((times[0], times[-1]))
    assert spans[2][0] > min(spans[0][1], spans[1][1]), "the third waits for one of the first two"
    at_once = [sum(first <= moment <= last for first, last in spans) for moment, _ in spans]
    assert max(at_once) == 2


@pytest.mark.slow
def test_cells_that_share_their_answers_ask_once(sweep: Sweep) -> None:
    first, second = (o["folders"]["respond"] for o in sweep.outcomes[:2])
    assert first == second
    answers = sweep.root / first / "records.jsonl"
    rows = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    assert len(rows) == len({row["id"] for row in rows}) == 8


@pytest.mark.slow
def test_the_results_are_those_of_one_cell_after_another(
    sweep: Sweep, nsft: Callable[..., int], tmp_path: Path
) -> None:
    assert nsft("-m", arms([arm for arm, end in ARMS.items() if end == "ok"]), *DEBUG) == 0
    theirs = contents(tmp_path / "runs")
    assert contents(sweep.root / "runs") == theirs
    assert {Path(name).parts[0] for name in theirs} == {"respond", "critique", "train", "evaluate"}
    config = ".hydra/config.yaml"
    ours = (sweep.root / "runs/studies/sweep/1" / config).read_bytes()
    assert ours == (tmp_path / "runs/studies/sweep/1" / config).read_bytes()


@pytest.mark.slow
def test_a_finished_sweep_is_skipped(sweep: Sweep) -> None:
    results = contents(sweep.root / "runs")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    again = run(sweep.root, *sweep.words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert again.code == 1
    assert contents(sweep.root / "runs") == results
    assert [o["status"] for o in again.outcomes] == list(ARMS.values())
    assert after.ru_utime - before.ru_utime < 10


def test_each_cell_sees_the_gpus_of_its_slot_and_a_failed_one_frees_them(
    nsft: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = Plugins.instance().class_name_to_class["hydra_plugins.nsft_launchers.LocalLauncher"]
    monkeypatch.setitem(launcher.devices.__globals__, "num_gpus", lambda: 5)  # this machine may have none
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "faults.py").write_text(FAULTS)
    words = ("hydra/launcher=local", "hydra.launcher.devices_per_cell=2", "source._target_=faults.look")
    assert nsft("-m", *words, "method=cont_sft", "seed=0,1,2,3", *DEBUG) == 1
    seen = [file.read_text() for file in tmp_path.glob("*.gpus")]
    assert len(seen) == 4, "all four ran, though each failed"
    assert set(seen) == {"0,1", "2,3"}


def test_slots_that_cannot_be_are_one_line_before_any_work(
    nsft: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nsft("-m", "hydra/launcher=local", "hydra.launcher.slots=0", "seed=0,1", *DEBUG) == 2
    assert capsys.readouterr().err == "nsft: hydra.launcher.slots=0: must be at least 1, or null\n"
    assert not list((tmp_path / "runs").glob("studies/*/0"))


# --- how it ends -----------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    """True for a process that runs (a zombie has ended)."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")


def until(condition: Callable[[], Any], seconds: float) -> Any:
    """Wait for a condition and return its value; at most so many seconds."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_when_the_sweep_is_ended_its_cells_and_all_they_started_end(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = start(tmp_path, *LOCAL, "source._target_=faults.wait", "method=cont_sft", "seed=0,1,2", *DEBUG)
    assert until(lambda: len(list(tmp_path.glob("*.pids"))) == 2, 60)
    pids = [int(pid) for file in tmp_path.glob("*.pids") for pid in file.read_text().split()]
    assert len(pids) == 4
    assert all(alive(pid) for pid in pids)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert until(lambda: not any(alive(pid) for pid in pids), 10)
    assert len(list(tmp_path.glob("*.pids"))) == 2, "the third cell was not started"
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert err.splitlines()[-1] == "nsft: interrupted; the same command goes on where it stopped"


HOLD = """
import sys, time
from nsft_exp.store import StageFolder
with StageFolder(__import__("pathlib").Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_second_cell_waits_for_a_shared_stage_and_goes_on_when_the_first_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "stage")]
    with subprocess.Popen([*command, "60"], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE) as second:
            time.sleep(1)
            assert second.poll() is None, "it must wait"
            first.kill()
            assert second.wait(timeout=20) == 0
