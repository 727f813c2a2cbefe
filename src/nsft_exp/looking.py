"""Looks at a model while it is trained: it answers held-out questions, and some of each watched benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nsft_exp.checkpoint import Rows
from nsft_exp.conversation import PROMPT
from nsft_exp.interfaces import Watched
from nsft_exp.job import Job
from nsft_exp.records import ROLES, Decoding, Example, Reply, Request
from nsft_exp.vlm.loaded import LoadedHF


def look(job: Job, record: Callable[[dict[str, Any]], None], step: int) -> None:
    """Answer the first held-out questions greedily and record the answers."""
    requests = [_question(example) for example in job.validation[: job.trainer.sample_answers]]
    for name, replies in job.loaded.generate(requests):
        record(_row(step, name, replies[0]))


def watch(
    job: Job, watched: Sequence[Watched], record: Callable[[dict[str, Any]], None], rows: Rows, step: int
) -> None:
    """Answer the questions of the watched benchmarks; record their metrics, and some answers in `rows`.

    Every process answers its share (all of it where layers are in parts, which all ranks run together); only
    the first one records. Metrics without a value are left out.
    """
    share = slice(None) if job.sharded else slice(job.world.rank, None, job.world.size)
    for benchmark in watched:
        requests = list(benchmark.requests)
        with _from_files(job.loaded):
            mine = dict(job.loaded.generate(requests[share]))
        replies = {key: r[0] for part in job.world.gathered(mine) for key, r in part.items()}
        if not job.world.first:
            continue
        found = benchmark.metrics(replies)
        record(
            {"step": step} | {f"benchmark/{benchmark.name}/{name}": value for name, value in found.items()}
        )
        for request in requests[: job.trainer.sample_answers]:
            asked = {"benchmark": benchmark.name, "question": request.turns[-1].text}
            rows.append(_row(step, request.id, replies[request.id]) | asked)


def _row(step: int, name: str, reply: Reply) -> dict[str, Any]:
    return {"step": step, "id": name, "answer": reply.text, "finish": reply.finish}


@contextmanager
def _from_files(loaded: LoadedHF) -> Iterator[None]:
    """Have images be files inside the block: a source that draws its own is of the training only."""
    opener, loaded.opener = loaded.opener, None
    try:
        yield
    finally:
        loaded.opener = opener


def _question(example: Example) -> Request:
    """The question before an example's first supervised answer."""
    conversation = example.conversations[0]
    answers = (n for n, turn in enumerate(conversation.turns) if n % 2 and turn.role != ROLES[PROMPT])
    turns = conversation.turns[: next(answers)]
    return Request(
        example.id, conversation.image, turns, conversation.view, decoding=Decoding(max_new_tokens=128)
    )
