"""Benchmarks that a training is watched with: whole images of each, answered and scored as at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nsft_exp.cell_run import build
from nsft_exp.keys import digest
from nsft_exp.records import Reply, Request, UserError
from nsft_exp.scoring import metrics_of, scores_of


@dataclass(frozen=True)
class WatchedBenchmark:
    """Some questions of a benchmark, and its official rule on them."""

    name: str
    benchmark: Any
    requests: list[Request]

    def metrics(self, replies: Mapping[str, Reply]) -> dict[str, float]:
        """The metrics that have a value on these answers alone."""
        scores = scores_of(self.benchmark, self.requests, replies)
        found, _ = metrics_of(self.benchmark, [score for score in scores.values() if score])
        return {name: value for name, value in found.items() if value is not None}


def watched_benchmarks(nodes: Mapping[str, dict[str, Any]], limit: int) -> list[WatchedBenchmark]:
    """Return those of the benchmarks (config nodes by name) that a rule scores, about `limit` questions each.

    What a judge scores is not watched: it would be paid at every look. Raises UserError where nothing is.
    """
    made = {name: build(node) for name, node in nodes.items()}
    ruled = {name: benchmark for name, benchmark in made.items() if not _elsewhere(benchmark)}
    found = []
    for name, benchmark in ruled.items():
        benchmark.files()  # those that are made when missing
        found.append(WatchedBenchmark(name, benchmark, some_images(benchmark.requests(), limit)))
    if not found:
        raise UserError(
            f"trainer.evaluate_every: no rule scores {', '.join(made)}; watch another benchmark, or none (0)"
        )
    return found


def _elsewhere(benchmark: Any) -> bool:
    """Whether someone else scores: an LLM, or a program that asks the model's server."""
    return hasattr(benchmark, "judge") or hasattr(benchmark, "command")


def some_images(requests: Sequence[Request], limit: int) -> list[Request]:
    """Return the questions of some images, whole, so that those that count together stay together.

    Images are taken in the order of their names' hash, as many as `limit` questions need.
    """
    by_image: dict[str, list[Request]] = {}
    for request in requests:
        by_image.setdefault(request.image or request.id, []).append(request)
    kept: set[str] = set()
    for image in sorted(by_image, key=lambda image: digest(image.rpartition("/")[2])):
        if len(kept) >= limit:
            break
        kept |= {request.id for request in by_image[image]}
    return [request for request in requests if request.id in kept]
