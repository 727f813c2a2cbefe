"""The form of answers: how many are not as asked, cut or all the same, so that a collapse is seen as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nsft_exp.report import wording
from nsft_exp.report.cell import Row
from nsft_exp.report.matching import Rows
from nsft_exp.report.results import Arm, Mean, Results, mean_of
from nsft_exp.report.table import Grid, markdown

FALLEN = 10.0
"""Points above the base VLM's share from which a share is named among the notes (ours)."""
KINDS = {"unparseable": "not as asked, %", "cut": "cut, %", "same": "the same, %"}
WORDS = {"unparseable": "not in the asked form", "cut": "cut at the token limit"}
EXPLANATION = (
    "Not as asked: no rule reads the answer in its asked form (a caption: it is empty). Cut: it reached the "
    "token limit. The same: the share of the most frequent answer. Means over seeds; scores count such "
    "answers as they count any other."
)


@dataclass(frozen=True)
class Form:
    """One arm's answers to one benchmark: shares in percent of all questions that have an answer."""

    arm: Arm
    benchmark: str
    shares: dict[str, Mean | None]
    """`unparseable`, `cut` and `same` over seeds."""


def answer_forms(arms: Sequence[Arm], rows: Rows) -> list[Form]:
    """Return the form of every arm's answers to every benchmark, in the arms' order."""
    names = dict.fromkeys(name for _, name in rows)
    forms = []
    for arm in arms:
        for name in names:
            found = [shares(some) for cell in arm.cells if (some := rows.get((cell.name, name)))]
            if found:
                forms.append(Form(arm, name, {kind: mean_of([f.get(kind) for f in found]) for kind in KINDS}))
    return forms


def shares(rows: Sequence[Row]) -> dict[str, float]:
    """Return the shares in percent of one model's answers; empty without any answer."""
    said = [row for row in rows if row.finish]  # no reply, no end of it
    if not said:
        return {}
    counts = {
        "unparseable": sum(row.score is not None and row.score.unparseable for row in said),
        "cut": sum(row.finish == "length" for row in said),
        "same": Counter(row.answer for row in said).most_common(1)[0][1],
    }
    return {kind: 100 * count / len(said) for kind, count in counts.items()}


def fallen_apart(arms: Sequence[Arm], rows: Rows) -> Iterator[str]:
    """Yield a note for each arm with far more answers not as asked, or cut, than the base VLM has."""
    forms = answer_forms(arms, rows)
    base = {(f.arm.vlm, f.benchmark): f for f in forms if f.arm.is_base}
    for form in forms:
        before = base.get((form.arm.vlm, form.benchmark))
        parts = []
        for kind, words in WORDS.items():
            share, other = _value(form, kind), _value(before, kind)
            if share >= other + FALLEN:
                parts.append(f"{share:.0f} % {words}" + (f" (base: {other:.0f} %)" if before else ""))
        if parts:
            yield f"{wording.arm_name(form.arm, arms)}, {form.benchmark}: answers {', '.join(parts)}"


def _value(form: Form | None, kind: str) -> float:
    mean = form.shares[kind] if form else None
    return mean.value if mean else 0.0


def form_grid(results: Results) -> Grid:
    """Return the table: an arm a row, the three shares of every benchmark as columns."""
    forms = answer_forms(results.arms, results.rows)
    names = list(dict.fromkeys(form.benchmark for form in forms))
    found = {(form.arm, form.benchmark): form for form in forms}
    rows = [
        [
            wording.arm_name(arm, results.arms),
            *(_shown(found.get((arm, name)), kind) for name in names for kind in KINDS),
        ]
        for arm in results.arms
        if arm.cells
    ]
    return Grid("method", [(name, len(KINDS)) for name in names], [*KINDS.values()] * len(names), rows)


def _shown(form: Form | None, kind: str) -> str:
    mean = form.shares[kind] if form else None
    return wording.number(mean.value if mean else None, "percent")


def to_markdown(results: Results) -> str:
    """Return the section on the form of answers; empty where nothing was evaluated."""
    grid = form_grid(results)
    return f"\n## Form of the answers\n\n{EXPLANATION}\n\n{markdown(grid)}\n" if grid.header else ""
