"""Cells as submitit's jobs: real jobs of its local executor, and what SLURM would be asked for."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import DEBUG, POPE_ONLY
from nsft_exp.config import compose_config

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None,
    reason="hydra-submitit-launcher is not installed (pip install -e '.[slurm]')",
)


def test_slurm_is_asked_for_one_task_and_warns_before_its_limit() -> None:
    launcher = compose_config(["hydra/launcher=slurm"]).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.tasks_per_node, launcher.max_num_timeout) == (1, 20)
    assert launcher.signal_delay_s >= 120


@pytest.mark.slow
def test_each_cell_is_a_job_and_the_report_comes_after_them(nsft: Callable[..., int], tmp_path: Path) -> None:
    words = ("-m", "hydra/launcher=submitit_local", "method=base,cont_sft", *DEBUG, *POPE_ONLY)
    assert nsft(*words) == 0
    cells = json.loads((tmp_path / "runs/studies/sweep/cells.json").read_text("utf-8"))
    assert [(c["label"], c["status"]) for c in cells] == [("base", "ok"), ("cont_sft", "ok")]
    assert (tmp_path / "report/sweep/index.html").exists()
    (adapter,) = (tmp_path / "runs/train").glob("*/adapter/adapter_model.safetensors")
    made = adapter.stat().st_mtime_ns
    assert nsft(*words) == 0
    assert adapter.stat().st_mtime_ns == made, "a finished cell is not trained again"
