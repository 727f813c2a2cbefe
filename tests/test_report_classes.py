"""The classes on which the base is worst and best: chosen on one half of the images, scored on the other."""

from __future__ import annotations

import csv
import io
import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nsft_exp.records import ItemScore, to_json
from nsft_exp.report import class_table, table
from nsft_exp.report.analysis import make_results
from nsft_exp.report.cell import Cell, Evaluation
from nsft_exp.report.classes import MIN_ITEMS, half, side_means
from nsft_exp.report.results import ClassTable, Results
from synthetic_study import ShortAnswers, make_study, write_jsonl

IMAGES = [[name for i in range(300) if half(name := f"{i}.png") == side][:50] for side in (0, 1)]
"""Images of either half."""
Answers = dict[tuple[int, str], list[bool]]
"""(half, class) -> whether each of its items is answered right; an item an image."""


def scores(answers: Answers) -> list[ItemScore]:
    return [
        ItemScore(f"{side} {name} {i}", IMAGES[side][i], {"n": 1.0, "right": float(right)})
        for (side, name), found in answers.items()
        for i, right in enumerate(found)
    ]


def cell(folder: Path, label: str, seed: int | None, answers: Answers) -> Cell:
    rows = scores(answers)
    benchmark = ShortAnswers([], {s.id: s.id.split()[1] for s in rows})
    place = folder / f"{label}-{seed}"
    lines = [{"id": s.id, "finish": "stop", "answer": "x", "score": to_json(s)} for s in rows]
    write_jsonl(place / "records.jsonl", lines)
    evaluation = Evaluation("vqa", benchmark.protocol, benchmark, place, {"accuracy": 0.0})
    return Cell(
        **{"label": label, "method": label, "source": "s", "size": 1, "vlm": "toy", "seed": seed},
        name=f"{label}-{seed}",
        evaluations=(evaluation,),
    )


def both(rates: Mapping[str, tuple[int, int]]) -> Answers:
    """Class -> (right, items) of either half."""
    return {
        (side, name): [i < right for i in range(items)]
        for side, (name, (right, items)) in itertools.product((0, 1), rates.items())
    }


