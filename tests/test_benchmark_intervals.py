"""Resampled images: metrics of summed counts are the official metrics of the resampled data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmark_files import score_all
from nsft_exp.benchmark.pope import Pope
from nsft_exp.statistics.bootstrap import ClusterSums
from test_benchmark_chair import chair, root  # noqa: F401
from test_benchmark_choices import mmbench, mme_root, small_mme, write_mmbench  # noqa: F401
from test_benchmark_pope import write_pope


def resampled(benchmark: Any, texts: list[str], weights: list[list[float]]) -> dict[str, np.ndarray]:
    """Every metric when image k (in order of first occurrence) is drawn weights[.][k] times."""
    scores = score_all(benchmark, texts)
    scores = benchmark.combine(scores) if hasattr(benchmark, "combine") else scores
    clusters = list(dict.fromkeys(s.cluster for s in scores))
    return ClusterSums.of(scores, clusters).metrics(benchmark.metrics, np.array(weights))


def test_popes_f1_is_that_of_the_drawn_images(tmp_path: Any) -> None:
    pope = Pope(str(write_pope(tmp_path)), str(tmp_path / "images"), splits=["random"])
    # image a: yes to a dog that is there (tp) and to a cup that is not (fp); image b: no to both (fn, tn)
    found = resampled(pope, ["Yes", "Yes", "No", "No"], [[1, 1], [2, 0], [3, 1]])
    # a and b: precision 1/2, recall 1/2; a twice: 1/2 and 1; a three times and b: 3/6 and 3/4
    np.testing.assert_allclose(found["f1"], [50, 200 / 3, 60])
    np.testing.assert_allclose(found["accuracy"], [50, 50, 50])


def test_chair_is_that_of_the_drawn_images(root: Any) -> None:  # noqa: F811
    one = chair(root, images=[7, 3])
    # image 7: one right word; image 3: a cup right, a dog and a puppy wrong
    found = resampled(one, ["A dog.", "a cup, a dog, a puppy"], [[1, 1], [2, 0], [1, 2]])
    np.testing.assert_allclose(found["chair_i"], [100 * 2 / 4, 0, 100 * 4 / 7])
    np.testing.assert_allclose(found["chair_s"], [50, 0, 100 * 2 / 3])


def test_mmes_accuracy_plus_counts_both_questions_of_each_drawn_image(mme_root: Any) -> None:  # noqa: F811
    texts = ["Yes", "No", "Yes", "Yes", "No", "No"]  # both right; one right; artwork: one right
    found = resampled(small_mme(mme_root), texts, [[1, 1, 1], [2, 0, 1], [1, 3, 1]])
    np.testing.assert_allclose(found["existence_acc"], [75, 100, 100 * 5 / 8])
    np.testing.assert_allclose(found["existence_acc_plus"], [50, 100, 25])
    np.testing.assert_allclose(found["perception"], [125 + 50, 200 + 50, 62.5 + 25 + 50])


def test_circular_accuracy_counts_whole_questions_of_each_drawn_image(tmp_path: Any) -> None:
    benchmark = mmbench(write_mmbench(tmp_path))
    texts = ["A", "C", "B", "A", "A"]  # question 1 right in both passes, question 2 in two of three
    found = resampled(benchmark, texts, [[1, 1], [0, 2], [3, 1]])
    np.testing.assert_allclose(found["circular"], [50, 0, 75])
    np.testing.assert_allclose(found["rows"], [80, 100 * 2 / 3, 100 * 8 / 9])
    assert found["c1"][1] != found["c1"][1], "no question of the category was drawn: undefined, not 0"


def test_questions_about_one_image_are_drawn_together(tmp_path: Any) -> None:
    path = write_mmbench(tmp_path) / "mmbench_dev.tsv"
    rows = path.read_text().splitlines()
    first = rows[1].split("\t")[9]
    path.write_text("\n".join([*rows[:2], rows[2].replace(rows[2].split("\t")[9], first), *rows[3:]]) + "\n")
    assert len({s.cluster for s in score_all(mmbench(tmp_path), ["A"] * 5)}) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_a_bootstrap_of_pope_brackets_its_f1(seed: int, tmp_path: Any) -> None:
    from nsft_exp.statistics.bootstrap import Bootstrap, ScoredItems

    pope = Pope(str(write_pope(tmp_path)), str(tmp_path / "images"), splits=["random"])
    a = ScoredItems(tuple(score_all(pope, ["Yes", "No", "Yes", "No"])))
    b = ScoredItems(tuple(score_all(pope, ["Yes", "Yes", "Yes", "No"])))
    gap = Bootstrap(pope.metrics, replicates=400, seed=seed).compare({None: a}, {None: b})["f1"]
    assert gap.value == pytest.approx(100 - 80)
    # image a alone: F1 100 against 2/3; image b alone: no difference
    assert gap.bootstrap == pytest.approx((0, 100 / 3))
