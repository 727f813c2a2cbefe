"""Resampling weights, percentile and t-intervals with their p-values, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]
LEVEL = 0.95


def multiplicities(num: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return [size, num]: how often each of `num` things is drawn in `num` draws with replacement."""
    drawn = rng.integers(num, size=(size, num)) + num * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * num).reshape(size, num).astype(float)


def percentile_interval(drawn: np.ndarray, level: float = LEVEL) -> tuple[Interval, float]:
    """Return the percentile interval of replicates and the two-sided p-value of zero that belongs to it."""
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return (float(low), float(high)), min(1.0, 2 * (1 + int(tail)) / (1 + len(drawn)))


def student_interval(
    values: Sequence[float] | np.ndarray, level: float = LEVEL
) -> tuple[Interval | None, float | None]:
    """Return the t-interval of a mean (df = n - 1) and the two-sided p-value of zero.

    Both are None for fewer than two values or a NaN among them.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        return None, None
    mean, error, df = (
        float(values.mean()),
        float(values.std(ddof=1)) / math.sqrt(len(values)),
        len(values) - 1,
    )
    if error == 0:
        return (mean, mean), 1.0 if mean == 0 else 0.0
    half = student_quantile(level, df) * error
    return (mean - half, mean + half), 1 - student_within(abs(mean) / error, df)


def student_within(t: float, df: int) -> float:
    """Return P(|T| <= t) for Student's T with an integer number of degrees of freedom.

    Abramowitz and Stegun 26.7.3 and 26.7.4: a finite sum of powers of cosines.
    """
    angle = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = df % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    if df == 1:
        total = 0.0
    for k in range(3 if odd else 2, df - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return (angle + sine * total) * 2 / math.pi if odd else sine * total


def student_quantile(level: float, df: int) -> float:
    """Return t with P(|T| <= t) = level, by bisection."""
    low, high = 0.0, 1.0
    while student_within(high, df) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_within(middle, df) < level else (low, middle)
    return high


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p-values in the same order; None (no test) stays None and is not counted."""
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i])  # type: ignore[arg-type, return-value]
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * float(ps[i])))  # type: ignore[arg-type]
        adjusted[i] = largest
    return adjusted