BASE = {"a": (0, 10), "b": (5, 10), "c": (8, 10), "d": (10, 10), "few": (0, 9)}
BETTER = {"a": (5, 10), "b": (5, 10), "c": (8, 10), "d": (9, 10), "few": (9, 9)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("classes")
    cells = [cell(folder, "base", None, both(BASE))]
    cells += [cell(folder, "nsft", seed, both(BETTER)) for seed in (0, 1)]
    return make_results(cells, {"compare_to": []}, replicates=200)


def only(results: Results) -> ClassTable:
    (found,) = results.classes
    return found


def test_sides_are_means_over_the_base_s_worst_and_best_classes(results: Results) -> None:
    found = only(results)
    means = {arm.label: [m.value for m in means.values() if m] for arm, means in found.means.items()}
    assert means == {
        "base": [pytest.approx(25), pytest.approx(90)],
        "nsft": [pytest.approx(50), pytest.approx(85)],
    }
    assert [[c.name for c in found.chosen[column.metric]] for column in found.columns] == [
        ["a", "b"],
        ["c", "d"],
    ]


def test_classes_with_few_items_are_left_out_and_counted(results: Results) -> None:
    found = only(results)
    assert (found.number, found.eligible, found.left_out) == (2, 4, 1)  # few: 18 items of 20
    said = class_table.explanation(found)
    assert f"4 have {MIN_ITEMS} items or more, so half of them a side instead of 10; 1 have fewer" in said


def test_differences_have_intervals_over_images_and_seeds(results: Results) -> None:
    (against,) = only(results).tables
    worst, best = against.comparisons
    assert (worst.difference.value, best.difference.value) == (pytest.approx(25), pytest.approx(-5))
    assert worst.difference.seeds == (0, 1)
    assert worst.difference.items == 2 * 4 * 10  # both sides, half after half
    assert worst.difference.bootstrap is not None
    assert worst.difference.bootstrap[0] < 25 < worst.difference.bootstrap[1]
    assert worst.difference.student == (pytest.approx(25), pytest.approx(25))  # two equal seeds
    assert against.num_tests == 2


def test_a_class_that_one_half_chooses_is_scored_on_the_other_alone(tmp_path: Path) -> None:
    answers = both({"a": (0, 10), "b": (5, 10), "c": (8, 10), "d": (10, 10)})
    answers[1, "c"] = [True] * 1 + [False] * 9  # half 1 finds c worse than b; half 0 does not
    found = only(make_results([cell(tmp_path, "base", None, answers)], {}, replicates=10))
    worst = {c.name: c.halves for c in found.chosen["worst_classes"]}
    assert worst == {"a": 2, "b": 1, "c": 1}
    (means,) = found.means.values()
    # scored on half 0: a and c (chosen by half 1); on half 1: a and b
    assert means["worst_classes"].value == pytest.approx((0 + 80 + 0 + 50) / 4)  # type: ignore[union-attr]


def test_classes_that_differ_by_chance_alone_do_not_look_worst_or_best(tmp_path: Path) -> None:
    rng = random.Random(0)
    answers = {(s, f"c{i}"): [rng.random() < 0.5 for _ in range(10)] for s in (0, 1) for i in range(40)}
    found = only(make_results([cell(tmp_path, "base", None, answers)], {}, replicates=10))
    rates = sorted(np.mean(answers[0, f"c{i}"] + answers[1, f"c{i}"]) for i in range(40))
    assert 100 * np.mean(rates[:10]) < 40  # scored on the answers that chose them
    (means,) = found.means.values()
    for mean in means.values():  # of 200 answers: a standard error of 3.5
        assert mean is not None
        assert abs(mean.value - 50) < 10


def test_only_the_base_chooses(tmp_path: Path) -> None:
    def chosen(better: Mapping[str, tuple[int, int]]) -> Any:
        cells = [cell(tmp_path, "base", None, both(BASE)), cell(tmp_path, "nsft", 0, both(better))]
        return only(make_results(cells, {}, replicates=10)).chosen

    assert chosen(BETTER) == chosen({**BASE, "d": (0, 10)})


def test_there_are_at_most_ten_classes_a_side(tmp_path: Path) -> None:
    answers = both({f"c{i:02}": (i % 11, 10) for i in range(25)})
    found = only(make_results([cell(tmp_path, "base", None, answers)], {}, replicates=10))
    assert (found.number, found.eligible) == (10, 25)
    assert "instead of 10" not in class_table.explanation(found)


def test_a_place_without_items_in_a_replicate_is_no_part_of_the_mean() -> None:
    counts = {"0/a/items": np.array([2.0, 0.0]), "0/a/right": np.array([1.0, 0.0]), "1/b/items": np.ones(2)}
    means = side_means(counts, {"worst_classes": [(0, "a"), (1, "b")]})
    assert means["worst_classes"] == pytest.approx([25.0, 0.0])


def test_without_base_or_classes_there_is_no_table(tmp_path: Path) -> None:
    alone = [cell(tmp_path, "nsft", seed, both(BASE)) for seed in (0, 1)]
    assert make_results(alone, {}, replicates=10).classes == ()
    few = [cell(tmp_path, "base", None, both({"few": (0, 9)}))]
    assert make_results(few, {}, replicates=10).classes == ()
    assert class_table.to_files(make_results(few, {}, replicates=10)) == {}


def test_the_tables_are_written(results: Results) -> None:
    text = class_table.to_markdown(results)
    assert "## In-domain, vqa: the 2 worst and 2 best classes of base" in text
    assert "| base | 25.0 | 90.0 |" in text
    assert "| nsft | 50.0 ± 0.0 | 85.0 ± 0.0 |" in text
    assert "- 2 worst classes, the base's accuracy: a (0.0 % of 20); b (50.0 % of 20)" in text
    rows = list(csv.DictReader(io.StringIO(class_table.to_files(results)["classes.csv"])))
    assert [(r["method"], r["metric"], float(r["mean"]), r["classes"]) for r in rows[2:]] == [
        ("nsft", "worst_classes", 50.0, "2"),
        ("nsft", "best_classes", 85.0, "2"),
    ]
    compared = list(csv.DictReader(io.StringIO(table.comparisons_to_csv(results))))
    assert [r["difference"] for r in compared if r["metric"] == "worst_classes"] == ["25.0"]


def test_an_item_without_score_or_class_is_left_out(tmp_path: Path) -> None:
    base, other = cell(tmp_path, "base", None, both(BASE)), cell(tmp_path, "nsft", 0, both(BETTER))
    (evaluation,) = other.evaluations
    _, *rest = (evaluation.folder / "records.jsonl").read_text().splitlines()  # half 0, class a: right
    (evaluation.folder / "records.jsonl").write_text("\n".join(rest))
    found = only(make_results([base, other], {}, replicates=10))
    ((worst, _),) = [t.comparisons for t in found.tables]
    assert worst.difference.unpaired == 1
    # half 0 of a: 4 of 9 right against 0 of 9; half 1: 5 of 10; b as before
    assert worst.difference.value == pytest.approx((400 / 9 + 50 + 0 + 0) / 4)


def test_a_made_up_study_has_a_table_of_its_colours(tmp_path: Path) -> None:
    cells, study = make_study(tmp_path, seeds=(0, 1), num_images=60)
    found = only(make_results(cells, study, replicates=20))
    assert {c.name for side in found.chosen.values() for c in side} <= {
        f"query colour: {colour}" for colour in ("red", "blue", "green", "yellow")
    }
    assert [t.against for t in found.tables] == ["base", "cont_sft", "gt_dpo", "nsft/matched_random"]
