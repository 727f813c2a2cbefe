"""The book of an LLM's calls: one append-only JSONL file; every reply stays as it was received.

Before a request is sent a row `asked` is written; what comes of it is a row `reply` (synced to the disk
before anybody uses it) or `failed`. A reply is found again by the content of its request, so none that was
received is ever asked for again, and requests that a kill cut off are known. Processes may share the file.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from nsft_exp.llm.budget import Spent
from nsft_exp.records import UserError

NOTHING = Spent()


@dataclass
class Calls:
    """What the book says of one request."""

    model: str = ""
    asked: int = 0
    replies: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    held: int = 0
    """Requests whose usage is not known (in flight, killed, timed out): they count at `bound`."""
    bound: Spent = NOTHING
    usage: Spent = NOTHING
    silent: int = 0
    """Replies without token counts."""
    place: tuple[int, int] | None = None
    """Where the first reply's row is: its first byte and its length."""

    @property
    def spent(self) -> Spent:
        """Requests, and tokens as the server counted them or at their bound."""
        return Spent(
            self.asked,
            self.usage.input + self.held * self.bound.input,
            self.usage.output + self.held * self.bound.output,
        )

    @property
    def lost(self) -> int:
        """Requests without an end: in flight now, or when a process was killed."""
        return self.asked - self.replies - self.failed.total()


class Ledger:
    """The book in `folder/calls.jsonl`, opened on first use. Rows torn by a kill are skipped and counted."""

    def __init__(self, folder: str | Path, where: str = "critic.cache") -> None:
        self.where = where
        self.path = Path(folder) / "calls.jsonl"
        self.calls: dict[str, Calls] = {}
        self.num_torn = 0
        self._read = 0
        self._totals: dict[str, Spent] = {}

    def reply(self, key: str) -> dict[str, Any] | None:
        """Return the row of the reply to a request, also one that another process has just written."""
        self.refresh()
        call = self.calls.get(key)
        if call is None or call.place is None:
            return None
        with self.path.open("rb") as file:
            file.seek(call.place[0])
            return json.loads(file.read(call.place[1]))

    def spent(self, model: str) -> Spent:
        """Return what the calls of a model have used up, those in flight and lost at their bound."""
        return self._totals.get(model, Spent())

    def asked(self, key: str, model: str, bound: Spent) -> None:
        """Note that a request is about to be sent; `bound` is the most that it can use."""
        row = {"event": "asked", "key": key, "model": model, "bound": [bound.input, bound.output]}
        self._append(row, sync=False)

    def received(self, key: str, about: dict[str, Any], usage: tuple[int, int] | None, raw: str) -> None:
        """Keep a reply as it came, with its token counts; it is on the disk when this returns."""
        row = {"event": "reply", "key": key, **about, "usage": usage, "raw": raw}
        self._append(row, sync=True)

    def failed(self, key: str, kind: str, used: bool) -> None:
        """Note a request without a reply; `used`: the server may have worked (and charged) for it."""
        self._append({"event": "failed", "key": key, "kind": kind, "used": used}, sync=False)

    def sums(self, keys: Iterable[str]) -> Calls:
        """Return the calls of these requests, added up."""
        total = Calls()
        for key in dict.fromkeys(keys):
            call = self.calls.get(key, Calls())
            total.asked += call.asked
            total.replies += call.replies
            total.failed += call.failed
            total.usage += call.usage
            total.silent += call.silent
        return total

    def refresh(self) -> None:
        """Read the rows that were appended since the last look."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size <= self._read:
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):  # still being written, or torn by a kill
                    return
                self._note(line, self._read)
                self._read += len(line)

    def _note(self, line: bytes, start: int) -> None:
        try:
            row = json.loads(line)
            call = self.calls.get(row["key"], Calls())
            before = call.spent
            _EVENTS[row["event"]](call, row)
        except (ValueError, KeyError, TypeError):
            self.num_torn += bool(line.strip())
            return
        self.calls[row["key"]] = call
        if row["event"] == "reply" and call.place is None:
            call.place = (start, len(line))
        more = call.spent
        change = Spent(
            more.requests - before.requests, more.input - before.input, more.output - before.output
        )
        self._totals[call.model] = self.spent(call.model) + change

    def _append(self, row: dict[str, Any], sync: bool) -> None:
        line = json.dumps(row).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(".calls.lock")), self.path.open("ab+") as file:
                _mend(file)
                file.write(line)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"{self.path}: cannot write ({reason}); make room there, or set {self.where}"
            ) from error
        self.refresh()


def _mend(file: Any) -> None:
    """End a row that a killed process left half-written, so that the next one has a line of its own."""
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _note_asked(call: Calls, row: dict[str, Any]) -> None:
    bound = Spent(1, *row["bound"])
    call.asked, call.held, call.bound, call.model = call.asked + 1, call.held + 1, bound, row["model"]


def _note_reply(call: Calls, row: dict[str, Any]) -> None:
    call.replies += 1
    if row["usage"] is not None:
        call.usage += Spent(0, *row["usage"])
        call.held -= 1
    call.silent += row["usage"] is None


def _note_failed(call: Calls, row: dict[str, Any]) -> None:
    call.failed[row["kind"]] += 1
    call.held -= not row["used"]


_EVENTS = {"asked": _note_asked, "reply": _note_reply, "failed": _note_failed}
