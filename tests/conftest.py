"""Shared by all tests: offline, quiet, a fixed number of threads, and `nsft` in an empty directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the toy world's files, shared by the session (they are written once)."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def nsft(tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `nsft` in this process and an empty directory; returns the exit code."""
    from nsft_exp.__main__ import main

    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> int:
        verbs = list(words[:1]) if words and words[0] in ("report", "toy-base") else []
        overrides = [w for w in words[len(verbs) :] if not w.startswith("paths.data")]
        with pytest.raises(SystemExit) as ended:
            main([*verbs, *overrides, f"paths.data={toy_data}"])
        return int(ended.value.code or 0)

    return run
