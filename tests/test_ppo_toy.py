"""PPO on the toy world: it raises the reward of prompts that it was not trained on, near its reference."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, stdev

import pytest

from conftest import POPE_ONLY, run_nsft
from nsft_exp.store import StageFolder
from tiny_training import rows

WORDS = (
    "method=llava_rlhf",
    "source.size=64",
    "source.files_from.scenes=200",
    "benchmark.scenes=12",
    "limit=1",
    *POPE_ONLY,
    "recipe.learning_rate=4e-3",
    "recipe.epochs=2",
    "reward.recipe={epochs: 4, learning_rate: 3e-3}",
    "method.steps_per_rollout=1",
    "method.inner_epochs=3",
    "trainer.threads=1",
    "trainer.held_out=24",
    "trainer.sample_answers=24",
)
"""Few samples, few large steps: for the toy's own recipe this would take some minutes."""


@pytest.mark.slow
def test_ppo_raises_the_reward_of_held_out_prompts_at_a_bounded_divergence(tmp_path: Path) -> None:
    assert run_nsft(tmp_path, tmp_path / "data", *WORDS) == 0
    (folder,) = (p for p in (tmp_path / "runs" / "train").iterdir() if "-reward-" not in p.name)
    answers = list(StageFolder(folder).records("samples.jsonl"))
    before = {row["id"]: row["score"] for row in answers if row["step"] == 0}
    after = {row["id"]: row["score"] for row in answers if row["step"] > 0}
    gains = [after[name] - before[name] for name in before]
    assert len(gains) == 24
    assert mean(gains) > 1.96 * stdev(gains) / math.sqrt(24)
    last = rows(folder)[-1]
    assert 0 < last["validation/kl"] < 30
