"""Shared by all tests: offline, quiet, a fixed number of threads, and `nsft` in an empty directory."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from functools import partial
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the test processes share the cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))


def pytest_collection_finish() -> None:
    """Leave what the imports have made, millions of objects, out of every later search for garbage."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Give back the threads that a training took: the tests after it share the cores with other processes."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the toy world's files, shared by the session (they are written once)."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The interpreter that has vLLM: that of `make vllm-env`, or NSFT_VLLM_PYTHON."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    python = os.environ.get("NSFT_VLLM_PYTHON", str(ROOT / ".venv-vllm" / "bin" / "python"))
    if not Path(python).is_file():
        pytest.skip("there is no vLLM environment: make vllm-env, or name one with NSFT_VLLM_PYTHON")
    return python


SMALL = ("source.files_from.scenes=60", "benchmark.scenes=12")
"""A toy world that is written in a moment."""
DEBUG = ("preset=debug", "limit=6", *SMALL)
POPE_ONLY = ("~benchmark.chair", "~benchmark.chair_t1", "~benchmark.vqa")


def run_nsft(root: Path, data: Path, *words: str) -> int:
    """Run `nsft` in this process and the directory `root`; returns the exit code."""
    from nsft_exp.__main__ import main

    verbs = list(words[:1]) if words and words[0] in ("report", "toy-base") else []
    overrides = [w for w in words[len(verbs) :] if not w.startswith("paths.data")]
    with chdir(root), pytest.raises(SystemExit) as ended:
        main([*verbs, *overrides, f"paths.data={data}"])
    return int(ended.value.code or 0)


@pytest.fixture
def nsft(tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `nsft` in this process and an empty directory; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    return partial(run_nsft, tmp_path, toy_data)
