"""Numbers, names and sentences of a report: how values, settings and verdicts are put into words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nsft_exp.report.results import Arm, Column, Comparison, ComparisonTable, Mean, Results, Verdict

DIGITS = {"percent": 1, "ratio": 3, "points": 1, "tokens": 1, "words": 1}
MINUS, DASH = "−", "–"
SYMBOLS: dict[Verdict, str] = {
    "better": "▲",
    "worse": "▼",
    "maybe better": "△",
    "maybe worse": "▽",
    "open": "·",
    "untested": "",
}
MEANINGS: dict[Verdict, str] = {
    "better": "better: both intervals exclude zero, also after Holm's correction over the table",
    "worse": "worse: both intervals exclude zero, also after Holm's correction over the table",
    "maybe better": "better, but only before Holm's correction",
    "maybe worse": "worse, but only before Holm's correction",
    "open": "open: an interval includes zero",
    "untested": "not tested: too few seeds, or no better side",
}
ARROWS = {"up": "↑", "down": "↓", "none": ""}


def number(value: float | None, scale: str, signed: bool = False) -> str:
    """Return a metric's value with its scale's digits and a true minus sign; a dash for None or NaN."""
    if value is None or not math.isfinite(value):
        return DASH
    digits = DIGITS.get(scale, 2)
    if round(value, digits) == 0:
        value = 0.0
    return f"{value:{'+' if signed and value else ''}.{digits}f}".replace("-", MINUS)


def mean_sd(mean: Mean | None, scale: str) -> str:
    """Return `mean ± sd` over seeds, or the mean alone with one seed."""
    if mean is None:
        return DASH
    spread = f" ± {number(mean.sd, scale)}" if mean.sd is not None else ""
    return number(mean.value, scale) + spread


def interval(bounds: tuple[float, float] | None, scale: str) -> str:
    """Return `[low, high]` with signs, or a dash."""
    if bounds is None:
        return DASH
    return f"[{number(bounds[0], scale, signed=True)}, {number(bounds[1], scale, signed=True)}]"


def p_value(p: float | None) -> str:
    """Return a p-value with three digits."""
    if p is None:
        return DASH
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def title(column: Column) -> str:
    """Return a column's title with the arrow of its better side."""
    return f"{column.title} {ARROWS[column.better]}".strip()


def quantity(value: Any) -> str:
    """Return a count in words for a table: whole numbers with thin groups, others with two digits."""
    if value is None:
        return DASH
    if isinstance(value, dict):
        return ", ".join(f"{name} {quantity(n)}" for name, n in value.items()) or "0"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        whole = float(value).is_integer() or abs(value) >= 1000
        return f"{value:,.0f}".replace(",", "\u202f") if whole else f"{value:.2f}"
    return str(value)


def arm_name(arm: Arm, arms: Sequence[Arm]) -> str:
    """Return the row's name: its label, and source, size and VLM where the study varies them."""
    parts = [arm.label]
    varied = [a for a in arms if not a.is_base]
    if not arm.is_base:
        parts += [arm.source] * (len({a.source for a in varied}) > 1)
        parts += [quantity(arm.size)] * (len({a.size for a in varied}) > 1 and arm.size is not None)
    parts += [arm.vlm] * (len({a.vlm for a in arms}) > 1)
    return " · ".join(parts)


def pair_yield(arm: Arm) -> str:
    """Return how many of the samples gave a pair that differs, as `48 of 60`; a dash where nobody paired."""
    pairs, samples = arm.number("pairs"), arm.number("samples")
    return f"{quantity(pairs.value)} of {quantity(samples.value)}" if pairs and samples else DASH


def num_items(results: Results, column: Column) -> str:
    """Return how many scored items a column's benchmark has: one number, or a range where cells differ."""
    sizes = results.num_scored.get(column.benchmark)
    if not sizes:
        return DASH
    return quantity(min(sizes)) if len(sizes) == 1 else f"{quantity(min(sizes))}{DASH}{quantity(max(sizes))}"


def seeds_moved(results: Results) -> str:
    """Say which seeds there are and what else moved with them."""
    cells = [c for c in results.cells if c.method != "base" and c.status == "ok"]
    seeds = sorted({c.seed for c in cells if c.seed is not None})
    if not seeds:
        return "No seeds: nothing was trained."
    listed = ", ".join(map(str, seeds))
    first = f"Seed{'s' * (len(seeds) > 1)} {listed} (initialisation and order of training)."
    others = {
        "the subset of the source": {c.source_seed for c in cells if c.source_seed is not None},
        "sampled answers": {c.pairing_seed for c in cells if c.pairing_seed is not None},
    }
    fixed = [f"{what} (seed {min(values)})" for what, values in others.items() if len(values) == 1]
    moved = [
        f"{what} (seeds {_listed(sorted(values))})" for what, values in others.items() if len(values) > 1
    ]
    rest = [f"{word}: {_listed(some)}." for word, some in (("Moved too", moved), ("Fixed", fixed)) if some]
    return " ".join([first, *rest])


def reading(table: ComparisonTable, arm: Arm) -> str:
    """Return one sentence on an arm in a table: what is better, what is worse, how much is open."""
    groups: dict[Verdict, list[str]] = {}
    for c in table.comparisons:
        if c.arm is arm and c.column.headline and c.verdict != "untested":
            groups.setdefault(c.verdict, []).append(c.column.title)
    total = sum(map(len, groups.values()))
    if not total:
        return "not tested (one seed)"
    parts = [f"{v} on {_listed(groups[v])}" for v in ("better", "worse") if v in groups]
    for verdict, word in (("maybe better", "better"), ("maybe worse", "worse")):
        if verdict in groups:
            parts.append(f"{word} only before the correction on {_listed(groups[verdict])}")
    if "open" in groups:
        parts.append(f"open on {len(groups['open'])} of {total}")
    return "; ".join(parts)


def summary(results: Results) -> dict[str, Any]:
    """Return the report in a few plain values: settings, what was compared, what failed."""
    rows = [(t, arm) for t in results.tables for arm in t.arms]
    return {
        "title": results.study.get("title") or results.study.get("name"),
        "seeds": seeds_moved(results),
        "readings": [
            {"method": arm_name(a, results.arms), "against": t.against, "reading": reading(t, a)}
            for t, a in rows
        ],
        "failed": [{"cell": c.name, "error": c.error, "log": str(c.log)} for c in results.failed],
        "notes": list(results.notes),
    }


def _listed(things: Sequence[object]) -> str:
    names = [str(thing) for thing in things]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def comparison_text(c: Comparison) -> str:
    """Return `+1.2 ▲`: the difference and the symbol of its verdict."""
    return f"{number(c.difference.value, c.column.scale, signed=True)} {SYMBOLS[c.verdict]}".strip()
