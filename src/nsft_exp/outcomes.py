"""What the jobs of this process's multirun returned, in order, whatever launcher ran them."""

from __future__ import annotations

from typing import Any

OUTCOMES: list[dict[str, Any]] = []
"""Filled by the sweeper. It stands here because Hydra loads the sweeper's module a second time."""
