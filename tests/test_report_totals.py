"""Group totals of the paper's main table, from the rows that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nsft_exp.report import totals
from nsft_exp.report.analysis import make_results
from nsft_exp.report.cell import Cell, Evaluation
from nsft_exp.report.results import Results

# the paper's main table: SQA, GQA, TextVQA, POPE, CHAIR, MMHal
PRINTED = {
    "base": (66.8, 62.0, 58.0, 85.9, 32.0, 2.80),
    "gt_dpo": (68.1, 61.6, 57.6, 85.9, 30.7, 2.80),
    "nsft": (68.4, 62.3, 58.4, 87.4, 25.4, 3.02),
}
COLUMNS = ("scienceqa/img", "gqa/accuracy", "textvqa/accuracy", "pope/f1", "chair/chair", "mmhal/score")
GROUPS = {
    "traditional": dict.fromkeys(COLUMNS[:3], 1),
    "hallucination": {"pope/f1": 1, "chair/chair": -1, "mmhal/score": 100 / 6},
}


class Nothing:
    """A benchmark without columns: totals read the metrics alone."""

    def describe(self) -> list[Any]:
        return []


def study(groups: dict[str, Any]) -> Results:
    cells = []
    for method, values in PRINTED.items():
        found = [
            Evaluation(name, "", Nothing(), Path("nowhere"), {metric: value})  # type: ignore[arg-type]
            for (name, metric), value in zip((c.split("/") for c in COLUMNS), values, strict=True)
        ]
        config = {"benchmark": {"totals": groups}}
        seed = None if method == "base" else 0
        cells.append(
            Cell(
                label=method,
                method=method,
                source="s",
                size=None,
                vlm="v",
                seed=seed,
                config=config,
                evaluations=tuple(found),
            )
        )
    return make_results(cells, {}, replicates=0)


def test_totals_are_those_that_the_paper_prints() -> None:
    found = {(t.arm.label, t.group): t.value for t in totals.make_totals(study(GROUPS))}
    assert found == {
        ("gt_dpo", "traditional"): pytest.approx(0.5),
        ("gt_dpo", "hallucination"): pytest.approx(1.3),
        ("nsft", "traditional"): pytest.approx(2.3),
        ("nsft", "hallucination"): pytest.approx(11.8, abs=0.05),
    }


def test_a_total_that_lacks_a_metric_is_not_a_number_and_without_groups_nothing_is_written() -> None:
    lacking = study({"hallucination": {"pope/f1": 1, "mmvet/total": 1}})
    assert {t.value for t in totals.make_totals(lacking)} == {None}
    assert totals.to_files(lacking)["totals.csv"].splitlines()[1].endswith("hallucination,")
    assert totals.to_markdown(study({})) == ""
    assert totals.to_files(study({})) == {}


def test_the_report_has_a_table_and_a_file_of_totals() -> None:
    assert "| nsft | +2.30 | +11.77 |" in totals.to_markdown(study(GROUPS))
    assert "nsft,s,,v,traditional,2.3" in totals.to_files(study(GROUPS))["totals.csv"]
