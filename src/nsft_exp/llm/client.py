"""Many requests to one server of the OpenAI protocol: concurrent, repeated where that helps, within a budget.

Every reply is in the ledger before it is handed on, and a request whose reply is there is not sent.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from nsft_exp.llm.asking import Call, Work
from nsft_exp.llm.budget import Budget
from nsft_exp.llm.ledger import Ledger
from nsft_exp.records import UserError

OPENAI = "https://api.openai.com/v1"


class Client:
    """Asks a server for chat completions and keeps what it says in a `ledger`.

    `base_url` is the server's (None: OpenAI's own), `key_env` the environment variable that holds the key; a
    server on this machine needs none. At most `concurrency` requests are in flight, each given `timeout`
    seconds; one that fails in a way that may pass is sent up to `attempts` times, after `backoff` seconds,
    twice that, and so on (each shortened at random by up to a half, at most a minute), or after what the
    server's Retry-After says, during which nothing else is sent. Where nothing listens and this process has
    had no reply, 3 attempts within 5 seconds are all. `where` is the config's node, for messages. Raises
    UserError for wrong settings.
    """

    def __init__(
        self,
        ledger: Ledger,
        budget: Budget,
        base_url: str | None = None,
        key_env: str | None = "OPENAI_API_KEY",
        concurrency: int = 16,
        attempts: int = 8,
        backoff: float = 1.0,
        timeout: float = 120.0,
        where: str = "critic",
    ) -> None:
        for name, value, least in (("concurrency", concurrency, 1), ("attempts", attempts, 1)):
            if value < least:
                raise UserError(f"{where}.{name}={value}: must be at least {least}")
        if timeout <= 0 or backoff < 0:
            raise UserError(
                f"{where}.timeout={timeout}, {where}.backoff={backoff}: must be seconds, not negative"
            )
        if key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", key_env):
            raise UserError(
                f"{where}.key_env: must be the name of an environment variable, never the key itself"
            )
        self.base_url, self.where = checked_url(base_url, where), where
        self.ledger, self.budget, self.key_env = ledger, budget, key_env
        self.concurrency, self.attempts, self.backoff, self.timeout = concurrency, attempts, backoff, timeout
        self.from_ledger = 0
        """Replies that were there already."""
        self._key = self.missing = ""

    def answers(self, calls: Iterable[Call]) -> Iterator[dict[str, Any] | None]:
        """Yield for every call, in order, its reply's row of the ledger, or None where there is no reply.

        After the last one raises UserError if a call has no reply: what happened, what is kept, what to do. A
        key is needed only where something must be sent.
        """
        self._key = self._find_key()
        for name in ("httpx", "httpx2", "httpcore", "httpcore2", "openai"):
            logging.getLogger(name).setLevel(logging.WARNING)
        with asyncio.Runner() as runner:
            work = Work(self, calls, self._key)
            running = runner.get_loop().create_task(work.run())
            yield from _in_order(lambda: runner.run(work.results.get()))
            runner.run(_wait(running))
        if work.num_missing:
            raise UserError(work.account())

    def usage(self, model: str, keys: Iterable[str]) -> dict[str, Any]:
        """Return the sums over the calls of these keys, those of earlier runs included, for a manifest.

        `lost` are requests that had no end because a process was killed; `failed` counts those that failed by
        kind. Tokens and money are of the replies whose usage the server told (`without_usage`: the others).
        """
        self.ledger.refresh()
        calls = self.ledger.sums(keys)
        return {
            "model": model,
            "requests": calls.asked,
            "replies": calls.replies,
            "failed": dict(sorted(calls.failed.items())),
            "lost": calls.lost,
            "without_usage": calls.silent,
            "input_tokens": calls.usage.input,
            "output_tokens": calls.usage.output,
            "money": self.budget.cost(calls.usage),
        }

    def scrub(self, text: str) -> str:
        """Return a server's text without the key, should the server repeat it."""
        return text.replace(self._key, "[key]") if len(self._key) > 3 else text

    def _find_key(self) -> str:
        """The key of the environment; empty where there is none; `missing` says so if one is needed."""
        key = os.environ.get(self.key_env, "").strip() if self.key_env else ""
        local = (urlsplit(self.base_url).hostname or "") in ("localhost", "127.0.0.1", "::1")
        needed = not key and bool(self.key_env) and not local
        self.missing = (
            f"the environment has no {self.key_env}; set it, name another variable with "
            f"{self.where}.key_env=..., or {self.where}.key_env=null for a server without keys"
        ) * needed
        if key and not re.fullmatch(r"[!-~]+", key):  # it would show in the error that the header raises
            self.missing = (
                f"the environment's {self.key_env} holds no key: spaces or foreign characters in it"
            )
        return key


def checked_url(base_url: str | None, where: str) -> str:
    """Return the server's address. Raises UserError for one that is none, or that carries a password."""
    url = (base_url or OPENAI).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{where}.base_url={url}: must be like http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise UserError(
            f"{where}.base_url: holds a key or a query; give the key in the environment (key_env)"
        )
    return url


def _in_order(get: Any) -> Iterator[dict[str, Any] | None]:
    """Yield the results by their numbers as soon as all before them are there; ends with a None."""
    waiting: dict[int, dict[str, Any] | None] = {}
    numbers = itertools.count()
    number = next(numbers)
    while (item := get()) is not None:
        waiting[item[0]] = item[1]
        while number in waiting:
            yield waiting.pop(number)
            number = next(numbers)


async def _wait(task: asyncio.Task[None]) -> None:
    await task
