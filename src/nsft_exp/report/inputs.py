"""What went into every arm and what it took: samples, pairs, corrections, tokens, time, memory."""

from __future__ import annotations

from typing import Any

from nsft_exp.report import wording
from nsft_exp.report.results import Arm, Results
from nsft_exp.report.table import Grid, markdown

NAMES = {
    "samples": "samples",
    "pairs": "pairs that differ",
    "equal": "equal pairs",
    "corrections": "corrections",
    "examples": "trained on",
    "steps": "steps",
    "supervised_tokens": "supervised tokens",
    "critic_precision": "critic's precision",
    "critic_recall": "critic's recall",
    "critic_invented": "errors invented a right claim",
    "models_held": "models held",
    "trainable_parameters": "trained parameters",
    "peak_memory_bytes": "peak memory",
    "train_seconds": "training time",
}
"""Counts and costs of a cell in the order and words of the page; others follow under their own names."""


def input_table(results: Results) -> dict[str, Any]:
    """Return what went into every arm and what it took: names of the columns, and a row an arm."""
    arms = [a for a in results.arms if a.cells and not a.is_base]
    present = {name for a in arms for c in a.cells for name in {**c.counts, **c.costs}}
    names = [n for n in NAMES if n in present] + sorted(present - set(NAMES))
    rows = [(arm, [_amount(arm, name) for name in names]) for arm in arms]
    return {"names": [NAMES.get(n, n.replace("_", " ")) for n in names], "rows": rows}


def _amount(arm: Arm, name: str) -> str:
    """Return a count or cost in words: the mean over seeds of numbers, the first seed's of anything else."""
    mean = arm.number(name)
    if mean is None:
        value = {**arm.cells[0].counts, **arm.cells[0].costs}.get(name)
        return wording.quantity(value)
    if name.endswith("_bytes"):
        return f"{mean.value / 2**20:,.0f} MiB".replace(",", "\u202f")
    if name.endswith("seconds"):
        return f"{mean.value:.0f} s" if mean.value < 600 else f"{mean.value / 60:.0f} min"
    return wording.quantity(mean.value)


def to_markdown(results: Results) -> str:
    """Return the section with the table; empty where nothing was trained."""
    found = input_table(results)
    rows = [[wording.arm_name(arm, results.arms), *amounts] for arm, amounts in found["rows"]]
    grid = Grid("method", [("", len(found["names"]))], found["names"], rows)
    return f"\n## What went in\n\n{markdown(grid)}\n\nMeans over seeds.\n" if rows else ""
