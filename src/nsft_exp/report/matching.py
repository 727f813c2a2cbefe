"""Who is compared with whom, and on which scored items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nsft_exp.report.cell import Row
from nsft_exp.report.results import Arm
from nsft_exp.statistics import ScoredItems

Rows = dict[tuple[str, str], list[Row]]
"""(cell name, benchmark) -> scored items."""


def pairs(labels: Sequence[str], arms: Sequence[Arm], name: str) -> Iterator[tuple[str, Arm, Arm]]:
    """Yield (label, arm, the arm of that label to compare it with) where both have the benchmark's scores."""
    for label in labels:
        for arm in arms:
            against = None if arm.is_base else _opponent(arm, label, arms)
            if against is not None and _protocols(arm, name) == _protocols(against, name) != set():
                yield label, arm, against


def _opponent(arm: Arm, label: str, arms: Sequence[Arm]) -> Arm | None:
    for other in arms:
        same = other.is_base or (other.source, other.size) == (arm.source, arm.size)
        if other.label == label and other is not arm and other.vlm == arm.vlm and same and other.cells:
            return other
    return None


def _protocols(arm: Arm, name: str) -> set[str]:
    return {e.protocol for cell in arm.cells if (e := cell.evaluation(name))}


def items_of(arm: Arm, benchmark: str, rows: Rows) -> dict[int | None, ScoredItems]:
    """Return seed -> the scored items of that seed's model; the base VLM's one model has the seed None."""
    found = {cell.seed: rows.get((cell.name, benchmark)) for cell in arm.cells}
    return {
        None if arm.is_base else seed: ScoredItems(tuple(row.score for row in some if row.score is not None))
        for seed, some in found.items()
        if some is not None
    }
