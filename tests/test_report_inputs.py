"""What stands beside the scores: pairs, caption length, what went in, what was moved on held-out prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nsft_exp.report import inputs, moved, table
from nsft_exp.report.analysis import make_results
from nsft_exp.report.cell import Cell
from nsft_exp.report.page import to_html
from nsft_exp.report.results import Results

COUNTS = {"samples": 60, "pairs": 48, "equal": 12, "examples": 48, "steps": 3, "supervised_tokens": 2400}


def cell(
    folder: Path, seed: int = 0, label: str = "gt_dpo", rows: list[dict[str, Any]] | None = None
) -> Cell:
    """A trained cell with these held-out rows."""
    train = folder / f"{label}-{seed}"
    train.mkdir()
    if rows is not None:
        (train / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = f"{label}-seed{seed}"
    made = Cell(label=label, method=label, source="toy", size=60, vlm="toy", seed=seed, name=name)
    return replace(made, counts=COUNTS, train_folder=train)


def results_of(*cells: Cell) -> Results:
    return make_results(list(cells), {"name": "s", "title": "S"}, replicates=0)


def held_out(step: int, **margins: float) -> list[dict[str, Any]]:
    return [{"step": step, "example": name, "margin": value} for name, value in margins.items()]


def test_the_yield_of_a_pairing_stands_beside_the_scores(tmp_path: Path) -> None:
    results = results_of(cell(tmp_path), replace(cell(tmp_path, label="cont_sft"), counts={"samples": 60}))
    grid = table.main_grid(results)
    place = 1 + grid.header.index("pairs")
    assert [row[place] for row in grid.rows[:2]] == ["48 of 60", "–"]


def test_what_went_in_tells_the_compute(tmp_path: Path) -> None:
    text = inputs.to_markdown(results_of(cell(tmp_path)))
    head, _, row = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|"))
    found = dict(zip(head, row, strict=True))
    assert (found["steps"], found["supervised tokens"]) == ("3", "2\u202f400")


def test_a_change_is_the_mean_over_prompts_with_an_interval(tmp_path: Path) -> None:
    before = held_out(0, a=0.0, b=1.0, c=-1.0, d=0.0)
    middle, after = held_out(5, a=9.0), held_out(8, a=1.0, b=3.0, c=0.0, d=2.0)
    (found,) = moved.make_moved(results_of(cell(tmp_path, rows=[*before, *middle, *after])))
    assert (found.quantity, found.examples, found.before, found.after) == ("margin", 4, 0.0, 1.5)
    assert found.change == 1.5
    assert found.interval == (pytest.approx(1.0), pytest.approx(2.0))  # changes of 1, 2, 1 and 2
    assert found.symbol == "▲"


def test_an_interval_that_holds_zero_is_no_move(tmp_path: Path) -> None:
    (found,) = moved.make_moved(
        results_of(cell(tmp_path, rows=[*held_out(0, a=0.0, b=0.0), *held_out(2, a=1.0, b=-1.0)]))
    )
    assert found.symbol == "·"


def test_seeds_and_the_examples_of_a_prompt_are_averaged_first(tmp_path: Path) -> None:
    ends = [
        [*held_out(0, **{"a": 0.0, "a#1": 0.0}), *held_out(4, **{"a": 1.0, "a#1": 3.0})],
        [*held_out(0, a=0.0, b=0.0), *held_out(4, a=2.0, b=6.0)],
    ]
    cells = [cell(tmp_path, seed, rows=rows) for seed, rows in enumerate(ends)]
    (found,) = moved.make_moved(results_of(*cells))
    assert (found.examples, found.change) == (2, 4.0)  # a: (1 + 3 + 2) / 3, b: 6


def test_each_round_has_a_row_of_its_own(tmp_path: Path) -> None:
    first = cell(tmp_path, rows=[*held_out(0, a=0.0, b=0.0), *held_out(2, a=5.0, b=5.0)], label="first")
    last = cell(tmp_path, rows=[*held_out(0, a=1.0, b=1.0), *held_out(2, a=2.0, b=2.0)], label="spin")
    assert first.train_folder
    results = results_of(replace(last, earlier_trainings={"1": first.train_folder}))
    assert moved.to_lines(results) == [
        "spin, round 1: margin of the chosen over the rejected answer +5.00 [+5.00, +5.00] ▲",
        "spin, round 2: margin of the chosen over the rejected answer +1.00 [+1.00, +1.00] ▲",
    ]
    scored = results_of(replace(last, earlier_trainings={"reward": first.train_folder}))
    assert [m.training for m in moved.make_moved(scored)] == ["reward", ""]


def test_every_quantity_has_a_row_in_the_tables_order(tmp_path: Path) -> None:
    """So a trainer of another kind joins in by its rows."""
    rows = [{"step": s, "example": f"p{n}", "kl": 0.1 * s, "reward": s + n} for s in (0, 1) for n in range(3)]
    results = results_of(cell(tmp_path, label="ppo", rows=rows))
    assert [m.quantity for m in moved.make_moved(results)] == ["reward", "kl"]
    assert "reward | 3 | 1.00 | 2.00 | +1.00 | [+1.00, +1.00] | ▲" in moved.to_markdown(results)
    assert moved.to_lines(results)[0] == "ppo: reward +1.00 [+1.00, +1.00] ▲"
    assert "KL to the reference" in to_html(results, [], [])


def test_without_held_out_rows_nothing_is_said_of_them(tmp_path: Path) -> None:
    results = results_of(cell(tmp_path))
    assert moved.to_markdown(results) == ""
    assert "held-out prompts" not in to_html(results, [], [])
