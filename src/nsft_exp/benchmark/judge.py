"""The LLM that judges answers: its settings, and the requests that are made of a benchmark's questions to it.

A judged benchmark has a `judge` and four methods: `ask(id, answer, replies)` gives what the judge is asked
next, after what it has replied so far (None: nothing more), `judged(id, answer, runs)` reads the replies by
the official rule, `read_answers(path)` a file of answers, and `read_graded(path)` the file that the official
program keeps its judge's replies in. nsft_exp.judging does the asking.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.reading import read_text
from nsft_exp.keys import digest
from nsft_exp.llm.asking import Call
from nsft_exp.llm.budget import Budget, Spent
from nsft_exp.llm.client import Client
from nsft_exp.llm.envelope import read_envelope
from nsft_exp.llm.ledger import Ledger
from nsft_exp.records import UserError

WHERE = "benchmark.judge"
TEMPLATE_TOKENS = 64
"""What a chat template may add to the words of a prompt."""
UNLIMITED = 4096
"""Tokens that a reply without a limit is taken to cost at most, for the budget."""


@dataclass(frozen=True)
class Ask:
    """What a judge is asked: the messages as (role, text), the template in them, and how much warmer."""

    messages: tuple[tuple[str, str], ...]
    template: str
    warmer: float = 0.0
    """Added to the judge's temperature."""
    again: int = 0
    """How often the very same was asked before: a sampled reply is then another one."""


@dataclass(frozen=True)
class Said:
    """One reply of a judge as it was received, with what names it: its request is in the ledger."""

    text: str
    """Empty where the server sent none."""
    model: str
    """The judge, as the server names it."""
    prompt: str
    """Hash of the template."""
    request: str
    """Hash of all that was sent, with the item's id and the run."""


class Judge:
    """A judge behind a server of the OpenAI protocol.

    `model` is the server's name of it, `file` the official program or table with its prompt (or a text file
    with the prompt alone), `runs` how often each answer is judged. `temperature` null sends none and
    `max_tokens` null sets no limit; `extra` goes into the request's body as it is. `budget` limits
    `requests`, `tokens` and `money` (by `prices` per million tokens). The remaining arguments say how the
    server is called. Constructing it sends nothing and opens no file. Raises UserError for wrong settings.
    """

    def __init__(
        self,
        model: str,
        file: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
        runs: int = 1,
        extra: Mapping[str, Any] | None = None,
        base_url: str | None = None,
        key_env: str | None = "OPENAI_API_KEY",
        concurrency: int = 16,
        attempts: int = 8,
        backoff: float = 1.0,
        timeout: float = 120.0,
        budget: Mapping[str, float | None] | None = None,
        prices: Mapping[str, float] | None = None,
    ) -> None:
        if runs < 1 or (max_tokens is not None and max_tokens < 1):
            raise UserError(f"{WHERE}.runs={runs}, {WHERE}.max_tokens={max_tokens}: must be at least 1")
        self.model, self.temperature, self.max_tokens, self.runs = model, temperature, max_tokens, runs
        self.path = None if file is None else Path(file)
        self.extra, self.base_url, self.key_env = extra or {}, base_url, key_env
        self.budget = Budget(budget, prices, where=WHERE)
        self._how = (concurrency, attempts, backoff, timeout)
        self.client(Path("."))  # checks the settings

    def client(self, folder: Path) -> Client:
        """Return what asks, with its ledger in a folder."""
        ledger = Ledger(folder, where="the folder that the scores go to")
        return Client(ledger, self.budget, self.base_url, self.key_env, *self._how, where=WHERE)

    def call(self, ask: Ask, key: str, run: int) -> Call:
        """Return the request of one question to the judge about item `key` in a run (counted from 0)."""
        messages = [{"role": role, "content": _encodable(text)} for role, text in ask.messages]
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        if self.temperature is not None:
            body["temperature"] = self.temperature + ask.warmer
        body |= {"extra_body": dict(self.extra)} if self.extra else {}
        bound = Spent(1, len(json.dumps(body).encode()) + TEMPLATE_TOKENS, self.max_tokens or UNLIMITED)
        named = [body, key, run] + [ask.again] * bool(ask.again)
        return Call(digest(named)[:24], body, prompt_hash(ask.template), bound)

    def said(self, row: Mapping[str, Any]) -> Said:
        """Return the reply in a ledger's row."""
        envelope = read_envelope(row["raw"])
        assert envelope is not None, f"request {row['key']}: not a reply"
        return Said(envelope.text or "", envelope.model or self.model, row["prompt"], row["key"])

    def prompt_file(self, source: str) -> Path:
        """Return the file with the prompt. Raises UserError, naming where it comes from, if there is none."""
        if self.path is None or not self.path.is_file():
            raise UserError(f"{WHERE}.file={self.path}: no such file; it is {source}")
        return self.path

    def template(self, name: str, source: str) -> str:
        """Return the prompt: the text that the official program (*.py) assigns to `name`, or the whole file.

        Raises UserError where there is none.
        """
        path = self.prompt_file(source)
        text = read_text(path)
        return _assigned(text, name, path) if path.suffix == ".py" else text

    def about(self) -> str:
        """How it judges, for a protocol's name."""
        warmth = "" if self.temperature is None else f", temperature {self.temperature:g}"
        runs = "" if self.runs == 1 else f", {self.runs} runs"
        return f"judged by {self.model}{warmth}{runs}"


def prompt_hash(template: str) -> str:
    """Return the first digits of the SHA-256 of a prompt's template."""
    return digest(_encodable(template))[:12]


def _assigned(program: str, name: str, path: Path) -> str:
    """The text that a program's top level assigns to a name; the program is read, never run."""
    try:
        statements = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no Python program ({error}); give the official one") from None
    for node in statements:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if name in names and isinstance(node.value.value, str):
                return node.value.value
    raise UserError(f"{path}: assigns no text to `{name}`; give the official program, or its prompt as .txt")


def _encodable(text: str) -> str:
    """A text without lone surrogates, which cannot be sent."""
    return text.encode("utf-8", "replace").decode()
