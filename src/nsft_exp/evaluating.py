"""The evaluate stage: a model answers a benchmark's questions; rules, a judge or another program score."""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

from nsft_exp.answering import CHUNK, answering, served
from nsft_exp.cell_run import CellRun, build, open_folder
from nsft_exp.child import run_child
from nsft_exp.judging import ask_judge
from nsft_exp.output import circumstances, track
from nsft_exp.plan import Step
from nsft_exp.records import Reply, Request, from_json, to_json
from nsft_exp.scoring import score_answers
from nsft_exp.store import StageFolder


def evaluate(step: Step, run: CellRun) -> StageFolder:
    """The model answers a benchmark's questions and is scored: per-item records, then the metrics."""
    benchmark = build(step.nodes["benchmark"])
    benchmark.files()  # those that are made when missing are there from here on, for the key
    folder = open_folder(step, run, {"init": [run.keys[name] for name in step.init]})
    with folder.lock():
        if not is_evaluated(folder):
            run.begin()
            started = time.perf_counter()
            requests = benchmark.requests()[: step.nodes.get("limit")]
            if hasattr(benchmark, "command"):
                scores = _by_program(benchmark, folder, step, run)
            elif hasattr(benchmark, "judge"):
                scores = _judged(benchmark, requests, folder, step, run)
            else:
                answers = _answers(requests, folder, step, run)
                scores = score_answers(benchmark, requests, answers, folder)
                scores |= served(step, [reply.request for reply in answers.values()])
            folder.finish({**scores, **circumstances(started)})
    return folder


def _by_program(benchmark: Any, folder: StageFolder, step: Step, run: CellRun) -> dict[str, Any]:
    """Have another program ask the model's server and score; one that was killed begins anew."""
    out = folder.path / benchmark.name
    shutil.rmtree(out, ignore_errors=True)
    with answering(step, run) as answerer:
        words, more = benchmark.command(answerer.vlm.address(), out, step.nodes.get("limit"))
        run_child(words, {**os.environ, **more}, merged=True)
    summary, records = benchmark.outcome(out)
    (folder.path / "records.jsonl").unlink(missing_ok=True)
    with folder.appending() as append:
        for record in records:
            append(record)
    return summary


def is_evaluated(folder: StageFolder) -> bool:
    """Whether nothing is left to do: replies that a judge or a program never got are asked for again."""
    manifest = folder.manifest()
    if manifest is None or manifest.get("judge", {}).get("unjudged"):
        return False
    return "tasks" not in manifest or bool(manifest["complete"])


def _judged(
    benchmark: Any, requests: list[Request], folder: StageFolder, step: Step, run: CellRun
) -> dict[str, Any]:
    """Answers first, in a folder of their own (whoever judges them, they are given once); then the judge."""
    place = answers_folder(step, run)
    with place.lock():
        place.write_config({"kind": "answer", "name": step.name, "nodes": _unjudged(step)})
        answers = _answers(requests, place, step, run)
    texts = {key: reply.text for key, reply in answers.items() if reply.given}
    judged = ask_judge(benchmark, texts, folder.path / "judge")
    scores = score_answers(benchmark, requests, answers, folder, judged)
    return scores | served(step, [reply.request for reply in answers.values()])


def answers_folder(step: Step, run: CellRun) -> StageFolder:
    """The folder of the answers that a judge is shown; nothing is written."""
    inputs = {"init": [run.keys[name] for name in step.init]}
    return run.store.open("answer", step.label, run.store.key("answer", _unjudged(step), inputs))


def _unjudged(step: Step) -> dict[str, Any]:
    return {**step.nodes, "benchmark": {k: v for k, v in step.nodes["benchmark"].items() if k != "judge"}}


def _answers(requests: list[Request], folder: StageFolder, step: Step, run: CellRun) -> dict[str, Reply]:
    done = {row["id"]: row["reply"] for row in folder.records("answers.jsonl")}
    chunks = [requests[start : start + CHUNK] for start in range(0, len(requests), CHUNK)]
    todo = [chunk for chunk in chunks if any(request.id not in done for request in chunk)]
    if todo:
        with answering(step, run) as vlm, folder.appending("answers.jsonl") as append:
            replies = vlm.generate(request for chunk in todo for request in chunk)
            for key, (reply, *_) in track(replies, "evaluate", sum(map(len, todo))):
                done[key] = to_json(reply)
                append({"id": key, "reply": done[key]})
    return {key: from_json(Reply, row) for key, row in done.items()}
