"""What each method moved on held-out prompts: before and after each training, with an interval.

A training with `trainer.held_out` and `trainer.validate_every` writes `held_out.jsonl`, rows {"step",
"example", <quantity>: value ...}, before its first step (step 0) and at each validation. A trainer of its own
kind joins in by writing such rows of its quantities (`reward`, `kl`). Nothing is shown where there are none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nsft_exp.report import wording
from nsft_exp.report.cell import read_jsonl
from nsft_exp.report.results import Arm, Results
from nsft_exp.report.table import Grid, markdown
from nsft_exp.statistics.interval import Interval, multiplicities, percentile_interval

TITLES = {
    "margin": "margin of the chosen over the rejected answer",
    "correction": "log-probability of the corrections",
    "chosen": "log-probability of the chosen answer",
    "reward": "reward",
    "kl": "KL to the reference",
}
"""Quantities in the table's order; others follow under their own names."""
REPLICATES = 5_000
NOTE = (
    "Means over held-out prompts (log-probabilities in nats), before the training and after it. Intervals of "
    "the change: 95 %, bootstrap over prompts, seeds averaged. ▲ ▼: the interval excludes zero."
)


@dataclass(frozen=True)
class Moved:
    """One quantity of one training of an arm; `interval` is of the change."""

    arm: Arm
    training: str
    """Which of several: a round's number (`reward` for a reward model); empty where there is one."""
    quantity: str
    examples: int
    before: float
    after: float
    interval: Interval

    @property
    def change(self) -> float:
        """The mean change."""
        return self.after - self.before

    @property
    def symbol(self) -> str:
        """▲ or ▼ where the interval excludes zero, else a dot."""
        low, high = self.interval
        return "▲" if low > 0 else "▼" if high < 0 else "·"


def make_moved(results: Results) -> list[Moved]:
    """Return every quantity of every training of every arm that has held-out rows, in the table's order."""
    return [moved for arm in results.arms for name in _trainings(arm) for moved in _of_training(arm, name)]


def _trainings(arm: Arm) -> list[str]:
    """The arm's trainings in their order; the last one's name is its round's, nothing if it has no others."""
    earlier = list(dict.fromkeys(name for cell in arm.cells for name in cell.earlier_trainings))
    rounds = [name for name in earlier if name.isdigit()]
    return [*earlier, str(len(rounds) + 1) if rounds else ""]


def _of_training(arm: Arm, name: str) -> list[Moved]:
    """A training's quantities. Each prompt's values are averaged over the seeds first."""
    values: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for cell in arm.cells:
        for quantity, prompt, pair in ends(cell.earlier_trainings.get(name, cell.train_folder)):
            values[quantity][prompt].append(pair)
    order = sorted(values, key=lambda q: (list(TITLES).index(q) if q in TITLES else len(TITLES), q))
    return [_moved(arm, name, q, np.array([np.mean(v, axis=0) for v in values[q].values()])) for q in order]


def ends(training: Path | None) -> list[tuple[str, str, tuple[float, float]]]:
    """Return (quantity, prompt, (before, after)) of a training's folder, an example each."""
    steps: dict[int, dict[str, dict[str, float]]] = defaultdict(dict)
    for row in read_jsonl(training / "held_out.jsonl") if training else ():
        steps[row["step"]][row["example"]] = {k: v for k, v in row.items() if k not in ("step", "example")}
    if len(steps) < 2:
        return []
    first, last = steps[min(steps)], steps[max(steps)]
    return [
        (quantity, example.partition("#")[0], (value, last[example][quantity]))
        for example, row in first.items()
        for quantity, value in row.items()
        if quantity in last.get(example, {})
    ]


def _moved(arm: Arm, training: str, quantity: str, ends_N2: np.ndarray) -> Moved:
    change_N = ends_N2[:, 1] - ends_N2[:, 0]
    drawn = multiplicities(len(change_N), REPLICATES, np.random.default_rng(0)) @ change_N / len(change_N)
    interval, _ = percentile_interval(drawn)
    before, after = ends_N2.mean(axis=0)
    return Moved(arm, training, quantity, len(change_N), float(before), float(after), interval)


def _named(moved: Moved, results: Results) -> str:
    training = f"round {moved.training}" if moved.training.isdigit() else moved.training
    return wording.arm_name(moved.arm, results.arms) + (f", {training}" if training else "")


def moved_grid(results: Results) -> Grid | None:
    """Return the table; None where no arm has held-out rows."""
    rows = [
        [
            _named(m, results),
            TITLES.get(m.quantity, m.quantity),
            str(m.examples),
            wording.number(m.before, ""),
            wording.number(m.after, ""),
            wording.number(m.change, "", signed=True),
            wording.interval(m.interval, ""),
            m.symbol,
        ]
        for m in make_moved(results)
    ]
    header = ["what", "prompts", "before", "after", "change", "95 %", ""]
    return Grid("method", [("", len(header))], header, rows) if rows else None


def to_markdown(results: Results) -> str:
    """Return the section with the table; empty where there is none."""
    grid = moved_grid(results)
    return f"\n## Moved on held-out prompts\n\n{markdown(grid)}\n\n{NOTE}\n" if grid else ""


def to_lines(results: Results) -> Sequence[str]:
    """Return one line a quantity, for the terminal."""
    return [
        f"{_named(m, results)}: {TITLES.get(m.quantity, m.quantity)} "
        f"{wording.number(m.change, '', signed=True)} {wording.interval(m.interval, '')} {m.symbol}"
        for m in make_moved(results)
    ]
