"""Arms, columns, comparisons and the tables that are made of them, on a made-up study."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nsft_exp.report import table, terminal, wording
from nsft_exp.report.analysis import make_results
from nsft_exp.report.cell import Cell, read_jsonl
from nsft_exp.report.curve import draw_sizes, smooth
from nsft_exp.report.dialogue import by_codebook, content_words
from nsft_exp.report.figure import PLOTS, draw_all
from nsft_exp.report.printing import print_table
from nsft_exp.report.results import GROUPS, Results
from nsft_exp.report.style import DARK, Style, darkened, drawing, look
from nsft_exp.report.write import write_report
from synthetic_study import failed_cell, make_study, write_jsonl

Study = tuple[list[Cell], dict[str, object]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"), num_images=24)


@pytest.fixture(scope="module")
def results(study: Study) -> Results:
    return make_results(*study, replicates=300)


def replaced(cells: list[Cell], **changes: object) -> list[Cell]:
    return [dataclasses.replace(c, **changes) for c in cells]  # type: ignore[arg-type]


# --- arms and comparisons --------------------------------------------------------------------------


def test_cells_that_differ_in_seed_only_are_one_row_and_the_base_is_first(results: Results) -> None:
    assert [a.label for a in results.arms] == ["base", "cont_sft", "gt_dpo", "nsft", "nsft/matched_random"]
    assert [a.seeds for a in results.arms[:2]] == [(None,), (0, 1, 2)]


def test_a_mean_is_over_seeds_with_its_sample_standard_deviation(study: Study, results: Results) -> None:
    values = [c.evaluations[0].metrics["random_f1"] for c in study[0] if c.label == "nsft"]
    mean = results.arms[3].mean("pope/random_f1")
    assert mean is not None
    assert mean.value == pytest.approx(sum(values) / 3)
    assert mean.sd == pytest.approx((sum((v - mean.value) ** 2 for v in values) / 2) ** 0.5)


def test_every_method_is_compared_with_every_label_asked_for_and_with_the_base(results: Results) -> None:
    assert [t.against for t in results.tables] == ["base", "cont_sft", "gt_dpo", "nsft/matched_random"]
    against_sft = results.table("cont_sft")
    assert against_sft is not None
    assert [a.label for a in against_sft.arms] == ["gt_dpo", "nsft", "nsft/matched_random"]


def test_a_difference_is_that_of_the_means(results: Results) -> None:
    comparison = results.tables[1].of(results.arms[3], "chair/chair_i")
    one, other = (results.arms[i].mean("chair/chair_i") for i in (3, 1))
    assert comparison is not None
    assert one is not None
    assert other is not None
    assert comparison.difference.value == pytest.approx(one.value - other.value)
    assert comparison.gain == pytest.approx(other.value - one.value)  # less is better


def test_only_headline_metrics_with_a_better_side_are_tested(results: Results) -> None:
    for t in results.tables:
        tested = {c.column.key for c in t.comparisons if c.adjusted is not None}
        assert tested == {c.key for c in results.headline if c.better != "none"}
        assert t.num_tests == len(tested) * len(t.arms)


def test_better_needs_both_intervals_and_the_correction(results: Results) -> None:
    for c in (c for t in results.tables for c in t.comparisons if c.adjusted is not None):
        d = c.difference
        apart = all(x is not None and (x[0] > 0 or x[1] < 0) for x in (d.bootstrap, d.student))
        assert (c.verdict in ("better", "worse")) == (apart and c.adjusted < 0.05)
        assert (c.verdict == "open") == (not apart)


def test_with_one_seed_nothing_is_significant(tmp_path: Path) -> None:
    found = make_results(*make_study(tmp_path, seeds=(0,), num_images=12), replicates=200)
    assert {c.verdict for t in found.tables for c in t.comparisons} == {"untested"}
    assert "not tested" in wording.reading(found.tables[0], found.arms[1])


def test_arms_are_compared_at_their_own_size_and_source(tmp_path: Path) -> None:
    found = make_results(*make_study(tmp_path, seeds=(0, 1), num_images=12, sizes=(100, 200)), replicates=50)
    sizes = {(c.arm.size, c.against.size) for c in found.tables[1].comparisons}
    assert sizes == {(100, 100), (200, 200)}


def test_the_study_names_its_headline_columns(study: Study) -> None:
    chosen = ["pope/adversarial_auc", "chair/recall"]
    found = make_results(study[0], {**study[1], "columns": chosen}, replicates=0)
    assert [c.key for c in found.headline] == chosen


def test_metrics_of_the_same_title_are_told_apart_by_their_benchmark(study: Study) -> None:
    cell = study[0][0]
    sampled = dataclasses.replace(cell.evaluations[1], name="chair_t1")
    found = make_results(
        [dataclasses.replace(cell, evaluations=(*cell.evaluations, sampled))], {}, replicates=0
    )
    titles = [c.title for c in found.headline]
    assert "CHAIR instance" in titles
    assert "CHAIR instance (chair_t1)" in titles
    assert len(set(titles)) == len(titles)


def test_items_without_a_score_are_named_and_left_out(study: Study, tmp_path: Path) -> None:
    cells = list(study[0])
    place = next(i for i, c in enumerate(cells) if c.label == "nsft")
    broken = cells[place].evaluations[1]
    rows = list(read_jsonl(broken.folder / "records.jsonl"))
    rows[0] |= {"score": None, "answer": None, "reason": "no answer"}
    write_jsonl(tmp_path / "records.jsonl", rows)
    evaluation = dataclasses.replace(broken, folder=tmp_path, complete=False)
    cells[place] = dataclasses.replace(cells[place], evaluations=(evaluation,))
    found = make_results(cells, study[1], replicates=20)
    assert f"{cells[place].name}, chair: 1 of 24 items have no score and are left out" in found.notes
    comparison = found.tables[1].of(found.arms[3], "chair/chair_i")
    assert comparison is not None
    assert comparison.difference.unpaired == 1


def test_scores_under_different_protocols_are_not_compared(study: Study) -> None:
    other = []
    for cell in study[0]:
        changed = tuple(dataclasses.replace(e, protocol="another prompt") for e in cell.evaluations)
        other.append(dataclasses.replace(cell, evaluations=changed) if cell.label == "nsft" else cell)
    found = make_results(other, study[1], replicates=20)
    assert found.tables[1].of(found.arms[3], "pope/random_f1") is None
    assert any(note.startswith("pope: scored under different protocols") for note in found.notes)


def test_a_label_whose_cells_all_failed_is_named(study: Study) -> None:
    cells = [dataclasses.replace(c, status="failed") if c.label == "gt_dpo" else c for c in study[0]]
    found = make_results(cells, study[1], replicates=20)
    assert found.table("gt_dpo") is None
    assert any(note.startswith("gt_dpo: nothing is compared with it") for note in found.notes)
    assert len(found.failed) == 3


def test_a_study_without_a_base_has_its_other_comparisons(study: Study) -> None:
    found = make_results([c for c in study[0] if c.label != "base"], study[1], replicates=20)
    assert found.base is None
    assert [t.against for t in found.tables] == ["cont_sft", "gt_dpo", "nsft/matched_random"]


def test_a_remade_record_stands_for_the_one_before_it(study: Study, tmp_path: Path) -> None:
    rows = [
        {"input": "old", "id": "s", "status": "ok", "chosen": "a", "rejected": "b"},
        {"input": "new", "id": "s", "status": "ok", "chosen": "a", "rejected": "c"},
    ]
    write_jsonl(tmp_path / "records.jsonl", rows)
    cell = dataclasses.replace(study[0][-1], respond_folder=tmp_path)
    assert cell.preferences()["s"].rejected == "c"


# --- words and tables ------------------------------------------------------------------------------


def test_what_moved_is_said(study: Study) -> None:
    said = wording.seeds_moved(make_results(*study, replicates=0))
    assert said == (
        "Seeds 0, 1, 2 (initialisation and order of training). "
        "Fixed: the subset of the source (seed 0) and sampled answers (seed 0)."
    )
    moving = [dataclasses.replace(c, source_seed=c.seed, pairing_seed=None) for c in study[0]]
    said = wording.seeds_moved(make_results(moving, study[1], replicates=0))
    assert said.endswith("Moved too: the subset of the source (seeds 0, 1 and 2).")


def test_numbers_are_written_with_their_scales_digits() -> None:
    assert wording.number(71.25, "percent") == "71.2"
    assert wording.number(-0.04, "percent", signed=True) == "0.0"
    assert wording.number(-1.5, "words", signed=True) == "−1.5"
    assert wording.number(0.6149, "ratio") == "0.615"
    assert wording.number(float("nan"), "percent") == "–"
    assert wording.p_value(0.0004) == "<0.001"
    assert wording.quantity({"ok": 540, "no_error": 12345}) == "ok 540, no_error 12\u202f345"


def test_yes_no_tests_and_free_generation_are_separate_groups_of_columns(results: Results) -> None:
    grid = table.main_grid(results)
    assert [(t, n) for t, n in grid.groups if t] == [
        ("Yes/no", 3),
        ("Free generation", 4),
        ("Short answers", 1),
    ]
    assert sum(n for _, n in grid.groups) == len(grid.header)
    assert list(GROUPS)[:2] == ["yes_no", "generation"]


def test_the_main_table_has_all_n_and_nothing_bold(results: Results) -> None:
    text = table.to_markdown(results)
    grid = table.main_grid(results)
    n = grid.header.index("trained on") + 1
    assert [row[n] for row in grid.rows] == ["–", "600", "559", "600", "600", ""]
    assert [row[n + 1] for row in grid.rows] == ["–", "3", "3", "3", "3", ""]
    assert grid.rows[-1][0] == "items"
    assert "**" not in text
    assert "textbf" not in table.to_latex(results)
    assert "21 tests in this table" in text


def test_every_row_of_a_markdown_table_has_the_same_number_of_cells(results: Results) -> None:
    lines = table.markdown(table.main_grid(results)).splitlines()
    assert len({line.count("|") for line in lines}) == 1


def test_the_csv_holds_every_metric_as_a_number(study: Study, results: Results) -> None:
    rows = list(csv.DictReader(table.to_csv(results).splitlines()))
    assert len(rows) == len(results.arms) * len(results.columns)
    row = next(r for r in rows if r["method"] == "base" and r["metric"] == "chair_i")
    assert float(row["mean"]) == study[0][0].evaluations[1].metrics["chair_i"]
    assert row["sd"] == ""
    compared = list(csv.DictReader(table.comparisons_to_csv(results).splitlines()))
    assert {r["against"] for r in compared} == {t.against for t in results.tables}
    assert all(
        float(r["bootstrap_low"]) <= float(r["bootstrap_high"]) for r in compared if r["bootstrap_low"]
    )


def test_latex_rows_have_as_many_cells_as_the_table_has_columns(results: Results) -> None:
    text = table.latex(table.main_grid(results), "A title with 100 % & more_")
    columns = len(text.partition("tabular}{")[2].partition("}")[0])
    body = text.partition("\\midrule\n")[2].partition("\\bottomrule")[0].strip().splitlines()
    assert {line.replace("\\&", "").count("&") for line in body} == {columns - 1}
    assert r"100 \% \& more\_" in text
    assert r"nsft/matched\_random" in text


MANY = ["nsft/critic_invents", "nsft/length_matched", "kto", "llava_rlhf", "nsft_unlikelihood", "gt_dpo/ipo"]
MANY += [
    "gt_dpo/rejected_only_alone",
    "ha_dpo",
    "cont_sft recipe.learning_rate=0.001 recipe.epochs=3",
    "simpo",
]


@pytest.fixture(scope="module")
def fifteen(study: Study) -> Results:
    """A study of fifteen rows, with names as sweeps have them."""
    trained = [cell for cell in study[0] if cell.label == "nsft"]
    others = [
        dataclasses.replace(cell, label=label, name=f"{label}-{cell.seed}")
        for label in MANY
        for cell in trained
    ]
    return make_results([*study[0], *others], study[1], replicates=0)


def printed(results: Results, width: int) -> list[str]:
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(terminal.to_terminal(results))
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_fifteen_rows_fit_the_terminal_with_no_word_and_no_number_cut(fifteen: Results, width: int) -> None:
    lines = printed(fifteen, width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for column in fifteen.shown:
        for word in column.title.split():
            assert word in words
        for arm in fifteen.arms:
            assert wording.mean_sd(arm.mean(column.key), column.scale).replace(" ", "") in words
    for arm in fifteen.arms:
        for word in arm.label.split():
            assert word in words


def test_a_line_of_the_terminal_table_is_one_arm_and_stands_under_its_columns(fifteen: Results) -> None:
    lines = printed(fifteen, 120)
    arm = next(arm for arm in fifteen.arms if arm.label == "gt_dpo")
    row = next(line for line in lines if line.split()[:1] == ["gt_dpo"])
    means = [wording.mean_sd(arm.mean(c.key), c.scale).replace(" ", "") for c in fifteen.shown]
    found = row.split()[1:]
    assert found == means[: len(found)]
    assert len(found) >= 4
    (rule, *_) = [line for line in lines if line.startswith("─")]
    assert len(rule) == len(row)


def test_the_kinds_of_test_stand_over_their_columns(results: Results) -> None:
    text = "\n".join(printed(results, 100))
    places = [text.index(word) for word in ("Yes/no", "Free generation", "Short", "Training")]
    assert places == sorted(places)


def test_a_cell_that_failed_is_named_with_its_log(study: Study, tmp_path: Path) -> None:
    cells = [*study[0], failed_cell(tmp_path)]
    found = make_results(cells, study[1], replicates=0)
    assert "gt_dpo-600-seed3: out of memory" in table.to_markdown(found)
    assert str(tmp_path / "jobs" / "7" / "nsft.log") in table.to_markdown(found)


# --- figures and files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written report, in a folder where one of another study was before."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "figures").mkdir()
    (folder / "figures" / "size.png").write_bytes(b"of an older study")
    write_report(*study, folder)
    return folder


def test_a_report_is_written_whole_and_without_old_figures(report: Path) -> None:
    names = {str(f.relative_to(report)) for f in report.rglob("*") if f.is_file()}
    shown = [p.name for p in PLOTS if p.name not in ("size", "words")]
    figures = {f"figures/{name}.{s}" for name in shown for s in ("png", "svg")}
    tables = {"index.html", "table.md", "table.csv", "table.tex", "comparisons.csv", "summary.json"}
    assert names == figures | tables


def test_the_terminal_shows_what_the_last_report_compared(study: Study, report: Path) -> None:
    console = Console(width=120, no_color=True)
    with console.capture() as captured:
        print_table(*study, report, console)
    readings = json.loads((report / "summary.json").read_text("utf-8"))["readings"]
    assert {r["against"] for r in readings} == {"base", "cont_sft", "gt_dpo", "nsft/matched_random"}
    assert "nsft against cont_sft:" in captured.get()


def test_the_same_results_give_the_same_files(study: Study, report: Path, tmp_path: Path) -> None:
    write_report(*study, tmp_path)
    for file in (f for f in report.rglob("*") if f.is_file()):
        assert file.read_bytes() == (tmp_path / file.relative_to(report)).read_bytes(), file


def test_scores_are_drawn_against_size_where_there_are_two(study: Study, tmp_path: Path) -> None:
    cells = make_study(tmp_path, seeds=(0, 1), num_images=12, sizes=(100, 200))
    with drawing():
        assert draw_sizes(make_results(*study, replicates=0), Style()) is None
        figure = draw_sizes(make_results(*cells, replicates=0), Style(narrow=True))
    assert figure is not None
    assert len(figure.axes) == 8


def test_a_study_of_the_base_alone_draws_nothing_and_says_what_is_needed(study: Study) -> None:
    drawn, missing = draw_all(make_results(study[0][:1], {"name": "base"}, replicates=50))
    assert drawn == []
    assert [p.needs for p in missing] == [p.needs for p in PLOTS]


def test_a_dark_figure_keeps_no_light_colour(report: Path) -> None:
    for file in (report / "figures").glob("*.svg"):
        dark = darkened(file.read_text("utf-8"))
        assert not any(colour in dark for colour in DARK), file
        assert any(colour in dark for colour in DARK.values())


def test_labels_keep_their_colour_and_no_two_look_alike() -> None:
    labels = ["cont_sft", "nsft/a", "nsft", "nsft/b", "nsft", "gt_dpo", "base"]
    looks = [look(label, labels) for label in dict.fromkeys(labels)]
    assert len(set(looks)) == 6
    assert look("nsft", labels) == look("nsft", ["nsft"])
    many = ["base", *(f"nsft/{i}" for i in range(30))]
    assert len({look(label, many) for label in many}) == len(many)


def test_errors_are_counted_by_codebook(study: Study) -> None:
    found = by_codebook(study[0])
    assert len(found) == 1
    corrections = next(c for c in study[0] if c.label == "nsft").corrections().values()
    assert found[0].num_answers == len(corrections)
    assert found[0].num_errors == sum(len(c.errors) for c in corrections) == found[0].categories.total()


def test_words_that_say_nothing_of_an_image_are_not_ranked() -> None:
    assert content_words("Is there a red truck in the image, or isn't it there?") == ["red", "truck", "isn't"]


def test_smoothing_keeps_short_series_and_the_mean_of_a_constant() -> None:
    import numpy as np

    short = np.array([1.0, 5.0, 2.0])
    assert (smooth(short) == short).all()
    assert smooth(np.full(400, 2.5)) == pytest.approx(np.full(400, 2.5))


def test_rows_that_a_swept_value_tells_apart_carry_it_in_their_label() -> None:
    from nsft_exp.study import _labels

    def outcome(label: str, rate: float, seed: int, recipe: str = "toy") -> dict[str, Any]:
        choices = {"method": label, "variant": "none", "source": "s", "vlm": "v", "recipe": recipe}
        config = {"seed": seed, "recipe": {"learning_rate": rate}, "trainer": {"micro_batch": seed + 1}}
        return {"label": label, "choices": choices, "config": config}

    rates = [outcome("nsft", rate, seed) for rate in (0.1, 0.2) for seed in (0, 1)]
    assert _labels([*rates, outcome("base", 0.1, 0), outcome("base", 0.2, 0)]) == [
        *("nsft recipe.learning_rate=0.1", "nsft recipe.learning_rate=0.1"),
        *("nsft recipe.learning_rate=0.2", "nsft recipe.learning_rate=0.2"),
        *("base", "base"),
    ]
    recipes = [outcome("nsft", 0.1, 0), outcome("nsft", 0.2, 0, "equal")]
    assert _labels(recipes) == ["nsft recipe=toy", "nsft recipe=equal"]
    assert _labels([outcome("nsft", 0.1, 0), outcome("nsft", 0.1, 1)]) == ["nsft", "nsft"]


def test_object_recall_and_length_stand_beside_the_scores_of_captions_untested(study: Study) -> None:
    scores = ["pope/adversarial_auc", "chair/chair_s"]
    results = make_results(study[0], {**study[1], "columns": scores}, replicates=50)
    assert [c.key for c in results.headline] == scores
    assert [c.key for c in results.shown] == [*scores, "chair/recall", "chair/length"]
    tested = {c.column.key for t in results.tables for c in t.comparisons if c.adjusted is not None}
    assert tested == set(scores)
