"""Pairs of answers for tests of critics that call a server, and such a critic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from nsft_exp import config as configs
from nsft_exp.critic.codebook import Codebook
from nsft_exp.critic.llm import LLM
from nsft_exp.records import Correction, Preference, Sample
from scripted_critic import Answer, Script, Server, completion

BOOK = Codebook(
    yaml.safe_load((configs.folder("conf") / "codebook" / "full.yaml").read_text("utf-8"))["categories"]
)
CHOSEN = "There is a red cup at the top left. There is nothing else in the image."
Pairs = list[tuple[Sample, Preference]]


def pairs(number: int, start: int = 0) -> Pairs:
    """Pairs that differ in the cup's color; the word at the end makes every request another one."""
    made = []
    for i in range(start, start + number):
        rejected = f"There is a blue cup at the top left, says voice {i}."
        made.append(
            (Sample(f"s{i}", None, "What is there?", CHOSEN), Preference(f"s{i}", "ok", CHOSEN, rejected))
        )
    return made


def critic(server: Server | str, cache: Path, **options: Any) -> LLM:
    """An LLM critic that asks a scripted server, two attempts at most and hardly a pause between them."""
    url = server if isinstance(server, str) else server.base_url
    given = {"model": "scripted", "codebook": BOOK, "cache": str(cache), "base_url": url, "concurrency": 4}
    return LLM(**{**given, "attempts": 2, "backoff": 0.01, **options})


def collect(source: LLM, given: Pairs) -> tuple[list[Correction], str]:
    """What a critic yields, and the one line with which it then stops (empty: nothing was missing)."""
    from nsft_exp.records import UserError

    found: list[Correction] = []
    try:
        for correction in source.corrections(given):
            found.append(correction)
    except UserError as error:
        return found, str(error)
    return found, ""


def reply(errors: Any = None, dialogue: Any = None) -> str:
    """A reply in the asked form; by default one error with a balanced dialogue."""
    error = {"category": "attribute", "wrong": "blue", "right": "red"}
    turns = [("Is the cup blue?", "No, the cup is red."), ("Is the cup red?", "Yes, the cup is red.")]
    rows = [{"question": question, "answer": answer} for question, answer in turns]
    return json.dumps(
        {"errors": [error] if errors is None else errors, "dialogue": rows if dialogue is None else dialogue}
    )


def saying(text: str | None, **options: Any) -> Script:
    """The script that answers every request with the same text."""
    return lambda body, number: Answer(body=completion(text, **options))


def first(answers: list[Answer], then: Script) -> Script:
    """The script that gives these answers to the first requests, and then goes on with another."""
    return lambda body, number: answers[number] if number < len(answers) else then(body, number)
