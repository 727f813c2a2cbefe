"""Answers to a benchmark's questions become per-item records and the metrics of a manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nsft_exp.records import ItemScore, Reply, Request, to_json
from nsft_exp.store import StageFolder

if TYPE_CHECKING:
    from nsft_exp.judging import Judged


def score_answers(
    benchmark: Any,
    requests: list[Request],
    answers: dict[str, Reply],
    folder: StageFolder,
    judged: Judged | None = None,
) -> dict[str, Any]:
    """Score answers by the benchmark's rule; write `records.jsonl` (in request order) and return the summary.

    `judged` is what the judge said of them, where one scores. A request without an answer (a server's refusal
    is none), or whose answer has no score, is counted and left out of the metrics; a judged benchmark's
    official means are then None.
    """
    replies, answers = answers, {key: reply for key, reply in answers.items() if reply.given}
    scores = scores_of(benchmark, requests, answers, judged)
    scored = [score for score in scores.values() if score]
    (folder.path / "records.jsonl").unlink(missing_ok=True)
    with folder.appending() as append:
        for request in requests:
            row = _item_row(request, replies.get(request.id), scores.get(request.id))
            append(row | ({"judge": judged.record(request.id)} if judged else {}))
    _write_submission(benchmark, answers, folder)
    metrics, totals = metrics_of(benchmark, scored, len(requests) - len(scored) if judged else 0)
    counts = {
        "scored": len(scored),
        "unscored": len(scores) - len(scored),
        "unanswered": len(requests) - len(scores),
        "unparseable": sum(score.unparseable for score in scored),
        "cut": sum(reply.finish == "length" for reply in answers.values()),
        **Counter(reply.finish for reply in replies.values() if not reply.given),
    }
    about = {"judge": judged.usage} if judged else {}
    return about | {
        "benchmark": benchmark.name,
        "protocol": benchmark.protocol,
        "n": len(requests),
        "counts": counts,
        "complete": counts["scored"] == len(requests),
        "metrics": metrics,
        "summed": {name: float(value) for name, value in sorted(totals.items())},
    }


def scores_of(
    benchmark: Any, requests: Sequence[Request], answers: Mapping[str, Reply], judged: Judged | None = None
) -> dict[str, ItemScore | None]:
    """Return the score of every answered request by id; None where the answer has none."""
    scores = {
        r.id: judged.score(benchmark, r.id) if judged else benchmark.score(r, answers[r.id])
        for r in requests
        if r.id in answers
    }
    if hasattr(benchmark, "combine"):  # items that count only together (MME's pairs, MMBench's circles)
        scores |= {score.id: score for score in benchmark.combine([s for s in scores.values() if s])}
    return scores


def metrics_of(
    benchmark: Any, scored: Sequence[ItemScore], lost: int = 0
) -> tuple[dict[str, float | None], dict[str, float]]:
    """Return the metrics of items, None where one is undefined, and the summed counts behind them.

    `lost` items have no judgement: a judged benchmark's official means are then None.
    """
    from nsft_exp.statistics import rank_metrics  # NumPy: not for what only plans

    totals: Counter[str] = Counter()
    for score in scored:
        totals.update(score.counts)
    if lost:
        totals["lost"] = lost
    found = {**benchmark.metrics(totals), **rank_metrics(scored)}
    metrics = {k: None if value is None or value != value else float(value) for k, value in found.items()}
    return metrics, dict(totals)


def _write_submission(benchmark: Any, answers: dict[str, Reply], folder: StageFolder) -> None:
    """Write what the benchmark's own server or program takes, where there is such, to `submission/`."""
    if not hasattr(benchmark, "submission"):
        return
    for name, content in benchmark.submission({key: reply.text for key, reply in answers.items()}).items():
        path = folder.path / "submission" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _item_row(request: Request, reply: Reply | None, score: ItemScore | None) -> dict[str, Any]:
    return {
        "id": request.id,
        "question": request.turns[-1].text,
        "answer": reply.text if reply and reply.given else None,
        "finish": reply.finish if reply else None,
        "score": to_json(score) if score else None,
        "reason": "" if score else _reason(reply),
    }


def _reason(reply: Reply | None) -> str:
    """Why there is no score."""
    if reply is None:
        return "no answer"
    return "cannot be scored" if reply.given else f"no answer: {reply.finish}"
