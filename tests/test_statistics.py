"""Intervals, tests and the pigeonhole bootstrap, against scipy, brute force and simulation."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from nsft_exp.records import ItemScore
from nsft_exp.statistics import Bootstrap, ScoredItems, auc, holm, rank_metrics, student_interval
from nsft_exp.statistics.bootstrap import ClusterSums, common_seeds
from nsft_exp.statistics.interval import (
    multiplicities,
    percentile_interval,
    student_quantile,
    student_within,
)

scipy_stats = pytest.importorskip("scipy.stats")


def f1(counts: Mapping[str, Any]) -> dict[str, Any]:
    """F1 and accuracy in percent from summed counts; elementwise."""
    tp, fp, fn, n = (counts[k] for k in ("tp", "fp", "fn", "n"))
    return {"f1": 100 * 2 * tp / (2 * tp + fp + fn), "accuracy": 100 * (n - fp - fn) / n}


def item(key: str, cluster: str, says: bool, true: bool, rank: float | None = None) -> ItemScore:
    counts = {"tp": says and true, "fp": says and not true, "fn": true and not says, "n": 1}
    ranks = {} if rank is None else {"all": (int(true), rank)}
    return ItemScore(key, cluster, {k: float(v) for k, v in counts.items()}, ranks=ranks)


def model(seed: int, right: float, num_images: int = 30, per_image: int = 4) -> ScoredItems:
    rng = random.Random(seed)
    rows = []
    for i in range(num_images * per_image):
        true = i % 2 == 0
        says = true if rng.random() < right else not true
        rows.append(item(f"q{i}", f"image{i // per_image}", says, true, rng.gauss(right * true, 1)))
    return ScoredItems(tuple(rows))


# --- t, Holm, areas --------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 10, 29, 30])
def test_students_distribution_equals_scipys(df: int) -> None:
    for t in (0.0, 0.3, 1.0, 2.776, 12.0, 100.0):
        assert student_within(t, df) == pytest.approx(1 - 2 * scipy_stats.t.sf(t, df), abs=1e-12)
    assert student_quantile(0.95, df) == pytest.approx(scipy_stats.t.ppf(0.975, df), rel=1e-9)


@pytest.mark.parametrize("values", [[1.0, 2.0, 4.5], [-0.3, 0.1], [3.0, 3.1, 2.9, 3.3, 2.5]])
def test_the_t_interval_and_its_p_value_equal_scipys(values: list[float]) -> None:
    interval, p = student_interval(values)
    theirs = scipy_stats.ttest_1samp(values, 0.0)
    assert interval == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-9)
    assert p == pytest.approx(theirs.pvalue, rel=1e-8)


def test_one_seed_or_an_undefined_one_has_no_t_interval() -> None:
    assert student_interval([1.0]) == (None, None)
    assert student_interval([1.0, math.nan, 2.0]) == (None, None)


def test_equal_differences_have_an_interval_of_no_width() -> None:
    assert student_interval([2.0, 2.0, 2.0]) == ((2.0, 2.0), 0.0)
    assert student_interval([0.0, 0.0]) == ((0.0, 0.0), 1.0)


def test_holm_multiplies_by_the_number_of_tests_that_are_left() -> None:
    # sorted: .01 x 3, .03 x 2, .04 x 1 = .04 -> raised to .06, the largest before it
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_area_under_the_curve_equals_the_share_of_ordered_pairs() -> None:
    rng = random.Random(0)
    labels = [rng.randint(0, 1) for _ in range(60)]
    ranks = [round(rng.gauss(label, 1), 1) for label in labels]  # rounded: ties
    assert len(set(ranks)) < len(ranks)
    pairs = [
        (p, n)
        for p, a in zip(ranks, labels, strict=True)
        if a
        for n, b in zip(ranks, labels, strict=True)
        if not b
    ]
    wins = sum((p > n) + 0.5 * (p == n) for p, n in pairs)
    assert auc(labels, ranks) == pytest.approx(wins / len(pairs))


def test_an_area_without_both_labels_is_undefined_not_zero() -> None:
    assert math.isnan(auc([1, 1], [0.1, 0.2]))
    assert math.isnan(rank_metrics([item("q", "i", True, True, 0.3)])["all_auc"])


# --- the bootstrap ---------------------------------------------------------------------------------


def test_a_replicate_draws_as_many_images_as_there_are() -> None:
    drawn = multiplicities(17, 200, np.random.default_rng(0))
    assert drawn.shape == (200, 17)
    assert (drawn.sum(1) == 17).all()
    assert drawn.mean() == pytest.approx(1.0)


def test_weighted_metrics_equal_those_of_the_items_written_out() -> None:
    items, clusters = model(3, 0.7).scores, [f"image{i}" for i in range(30)]
    weights = multiplicities(30, 5, np.random.default_rng(1))
    ours = ClusterSums.of(items, clusters).metrics(f1, weights)
    for row in range(5):
        times = dict(zip(clusters, weights[row].astype(int), strict=True))
        written = [s for s in items for _ in range(times[s.cluster])]
        counts = {k: sum(s.counts[k] for s in written) for k in ("tp", "fp", "fn", "n")}
        assert ours["f1"][row] == pytest.approx(f1(counts)["f1"])
        labels, ranks = zip(*(s.ranks["all"] for s in written), strict=True)
        assert ours["all_auc"][row] == pytest.approx(auc(labels, ranks))


def test_the_interval_equals_that_of_a_plain_loop_over_images_and_seeds() -> None:
    a = {s: model(10 + s, 0.75) for s in range(3)}
    b = {s: model(20 + s, 0.65) for s in range(3)}
    found = Bootstrap(f1, replicates=4000).compare(a, b)["f1"]
    rng, images = random.Random(5), [f"image{i}" for i in range(30)]
    by_image = {
        (side, s): {c: [x for x in models[s].scores if x.cluster == c] for c in images}
        for side, models in (("a", a), ("b", b))
        for s in range(3)
    }

    def score(side: str, seed: int, drawn: Sequence[str]) -> float:
        rows = [x.counts for c in drawn for x in by_image[side, seed][c]]
        return f1({k: sum(r[k] for r in rows) for k in rows[0]})["f1"]

    plain = []
    for _ in range(1500):
        drawn, seeds = rng.choices(images, k=30), rng.choices(range(3), k=3)
        plain.append(np.mean([score("a", s, drawn) - score("b", s, drawn) for s in seeds]))
    low, high = np.quantile(plain, [0.025, 0.975])
    assert found.bootstrap is not None
    assert found.value == pytest.approx(
        np.mean([score("a", s, images) - score("b", s, images) for s in range(3)])
    )
    assert found.bootstrap == pytest.approx((low, high), abs=0.08 * (high - low))


def test_more_questions_on_the_same_images_do_not_narrow_the_interval() -> None:
    def copied(m: ScoredItems) -> ScoredItems:
        again = tuple(ItemScore(f"{s.id}-{k}", s.cluster, s.counts) for s in m.scores for k in range(5))
        return ScoredItems(again)

    a, b = {0: model(1, 0.8), 1: model(2, 0.8)}, {0: model(3, 0.7), 1: model(4, 0.7)}
    once = Bootstrap(f1, 500).compare(a, b)["f1"]
    five = Bootstrap(f1, 500).compare(
        {s: copied(m) for s, m in a.items()}, {s: copied(m) for s, m in b.items()}
    )["f1"]
    assert five.items == 5 * once.items
    assert five.bootstrap == pytest.approx(once.bootstrap)


def test_a_model_without_seeds_stands_beside_every_seed() -> None:
    base, trained = {None: model(0, 0.6)}, {s: model(s, 0.8) for s in (1, 2, 3)}
    found = Bootstrap(f1, 300).compare(trained, base)["accuracy"]
    single = [Bootstrap(f1, 10).compare({s: trained[s]}, base)["accuracy"].value for s in (1, 2, 3)]
    assert found.seeds == (1, 2, 3)
    assert found.per_seed == pytest.approx(single)
    back = Bootstrap(f1, 300).compare(base, trained)["accuracy"]
    assert back.value == pytest.approx(-found.value)


def test_seeds_that_only_one_side_has_are_not_compared() -> None:
    assert common_seeds(
        {0: model(0, 0.5), 1: model(1, 0.5), 7: model(7, 0.5)}, {1: model(1, 0.5), 2: model(2, 0.5)}
    ) == [1]


def test_with_one_seed_there_is_an_interval_over_images_but_no_test() -> None:
    found = Bootstrap(f1, 300).compare({0: model(1, 0.9)}, {0: model(2, 0.5)})["accuracy"]
    assert found.bootstrap is not None
    assert found.bootstrap[0] > 0
    assert found.student is None
    assert found.p is None


def test_items_without_a_partner_are_left_out_and_counted() -> None:
    a, b = model(1, 0.8), model(2, 0.7)
    lacking = ScoredItems(b.scores[:-6])
    kept = {s.id for s in lacking.scores}
    found = Bootstrap(f1, 300).compare({0: a}, {0: lacking})["accuracy"]
    by_hand = Bootstrap(f1, 300).compare(
        {0: ScoredItems(tuple(s for s in a.scores if s.id in kept))}, {0: lacking}
    )
    assert found.unpaired == 6
    assert found.items == len(kept)
    assert found.value == by_hand["accuracy"].value


def test_an_undefined_metric_has_neither_value_nor_interval() -> None:
    silent = ScoredItems(tuple(item(f"q{i}", f"image{i}", False, False) for i in range(8)))
    found = Bootstrap(f1, 100).compare({0: silent, 1: silent}, {0: silent, 1: silent})
    assert math.isnan(found["f1"].value)
    assert found["f1"].bootstrap is None
    assert found["f1"].p is None
    assert found["f1"].replicates == 0
    assert found["accuracy"].value == 0.0
    assert found["accuracy"].p == 1.0


def test_nothing_in_common_is_no_comparison() -> None:
    other = ScoredItems((item("elsewhere", "image", True, True),))
    assert Bootstrap(f1, 10).compare({0: model(0, 0.5)}, {0: other}) == {}
    assert Bootstrap(f1, 10).compare({0: model(0, 0.5)}, {1: model(1, 0.5)}) == {}


def test_the_p_value_is_below_five_percent_where_the_interval_excludes_zero() -> None:
    rng = np.random.default_rng(0)
    for shift in np.linspace(-4, 4, 81):
        interval, p = percentile_interval(rng.normal(shift, 1.0, 2000))
        if abs(p - 0.05) > 0.003:  # the interval interpolates between replicates, the p-value counts them
            assert (p < 0.05) == (interval[0] > 0 or interval[1] < 0)


def test_the_same_scores_give_the_same_intervals() -> None:
    a, b = {0: model(1, 0.8), 1: model(2, 0.8)}, {0: model(3, 0.7), 1: model(4, 0.7)}
    assert Bootstrap(f1, 200).compare(a, b) == Bootstrap(f1, 200).compare(a, b)


def simulated(rng: np.random.Generator, effect: float, seeds: int = 4, images: int = 30) -> tuple[Any, Any]:
    """Two methods that share images, and differ by `effect`, by seed, by image and by chance."""
    image, image_taste = rng.normal(0, 1, images), rng.normal(0, 0.5, images)
    sides: list[dict[int, ScoredItems]] = []
    for side in (0, 1):
        models = {}
        for s in range(seeds):
            values = (
                effect * side + rng.normal(0, 0.3) + image + image_taste * side + rng.normal(0, 1, images)
            )
            rows = (ItemScore(str(i), str(i), {"sum": float(v), "n": 1.0}) for i, v in enumerate(values))
            models[s] = ScoredItems(tuple(rows))
        sides.append(models)
    return sides[1], sides[0]


def both_exclude_zero(rng: np.random.Generator, effect: float, num: int) -> float:
    """Share of simulated studies that find a difference."""
    found = 0
    for _ in range(num):
        a, b = simulated(rng, effect)
        d = Bootstrap(lambda c: {"mean": c["sum"] / c["n"]}, 400).compare(a, b)["mean"]
        found += all(x is not None and (x[0] > 0 or x[1] < 0) for x in (d.bootstrap, d.student))
    return found / num


def test_without_a_difference_at_most_one_study_in_twenty_finds_one() -> None:
    share = both_exclude_zero(np.random.default_rng(7), effect=0.0, num=150)
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)


def test_a_large_difference_is_found() -> None:
    assert both_exclude_zero(np.random.default_rng(8), effect=2.0, num=40) > 0.8
