"""The workers that send requests: each until its reply is kept, or until there is no use in going on."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nsft_exp.llm.budget import Spent
from nsft_exp.llm.envelope import is_filtered, read_envelope, read_fault
from nsft_exp.llm.faults import Fault, fault_of
from nsft_exp.records import UserError

if TYPE_CHECKING:
    from nsft_exp.llm.client import Client

LONGEST_PAUSE = 60.0
"""Seconds between two attempts, at most, where the server does not say how long to wait."""
LONGEST_WAIT = 900.0
"""A server that asks to wait longer than this is left alone until the next run."""
GIVE_UP = 20
"""So many requests in a row without a reply, all attempts included, and the rest are not tried."""
FIRST_ATTEMPTS = 3
"""So often is a server tried where nothing listens and that has never replied: its address may be wrong."""
FIRST_PAUSE = 2.0
"""Seconds between two of these, at most: a server that is just being restarted is waited for."""
REPLIED: set[str] = set()
"""The addresses that have replied to this process, errors among the replies."""


@dataclass(frozen=True)
class Call:
    """One request: its content's hash, the body to send, the prompt's hash, and the most it can use."""

    key: str
    body: dict[str, Any]
    prompt: str
    bound: Spent


class Stop(Exception):
    """Why no further request is sent; the message is for the user."""


class Work:
    """One run over an iterable of calls: its workers, what they share, and how it ended."""

    def __init__(self, client: Client, calls: Iterable[Call], key: str) -> None:
        from openai import APIError, AsyncOpenAI

        self.errors = (TimeoutError, APIError)
        self.client, self.ledger = client, client.ledger
        self.calls = enumerate(calls)
        self.server = AsyncOpenAI(
            api_key=key or "none", base_url=client.base_url, max_retries=0, timeout=client.timeout
        )
        self.results: asyncio.Queue[tuple[int, dict[str, Any] | None] | None] = asyncio.Queue()
        self.asking: dict[str, asyncio.Future[None]] = {}
        self.failed: Counter[str] = Counter()
        self.num_kept = self.num_missing = self.num_in_flight = self.num_in_a_row = 0
        self.stopped = asyncio.Event()
        self.reason = ""
        self.quiet_until = 0.0

    async def run(self) -> None:
        """Let the workers finish; `results` then ends with None."""
        try:
            async with self.server:
                workers = [asyncio.create_task(self._serve()) for _ in range(self.client.concurrency)]
                await asyncio.gather(*workers)
        finally:
            self.results.put_nowait(None)

    def account(self) -> str:
        """One line: why calls have no reply, and where those that came are."""
        total = self.num_kept + self.num_missing
        kinds = ", ".join(f"{number} x {kind}" for kind, number in sorted(self.failed.items()))
        reason = self.reason or "some calls had no reply"
        sums = f" (failed requests: {kinds})" if kinds else ""
        return (
            f"{self.client.where}: {self.client.base_url}: {reason}{sums}; {self.num_kept} of {total} "
            f"replies are kept in {self.ledger.path}, and the same command goes on from there"
        )

    async def _serve(self) -> None:
        for number, call in self.calls:
            try:
                row = await self._once(call)
            except (Stop, UserError) as error:
                self._stop(str(error))
                row = None
            self.num_kept, self.num_missing = self.num_kept + bool(row), self.num_missing + (not row)
            self.results.put_nowait((number, row))
            await asyncio.sleep(0)

    def _stop(self, reason: str) -> None:
        self.reason = self.reason or self.client.scrub(reason)
        self.stopped.set()

    async def _once(self, call: Call) -> dict[str, Any] | None:
        """The reply from the ledger, from a worker that asks the same just now, or from the server."""
        while call.key in self.asking:
            await asyncio.wait([self.asking[call.key]])
        row = self.ledger.reply(call.key)
        if row is not None or self.stopped.is_set():
            self.client.from_ledger += row is not None
            return row
        done = self.asking[call.key] = asyncio.get_running_loop().create_future()
        try:
            return await self._attempt_all(call)
        finally:
            del self.asking[call.key]
            done.set_result(None)

    async def _attempt_all(self, call: Call) -> dict[str, Any] | None:
        """Send a request until its reply is there; None if it never comes, or if everything stops."""
        fault: Fault | None = None
        for attempt in range(self.client.attempts):
            if fault is not None:
                await self._before_next(fault, attempt)
            await self._quiet()
            if self.stopped.is_set():
                return None
            await self._afford(call)
            fault = await self._attempt(call)
            if fault is None:
                self.num_in_a_row = 0
                return self.ledger.reply(call.key)
            if fault.final:
                raise Stop(await self._explained(fault))
            if self._nobody(fault) and attempt + 1 >= FIRST_ATTEMPTS:
                break
        assert fault is not None
        self.num_in_a_row += 1
        if fault.kind == "connection" or self.num_in_a_row >= GIVE_UP:
            mend = f"; start the server, or mend {self.client.where}.base_url" * self._nobody(fault)
            raise Stop(f"no reply after {attempt + 1} attempts ({fault.kind}: {fault.words}){mend}")
        return None

    def _nobody(self, fault: Fault) -> bool:
        """Whether there may be no server at the address at all."""
        return fault.refused and self.client.base_url not in REPLIED

    async def _afford(self, call: Call) -> None:
        """Raise Stop without a key, or if the budget has no room once the calls in flight show their use."""
        if self.client.missing:
            raise Stop(self.client.missing)
        model = call.body["model"]
        while reason := self.client.budget.refusal(self.ledger.spent(model), call.bound):
            if not self.num_in_flight:
                raise Stop(reason)
            await asyncio.sleep(0.02)

    async def _attempt(self, call: Call) -> Fault | None:
        """Send the request once; None when its reply is in the ledger."""
        self.ledger.asked(call.key, call.body["model"], call.bound)
        started = time.perf_counter()
        self.num_in_flight += 1
        try:
            async with asyncio.timeout(self.client.timeout):
                response = await self.server.chat.completions.with_raw_response.create(**call.body)
            raw, fault, replied = response.text, _fault_in(response.text), True
        except self.errors as error:
            raw, fault = _reply_in(error), fault_of(error, self.client.key_env, call.body, self.client.where)
            replied = hasattr(error, "response")
        finally:
            self.num_in_flight -= 1
        if replied:
            REPLIED.add(self.client.base_url)
        raw = self.client.scrub(raw)
        envelope = read_envelope(raw)
        if envelope is None:
            fault = fault or Fault("broken", "the reply is no whole JSON object of the protocol", used=True)
            self.ledger.failed(call.key, fault.kind, fault.used)
            self.failed[fault.kind] += 1
            return fault
        about = {
            "model": envelope.model,
            "prompt": call.prompt,
            "seconds": round(time.perf_counter() - started, 3),
        }
        self.ledger.received(call.key, about, envelope.usage, raw)
        return None

    async def _before_next(self, fault: Fault, attempt: int) -> None:
        """Wait as long as the server asked, or longer after every attempt."""
        if fault.wait is not None:
            if fault.wait > LONGEST_WAIT:
                raise Stop(f"the server asks to wait {fault.wait:.0f} seconds ({fault.kind}); run again then")
            self.quiet_until = max(self.quiet_until, asyncio.get_running_loop().time() + fault.wait)
        most = FIRST_PAUSE if self._nobody(fault) else LONGEST_PAUSE
        longest = min(self.client.backoff * 2 ** (attempt - 1), most)
        jitter = random.uniform(0.5, 1.0) * longest
        await self._pause(jitter if fault.wait is None else fault.wait + random.uniform(0, 0.1) * longest)

    async def _quiet(self) -> None:
        """Wait while a server's Retry-After, sent to any worker, asks for it."""
        clock = asyncio.get_running_loop().time
        while (seconds := self.quiet_until - clock()) > 0 and not self.stopped.is_set():
            await self._pause(seconds)

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not beyond the moment at which everything stops."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self.stopped.wait()

    async def _explained(self, fault: Fault) -> str:
        if fault.kind != "404":
            return fault.final
        try:
            names = [model.id async for model in self.server.models.list()]
        except self.errors:  # a server need not offer the list: the line then goes without it
            names = []
        served = f"; it serves {', '.join(names[:5])}:" if names else ";"
        return f"{fault.final}{served} set {self.client.where}.model"


def _reply_in(error: Exception) -> str:
    """The body of an error that is a final verdict on the request (a content filter's), else nothing."""
    response = getattr(error, "response", None)
    raw = response.text if response is not None and getattr(error, "status_code", 0) == 400 else ""
    fault = read_fault(raw)
    return raw if fault is not None and is_filtered(fault) else ""


def _fault_in(raw: str) -> Fault | None:
    """The error that a response of status 200 reports in its body, if it does."""
    fault = read_fault(raw)
    return None if fault is None or is_filtered(fault) else Fault("reported", fault.message[:300], used=True)
