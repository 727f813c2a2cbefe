"""The scripts of `benchmarks/` run, at sizes that tell nothing but that."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_memory_of_dpo_with_a_copy_is_measured_with_two_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = script("memory", monkeypatch)
    row = memory.train("dpo, copy", "tiny", tmp_path / "run", None, steps=2)
    assert row["models_held"] == 2
    assert row["peak_gib"] > 0
    assert row["final_loss"] == pytest.approx(0.6931, abs=1e-3)  # log 2: the policy has hardly moved


def test_the_true_shape_is_that_of_the_published_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    memory = script("memory", monkeypatch)
    model, _ = memory.model("llava15_7b", None).base(torch.device("meta"), None)
    # llava-hf/llava-1.5-7b-hf: 7 063 427 072 parameters, a vocabulary of 32064, 24 x 24 image tokens
    assert sum(p.numel() for p in model.parameters()) == 7_063_427_072
    assert model.lm_head.weight.shape == (32064, 4096)
    assert model.config.image_seq_length == 576


def test_what_sharing_saves_is_measured_for_pairs_and_for_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = script("sharing", monkeypatch).measure(rows=2, answers=2, repeats=1)
    assert list(found) == ["gradients of 2 pairs", "2 answers to 2 requests"]
    assert all(shared > 0 and apart > 0 for shared, apart in found.values())
