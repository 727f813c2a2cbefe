"""Asking a benchmark's judge about answers: a reply is on the disk before it is used, and never asked twice.

The ledger (`calls.jsonl`) lies in the evaluate stage's `judge/`, or beside the scores of `nsft score`. A
judge that cannot be reached, or whose budget is spent, leaves items without a judgement: they are counted,
the official means are then None, and the same command asks for what is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.answers import ScoredAnswers
from nsft_exp.benchmark.judge import Judge, Said
from nsft_exp.llm.asking import Call
from nsft_exp.llm.client import Client
from nsft_exp.output import track
from nsft_exp.records import ItemScore, UserError

Slot = tuple[str, int]
"""An item's id and the run."""


@dataclass
class Judged:
    """What a judge said of answers."""

    replies: dict[str, list[tuple[Said, ...]]]
    """By item: each run's replies in order. Items without all of them are left out."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """What was judged, by item."""
    usage: dict[str, Any] = field(default_factory=dict)
    """What the calls have cost, those of earlier runs included."""
    account: str = ""
    """Why replies are missing; empty where none is."""

    def score(self, benchmark: Any, key: str) -> ItemScore | None:
        """The score of an item; None where its judgement was never obtained."""
        if key not in self.replies:
            return None
        runs = [[said.text for said in run] for run in self.replies[key]]
        score: ItemScore | None = benchmark.judged(key, self.answers[key], runs)
        return score

    def record(self, key: str) -> list[list[dict[str, Any]]] | None:
        """The replies behind an item's score as plain values, a list for each run."""
        runs = self.replies.get(key)
        return None if runs is None else [[asdict(said) for said in run] for run in runs]


def ask_judge(benchmark: Any, answers: Mapping[str, str], folder: Path) -> Judged:
    """Have a benchmark's judge read answers (by item id), with its ledger in `folder`.

    Warns on standard error where replies are missing. Raises UserError for a prompt that is not there.
    """
    judge: Judge = benchmark.judge
    client = judge.client(folder)
    said: dict[Slot, tuple[Said, ...]] = {(key, run): () for run in range(judge.runs) for key in answers}
    keys: list[str] = []
    lost: set[Slot] = set()
    account, waiting = "", list(said)
    while waiting and not account:
        calls = _calls(benchmark, answers, said, waiting)
        keys += [call.key for call in calls.values()]
        account = _receive(client, judge, calls, said, lost)
        waiting = list(calls)
    done = {slot for slot in said if slot not in lost and _finished(benchmark, answers, said, slot)}
    replies = {
        key: [said[key, run] for run in range(judge.runs)]
        for key in answers
        if all((key, run) in done for run in range(judge.runs))
    }
    if account:
        print(f"nsft: warning: {benchmark.name}: {account}", file=sys.stderr)
    usage = {**client.usage(judge.model, keys), "unjudged": len(answers) - len(replies)}
    return Judged(replies, answers, usage, account)


def first_calls(benchmark: Any, answers: Mapping[str, str], folder: Path) -> list[tuple[Client, Call]]:
    """What the judge is asked first about answers (by item id), and who asks; nothing is sent.

    MM-Vet asks again where a reply is no grade: its calls can be more.
    """
    judge: Judge = benchmark.judge
    client = judge.client(folder)
    said: dict[Slot, tuple[Said, ...]] = {(key, run): () for run in range(judge.runs) for key in answers}
    return [(client, call) for call in _calls(benchmark, answers, said, list(said)).values()]


def _calls(
    benchmark: Any, answers: Mapping[str, str], said: Mapping[Slot, tuple[Said, ...]], slots: list[Slot]
) -> dict[Slot, Call]:
    """The next request of every slot that has one."""
    calls = {}
    for slot in slots:
        ask = benchmark.ask(slot[0], answers[slot[0]], [s.text for s in said[slot]])
        if ask is not None:
            calls[slot] = benchmark.judge.call(ask, *slot)
    return calls


def _receive(
    client: Client,
    judge: Judge,
    calls: Mapping[Slot, Call],
    said: dict[Slot, tuple[Said, ...]],
    lost: set[Slot],
) -> str:
    """Add the replies to what was said; returns why some are missing, if they are."""
    slots = list(calls)
    try:
        for number, row in enumerate(track(client.answers(calls.values()), "judge", len(slots))):
            if row is None:
                lost.add(slots[number])
            else:
                said[slots[number]] += (judge.said(row),)
    except UserError as error:
        return str(error)
    return ""


def _finished(
    benchmark: Any, answers: Mapping[str, str], said: Mapping[Slot, tuple[Said, ...]], slot: Slot
) -> bool:
    return not _calls(benchmark, answers, said, [slot])


def judge_file(benchmark: Any, path: Path, folder: Path | None) -> ScoredAnswers:
    """Score a file of answers with the judge, or a file of what the official program's judge replied.

    `folder` takes the ledger. Raises UserError where the official program stops, and for answers without a
    folder, whose replies would be lost.
    """
    graded: ScoredAnswers | None = benchmark.read_graded(path)
    if graded is not None:
        return graded
    given = benchmark.read_answers(path)
    if folder is None:
        raise UserError("out=FILE is missing: the judge's replies are kept beside it, and are paid for once")
    judged = ask_judge(benchmark, given.texts, folder)
    scores = {key: judged.score(benchmark, key) for key in given.texts}
    there = [key for key, score in scores.items() if score]
    return ScoredAnswers(
        [score for score in scores.values() if score],
        expected=given.expected,
        answered=len(given.texts),
        missing=given.missing,
        duplicate=given.duplicate,
        unknown=given.unknown,
        warnings=[judged.account] * bool(judged.account),
        said=[given.texts[key] for key in there],
        unjudged=[key for key in scores if not scores[key]],
        judged=[judged.record(key) for key in there],
        about={"judge": judged.usage},
    )
