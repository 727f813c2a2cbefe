"""What the jobs of this process's multirun returned, in order, whatever launcher ran them."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

OUTCOMES: list[dict[str, Any]] = []
"""Filled by the sweeper. It stands here because Hydra loads the sweeper's module a second time."""

CONFIGS: list[DictConfig] = []
"""The jobs' configs, from the sweeper too: a job that ran in another process leaves none here itself."""
