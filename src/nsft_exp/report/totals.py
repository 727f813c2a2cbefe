"""Group totals as the paper prints them: weighted sums of the differences from the base VLM.

A suite says under `totals` which: group -> {"<benchmark>/<metric>": weight}. Nothing is shown without.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass

from nsft_exp.report import wording
from nsft_exp.report.results import Arm, Results
from nsft_exp.report.table import Grid, markdown

Weights = Mapping[str, float]
"""`<benchmark>/<metric>` -> weight."""


@dataclass(frozen=True)
class Total:
    """One arm's total in one group; None where the arm or its base VLM lacks one of the metrics."""

    arm: Arm
    group: str
    value: float | None


def group_total(arm: Arm, base: Arm, weights: Weights) -> float | None:
    """Return the sum over metrics of weight x (the arm's mean - the base's); None where one is lacking."""
    total = 0.0
    for key, weight in weights.items():
        own, other = arm.mean(key), base.mean(key)
        if own is None or other is None:
            return None
        total += weight * (own.value - other.value)
    return total


def make_totals(results: Results) -> list[Total]:
    """Return every total of every arm that has its base VLM beside it, in the table's order."""
    bases = {arm.vlm: arm for arm in results.arms if arm.is_base}
    found = []
    for arm in results.arms:
        if not arm.is_base and arm.vlm in bases:
            for group, weights in groups_of(results).items():
                found.append(Total(arm, group, group_total(arm, bases[arm.vlm], weights)))
    return found


def groups_of(results: Results) -> dict[str, Weights]:
    """Return the groups that the study's suite asks for; empty where it asks for none."""
    for arm in results.arms:
        for cell in arm.cells:
            groups = (cell.config.get("benchmark") or {}).get("totals")
            if groups:
                return dict(groups)
    return {}


def to_markdown(results: Results) -> str:
    """Return the section with the totals; empty without any."""
    totals, groups = make_totals(results), list(groups_of(results))
    if not totals:
        return ""
    rows: dict[Arm, list[str]] = {}
    for total in totals:
        shown = wording.DASH if total.value is None else f"{total.value:+.2f}"
        rows.setdefault(total.arm, [wording.arm_name(total.arm, results.arms)]).append(shown)
    grid = Grid("method", [("", len(groups))], groups, list(rows.values()))
    formulas = [f"- {name}: {_formula(weights)}" for name, weights in groups_of(results).items()]
    note = "Sums of differences from the base VLM, of means over seeds:\n" + "\n".join(formulas)
    return f"\n## Group totals\n\n{markdown(grid)}\n\n{note}\n"


def to_files(results: Results) -> dict[str, str]:
    """Return `totals.csv`; no file without totals."""
    totals = make_totals(results)
    if not totals:
        return {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "source", "size", "vlm", "group", "total"])
    for t in totals:
        size = "" if t.arm.size is None else t.arm.size
        value = "" if t.value is None else t.value
        writer.writerow([t.arm.label, t.arm.source, size, t.arm.vlm, t.group, value])
    return {"totals.csv": text.getvalue()}


def _formula(weights: Weights) -> str:
    return " ".join(f"{'-' if w < 0 else '+'} {abs(w):g} x {key}" for key, w in weights.items())
