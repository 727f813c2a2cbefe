"""Reading long JSON files record by record, and single records of them again later."""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from nsft_exp.records import UserError

CHUNK = 1 << 20
LONGEST = 1 << 26
"""Characters of one record after which the file is taken for broken."""
BLANK = re.compile(r"[ \t\r\n]*")


class BrokenFile(UserError):
    """A file that is of no use as a whole, whatever its single records are."""


Container = Literal["list", "members", "data"]
"""Where a file that is no list has its records: nowhere, as an object's members, in its list `data`."""
Get = Callable[[int], Any]
"""From a record's number in the file to the record."""


class Records(Protocol):
    """The records of a file: iterated once from the beginning, then any of them again."""

    def __iter__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield (key, or None in a list; record) in file order; BrokenFile where it cannot be read."""

    def open(self) -> Any:
        """A context whose value gives the record of a number."""


class JsonFile:
    """A JSON file of many records, one in memory at a time; their places in the file are remembered.

    A list of records is always read; `container` says what else the format has.
    """

    def __init__(self, file: Path, container: Container = "list", named: str = "source.file") -> None:
        """`named` is the config key that the file was named by."""
        self.file, self.container, self.named = file, container, named
        self.starts, self.lengths = array("Q"), array("L")

    def __iter__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield (key or None, record). Raises BrokenFile if it is missing, cut off or of another kind."""
        self.starts, self.lengths = array("Q"), array("L")
        try:
            with self.file.open(encoding="utf-8", newline="") as handle:
                yield from self._entries(_Stream(handle))
        except FileNotFoundError:
            raise BrokenFile(f"{self.file}: there is no such file; check {self.named}") from None
        except UnicodeDecodeError:
            raise BrokenFile(f"{self.file}: is not UTF-8; save the file as UTF-8") from None
        except OSError as error:
            raise BrokenFile(f"{self.file}: cannot be read ({error.strerror}); check {self.named}") from None

    def _entries(self, stream: _Stream) -> Iterator[tuple[str | None, Any]]:
        opening = stream.take()
        if opening == "\ufeff":
            raise BrokenFile(f"{self.file}: begins with a byte order mark; save it as UTF-8 without one")
        if opening == "{" and self.container == "data":
            opening = self._skip_to_data(stream)
        closing = {"[": "]", "{": "}" if self.container == "members" else ""}.get(opening)
        if not closing or stream.peek() in ("", closing):
            raise BrokenFile(f"{self.file}: is not a list of records, or has none; check {self.named}")
        mark = ","
        while mark == ",":
            key = self._key(stream) if closing == "}" else None
            yield key, self._value(stream)
            mark = stream.take()
        if mark != closing or (self.container != "data" and stream.peek()):
            what = "the list does not end" if not mark else "the list is followed or parted by something else"
            self._broken(f"after {len(self.starts)} records {what}")

    def _skip_to_data(self, stream: _Stream) -> str:
        """Pass over the members before `data`; return how its value begins (empty: it is not there)."""
        mark = "," if stream.peek() == '"' else ""
        while mark == ",":
            if self._key(stream) == "data":
                return stream.take()
            self._parsed(stream)
            mark = stream.take()
        return ""

    def _key(self, stream: _Stream) -> str:
        key = self._parsed(stream)
        if not isinstance(key, str) or stream.take() != ":":
            self._broken(f"after {len(self.starts)} records there is no `key: value`")
        return str(key)

    def _value(self, stream: _Stream) -> Any:
        stream.peek()
        start = stream.byte
        value = self._parsed(stream)
        self.starts.append(start)
        self.lengths.append(stream.byte - start)
        return value

    def _parsed(self, stream: _Stream) -> Any:
        try:
            return stream.value()
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            self._broken(f"record number {len(self.starts)}: not JSON ({reason})")

    def _broken(self, what: str) -> None:
        raise BrokenFile(f"{self.file}: {what}; the file may be cut off: fetch it again")

    @contextmanager
    def open(self) -> Iterator[Get]:
        """Give records by number: read at their places in the file."""
        with self.file.open("rb") as handle:

            def get(number: int) -> Any:
                handle.seek(self.starts[number])
                return json.loads(handle.read(self.lengths[number]))

            yield get


class JsonLines(JsonFile):
    """A file with one JSON record a line; blank lines are passed over."""

    def _entries(self, stream: _Stream) -> Iterator[tuple[str | None, Any]]:
        if stream.peek() == "\ufeff":
            raise BrokenFile(f"{self.file}: begins with a byte order mark; save it as UTF-8 without one")
        while stream.peek():
            yield None, self._value(stream)
        if not self.starts:
            raise BrokenFile(f"{self.file}: has no record; check {self.named}")


class Rows:
    """Records that are in memory already."""

    def __init__(self, read: Callable[[], Iterator[Any]]) -> None:
        self.read = read
        self.rows: list[Any] = []

    def __iter__(self) -> Iterator[tuple[str | None, Any]]:
        """Read the rows, and keep them."""
        self.rows = []
        for row in self.read():
            self.rows.append(row)
            yield None, row

    @contextmanager
    def open(self) -> Iterator[Get]:
        """Give rows by number."""
        yield self.rows.__getitem__


class _Stream:
    """JSON text that is read chunk by chunk; `byte` is the place of what comes next in the file."""

    def __init__(self, handle: TextIO) -> None:
        self.handle, self.text, self.place, self.ended = handle, "", 0, False
        self.byte, self.ascii = 0, True
        self.decoder = json.JSONDecoder()

    def _read(self) -> None:
        chunk = self.handle.read(CHUNK)
        self.text, self.place, self.ended = self.text[self.place :] + chunk, 0, not chunk
        self.ascii = self.text.isascii()

    def _go_to(self, place: int) -> None:
        passed = place - self.place if self.ascii else len(self.text[self.place : place].encode())
        self.byte, self.place = self.byte + passed, place

    def peek(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            blank = BLANK.match(self.text, self.place)
            assert blank is not None
            self._go_to(blank.end())
            if self.place < len(self.text):
                return self.text[self.place]
            if self.ended:
                return ""
            self._read()

    def take(self) -> str:
        """Take that character."""
        mark = self.peek()
        self._go_to(self.place + len(mark))
        return mark

    def value(self) -> Any:
        """Take the next value; raises JSONDecodeError where there is none."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.place)
                if end < len(self.text) or self.ended:  # else a number might go on in the next chunk
                    self._go_to(end)
                    return value
            except json.JSONDecodeError:
                if self.ended or len(self.text) - self.place > LONGEST:
                    raise
            self._read()


def version(path: Path, named: str = "source.file") -> str:
    """Return what changes with a file's content: size and time (of a folder: its files' names as well).

    Raises BrokenFile if there is nothing; `named` is the config key that it was named by.
    """
    try:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file())
            return f"{len(inside)}:{max((p.stat().st_mtime_ns for p in inside), default=0)}"
        stat = os.stat(path)
    except OSError:
        raise BrokenFile(f"{path}: there is no such file; check {named}") from None
    return f"{stat.st_size}:{stat.st_mtime_ns}"
