"""A whole cell of nSFT on servers and processes: vLLM answers, a critic behind a server, two that train."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import POPE_ONLY, SMALL
from serving_vllm import free_port
from test_critic_llm_kill import manifest, results

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
SCRIPT = Path(__file__).with_name("scripted_critic.py")
CELL = (
    *("method=nsft", "vlm=toy", "vlm.device=cpu", "vlm.engine=vllm", "source.size=24"),
    *(
        "critic=llm",
        "critic.model=scripted",
        "critic.concurrency=3",
        "critic.attempts=2",
        "critic.backoff=0.01",
    ),
    *("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.threads=1"),
    *("recipe.batch_size=8", "recipe.epochs=2", *SMALL, *POPE_ONLY, "limit=24"),
)


@contextmanager
def critic_serving(port: int, log: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """The rule critic behind a server in a process of its own; what it is asked stands in `log`."""
    command = [sys.executable, str(SCRIPT), f"--port={port}", f"--seconds={seconds}", f"--log={log}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert str(port) in process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def start(root: Path, *words: str) -> subprocess.Popen[str]:
    root.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "nsft_exp", *CELL, *words]
    return subprocess.Popen(command, cwd=root, text=True, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; returns its exit code and what it said, in one line."""
    _, said = process.communicate(timeout=240)
    return process.returncode, " ".join(said.split())


def kept(root: Path) -> set[str]:
    """The keys of the requests whose reply is on the disk."""
    file = root / "runs" / "critic" / "calls.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return {row["key"] for row in map(json.loads, lines) if row["event"] == "reply"}


@pytest.fixture(scope="module")
def whole(vllm_python: str, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a cell that nothing has disturbed; its command serves the critic for itself."""
    root = tmp_path_factory.mktemp("whole")
    nsft = [sys.executable, "-m", "nsft_exp", *CELL, f"vlm.python={vllm_python}", f"paths.data={toy_data}"]
    command = [sys.executable, str(SCRIPT), "--port=0", f"--log={root}/asked", *nsft, "critic.base_url={url}"]
    assert subprocess.run(command, cwd=root).returncode == 0
    return root


def manifests(root: Path) -> dict[str, Any]:
    return {
        f.parent.parent.name: json.loads(f.read_text()) for f in (root / "runs").glob("*/*/manifest.json")
    }


def test_a_cell_runs_on_servers_and_processes_from_one_command(whole: Path) -> None:
    found = manifests(whole)
    assert set(found) == {"respond", "critique", "train", "evaluate"}
    assert found["respond"]["records"] == found["critique"]["records"] == 24
    usage = found["critique"]["usage"]
    asked = (whole / "asked").read_text().split()
    assert (
        usage["requests"]
        == usage["replies"]
        == len(asked)
        == len(set(asked))
        == found["respond"]["statuses"]["ok"]
    )
    assert found["critique"]["statuses"]["ok"] >= 8
    assert found["train"]["counts"]["corrections"] == found["critique"]["statuses"]
    assert found["evaluate"]["counts"]["scored"] == 24


def test_a_cell_whose_critic_dies_half_way_goes_on_to_the_same_bytes(
    whole: Path, vllm_python: str, toy_data: Path, tmp_path: Path
) -> None:
    root, port = tmp_path / "killed", free_port()
    shutil.copytree(whole / "runs" / "respond", root / "runs" / "respond")
    words = (
        f"vlm.python={vllm_python}",
        f"paths.data={toy_data}",
        f"critic.base_url=http://127.0.0.1:{port}/v1",
    )
    with critic_serving(port, tmp_path / "before", seconds=0.1) as critic:
        process = start(root, *words)
        end = time.monotonic() + 120
        while len(kept(root)) < 7 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        critic.send_signal(signal.SIGKILL)
        code, said = ended(process)
    assert (code, "Traceback" in said) == (2, False), said
    assert f"critic: http://127.0.0.1:{port}/v1: no reply after 2 attempts (connection" in said
    received = kept(root)
    asked = (tmp_path / "before").read_text().split()
    assert 7 <= len(received) < manifest(whole)["usage"]["replies"]
    assert f"{len(received)} of {manifest(whole)['usage']['replies']} replies are kept" in said
    assert not list((root / "runs" / "critique").glob("*/manifest.json")), "it is not complete"
    with critic_serving(port, tmp_path / "after", seconds=0.0):
        code, said = ended(start(root, *words))
    assert code == 0, said
    again = (tmp_path / "after").read_text().split()
    assert not received & set(again), "a reply that was received was asked for again"
    assert len(set(asked) & set(again)) <= 3, "at most those in flight"
    usage = manifest(root)["usage"]
    assert usage["replies"] == manifest(whole)["usage"]["replies"]
    assert usage["requests"] == usage["replies"] + usage["lost"] + sum(usage["failed"].values())
    assert results(root) == results(whole)
    names = " ".join(results(root))
    for part in ("respond/", "critique/", "metrics.jsonl", "adapter_model", "evaluate/", "answers.jsonl"):
        assert part in names, part
