"""The toy world's tests through the classes that score the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nsft_exp.benchmark.answers import AnswerLine, sum_counts, summarise
from nsft_exp.benchmark.chair import Chair
from nsft_exp.benchmark.gqa import Gqa
from nsft_exp.benchmark.mme import Mme
from nsft_exp.benchmark.pope import Pope
from nsft_exp.records import Reply
from nsft_exp.toy.files import ToyFiles


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("toy") / "test"
    root, images = str(folder), str(folder / "images")
    files = ToyFiles(root, "test", seed=3, scenes=24)
    return {
        "pope": Pope(f"{root}/pope", images, files_from=files),
        "chair": Chair(f"{root}/chair", f"{root}/chair/synonyms.txt", images, files_from=files),
        "vqa": Gqa(f"{root}/vqa", images, extension=".png", files_from=files, name="vqa"),
        "mme": Mme(f"{root}/mme", ["existence", "count", "position", "color"], files_from=files),
    }


def truth(benchmark: Any, key: str) -> str:
    item = benchmark.items()[key]
    return str(item.label if hasattr(item, "label") else item.answer)


@pytest.mark.parametrize(
    ("name", "metric", "full"), [("pope", "f1", 100), ("vqa", "accuracy", 100), ("mme", "perception", 800)]
)
def test_the_truth_gets_full_marks(suite: dict[str, Any], name: str, metric: str, full: float) -> None:
    benchmark = suite[name]
    requests = benchmark.requests()
    scores = [benchmark.score(r, Reply(truth(benchmark, r.id))) for r in requests]
    scores = benchmark.combine(scores) if name == "mme" else scores
    metrics = benchmark.metrics(sum_counts(scores))
    assert metrics[metric] == pytest.approx(full)
    assert not any(s.unparseable for s in scores)
    assert all(Path(str(r.image)).exists() for r in requests)
    assert all(path.exists() for path in benchmark.files())
    assert {m.name for m in benchmark.describe() if m.headline} == {metric}


def test_a_true_description_has_no_hallucination_and_a_false_one_has(suite: dict[str, Any]) -> None:
    chair = suite["chair"]
    scores = []
    for request in chair.requests():
        right = chair.score(request, Reply("Nothing.")).truth
        scores.append(chair.score(request, Reply(f"There are {right.replace(', ', 's and ')}s.")))
        assert right
    metrics = chair.metrics(sum_counts(scores))
    assert (metrics["chair_s"], metrics["chair_i"], metrics["recall"]) == (0, 0, 100)
    wrong = chair.metrics(
        sum_counts([chair.score(r, Reply("A cup, a boat, a moon.")) for r in chair.requests()])
    )
    assert wrong["chair_i"] > 0


def test_toy_answers_can_be_scored_from_a_file(suite: dict[str, Any]) -> None:
    pope = suite["pope"]
    lines = [AnswerLine("a", item.id, item.label, "", {}) for item in pope.items().values()]
    summary, _ = summarise(pope, lines)
    assert (summary["complete"], summary["metrics"]["f1"]) == (True, 100)
