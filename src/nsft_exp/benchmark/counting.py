"""Metrics from summed counts: elementwise for numbers and arrays, NaN where undefined."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


def ratio(part: Any, whole: Any, scale: float = 1.0) -> Any:
    """Return scale * part / whole elementwise; NaN where `whole` is 0."""
    if isinstance(whole, (int, float)) and isinstance(part, (int, float)):
        return scale * part / whole if whole else math.nan
    import numpy as np

    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    nan = np.full(np.broadcast(part, whole).shape, np.nan)
    return np.divide(scale * part, whole, out=nan, where=whole != 0)


def percent(part: Any, whole: Any) -> Any:
    """Return 100 * part / whole, NaN where `whole` is 0."""
    return ratio(part, whole, 100.0)


def mean(values: Iterable[Any]) -> Any:
    """Return the plain mean of metrics, elementwise; NaN if any is NaN or there is none."""
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def accuracy(counts: Mapping[str, Any], group: str = "") -> Any:
    """Return the percentage of `correct` among `questions`, in all or in a group (`<group>/correct`)."""
    prefix = f"{group}/" if group else ""
    return percent(get(counts, f"{prefix}correct"), get(counts, f"{prefix}questions"))


def get(counts: Mapping[str, Any], key: str) -> Any:
    """Return a summed count; 0 where no item has it."""
    return counts.get(key, 0)
