"""The scale of forest plots, and what lies beyond it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nsft_exp.report.analysis import make_results
from nsft_exp.report.forest import common_limits, draw_differences
from nsft_exp.report.results import Comparison
from nsft_exp.report.style import Style, drawing, settle
from synthetic_study import make_study


def test_the_scale_takes_in_all_spans_and_zero_with_a_margin() -> None:
    assert common_limits([(1.0, 3.0), (2.0, 5.0)]) == pytest.approx((-0.3, 5.3))
    assert common_limits([(-4.0, -1.0)]) == pytest.approx((-4.24, 0.24))
    assert common_limits([(0.0, 0.0)]) == (-1.0, 1.0)


def test_a_few_spans_that_reach_far_beyond_the_rest_do_not_set_the_scale() -> None:
    usual = [(-1.0, 2.0)] * 9
    assert common_limits([*usual, (-80.0, -60.0)]) == pytest.approx((-3.3, 2.3))  # 1.5 x 2; 6 % of 5
    assert common_limits([*usual, (-6.0, -5.0)]) == pytest.approx((-6.48, 2.48))  # three times as far: shown
    assert common_limits([*usual[:6], (-80.0, -60.0)])[0] > -4  # one of seven
    assert common_limits([*usual[:5], (-80.0, -60.0)])[0] < -80  # one of six: no longer few
    assert common_limits([*usual[:7], *[(-80.0, -60.0)] * 3])[0] < -80


def test_a_difference_beyond_the_panel_is_written_at_its_edge(tmp_path: Path) -> None:
    results = make_results(*make_study(tmp_path, num_images=24), replicates=100)
    far = results.tables[1].comparisons[0]
    assert far.column.headline

    def moved(c: Comparison) -> Comparison:
        if c != far:
            return c
        difference = dataclasses.replace(c.difference, value=-900.0, bootstrap=(-910.0, -890.0))
        return dataclasses.replace(c, difference=difference)

    tables = [
        dataclasses.replace(t, comparisons=tuple(moved(c) for c in t.comparisons)) for t in results.tables
    ]
    with drawing():
        figure = draw_differences(dataclasses.replace(results, tables=tuple(tables)), Style())
    assert figure is not None
    written = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert written == ["−900.0" if far.column.better == "up" else "+900.0"]  # right is better
    assert max(abs(end) for axes in figure.axes for end in axes.get_xlim()) < 500


@pytest.mark.parametrize("narrow", [False, True])
def test_a_single_difference_has_room_below_titles_of_three_lines(narrow: bool, tmp_path: Path) -> None:
    results = make_results(*make_study(tmp_path, num_images=24), replicates=100)
    table = results.tables[1]
    one = next(c for c in table.comparisons if c.column.headline)
    elsewhere = dataclasses.replace(
        one, arm=dataclasses.replace(one.arm, source="another", vlm="another_vlm")
    )
    arms = [one.arm, elsewhere.arm]
    alone = dataclasses.replace(table, comparisons=(one, elsewhere))
    with drawing():
        figure = draw_differences(dataclasses.replace(results, tables=(alone,), arms=arms), Style(narrow))
        assert figure is not None
        settle(figure)
        for axes in figure.axes:
            assert axes.get_title(loc="left").count("\n") == 2
            assert axes.get_window_extent().height > 0.2 * figure.dpi
            assert figure.bbox.contains(*axes.get_tightbbox().min)
            assert figure.bbox.contains(*axes.get_tightbbox().max)
