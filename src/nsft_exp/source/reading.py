"""Reading long JSON lists record by record, and drawing a nested random subset of what they hold."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from nsft_exp.records import Sample, UserError

CHUNK = 1 << 20
LONGEST = 1 << 26
"""Characters of one record after which the file is taken for broken."""


def read_records(file: Path) -> Iterator[Any]:
    """Yield the items of a JSON list, one in memory at a time.

    Raises UserError if the file is missing, empty, cut off, not UTF-8 or something else than a list.
    """
    try:
        with file.open(encoding="utf-8") as handle:
            yield from _items(_Stream(handle), file)
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file; check source.file") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check source.file") from None


def _items(stream: _Stream, file: Path) -> Iterator[Any]:
    if stream.take() != "[" or stream.peek() in ("", "]"):
        raise UserError(f"{file}: is not a list of records in LLaVA's format, or has none; check source.file")
    mark, number = ",", 0
    while mark == ",":
        try:
            item = stream.value()
        except json.JSONDecodeError as error:
            what = f"record number {number}: not JSON ({error.msg})"
            raise UserError(f"{file}: {what}; the file may be cut off: fetch it again") from None
        yield item
        mark, number = stream.take(), number + 1
    if mark != "]" or stream.peek():
        what = "the list does not end" if not mark else "the list is followed or parted by something else"
        raise UserError(f"{file}: after {number} records {what}; the file may be cut off: fetch it again")


class _Stream:
    """JSON text that is read chunk by chunk."""

    def __init__(self, handle: TextIO) -> None:
        self.handle, self.text, self.place, self.ended = handle, "", 0, False
        self.decoder = json.JSONDecoder()

    def _read(self) -> None:
        chunk = self.handle.read(CHUNK)
        self.text, self.place, self.ended = self.text[self.place :] + chunk, 0, not chunk

    def peek(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place].isspace():
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if self.ended:
                return ""
            self._read()

    def take(self) -> str:
        """Take that character."""
        mark = self.peek()
        self.place += len(mark)
        return mark

    def value(self) -> Any:
        """Take the next value; raises JSONDecodeError where there is none."""
        self.peek()
        while True:
            try:
                value, self.place = self.decoder.raw_decode(self.text, self.place)
                return value
            except json.JSONDecodeError:
                if self.ended or len(self.text) - self.place > LONGEST:
                    raise
                self._read()


def sorted_by_rank(samples: Iterable[Sample], seed: int, size: int | None) -> list[Sample]:
    """Return `size` samples (None: all) in the order of their rank under a seed.

    The rank comes from seed and id alone: it is the same on every machine and whatever else there is, so that
    a smaller subset is the beginning of a larger one.
    """

    def rank(sample: Sample) -> bytes:
        return hashlib.sha256(f"{seed}/{sample.id}".encode()).digest()

    return sorted(samples, key=rank) if size is None else heapq.nsmallest(size, samples, key=rank)
