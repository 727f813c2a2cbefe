"""Drawing a nested random subset of a file's samples, of which only numbers are held in memory."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np

from nsft_exp.records import Sample, UserError
from nsft_exp.source.reading import BrokenFile, Records, version

RANK_BYTES = hashlib.sha256().digest_size


class Form(Hashable, Protocol):
    """A file format: what a file's records are, and what samples a record holds."""

    def records(self, file: Path) -> Records:
        """The records of a file in this format."""

    def name(self, key: str | None, record: Any, number: int) -> str:
        """The record's id: its own, or its key or number in the file."""

    def samples(self, name: str, record: Any) -> Sequence[Sample]:
        """The record's samples under this id; none: it is of no interest. UserError for a broken record."""

    def once(self, record: Any) -> bool:
        """True where a further record of the same id says nothing new, else it gets an id of its own."""


@dataclass
class Index:
    """Every sample of a file as (record number, number within the record), with its rank under a seed."""

    records: Records
    names: list[str] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("L"))
    picks: array[int] = field(default_factory=lambda: array("L"))
    ranks: bytearray = field(default_factory=bytearray)
    counts: Counter[str] = field(default_factory=Counter)
    """`records`, `of no interest`, `repeated ids`, `further records of an id`, `broken records`."""
    problems: list[str] = field(default_factory=list)

    def order(self) -> np.ndarray:
        """The samples' numbers, sorted by rank. Raises UserError where two samples have one id."""
        ranks = np.frombuffer(bytes(self.ranks), dtype=f"S{RANK_BYTES}")
        order = np.argsort(ranks, kind="stable")
        same = np.flatnonzero(ranks[order[1:]] == ranks[order[:-1]])
        if len(same):
            names = sorted({self.names[order[same[0]]], self.names[order[same[0] + 1]]})
            raise UserError(f"records {' and '.join(names)} make samples of one id; rename one")
        return order


@lru_cache(maxsize=4)
def read_index(file: Path, content: str, form: Form, seed: int, drop: bool) -> Index:
    """Read a whole file once and return its index; remembered in this process for as long as `content` stays.

    The rank is a hash of seed and id alone: the same on every machine and whatever else there is, so that a
    smaller subset is the beginning of a larger one. Raises UserError for the first broken record, or with
    `drop` leaves such records out and lists them.
    """
    index = Index(form.records(file))
    seen: dict[str, int] = {}
    for number, (key, record) in enumerate(index.records):
        index.counts["records"] += 1
        name = form.name(key, record, number)
        try:
            name, samples = _samples(name, record, form, seen, index.counts)
        except BrokenFile:
            raise
        except UserError as error:
            problem = f"{file}: record {name}: {error}"
            if not drop:
                raise UserError(problem) from None
            index.problems.append(problem)
            index.counts["broken records"] += 1
            continue
        for pick, sample in enumerate(samples):
            index.names.append(name)
            index.numbers.append(number)
            index.picks.append(pick)
            index.ranks += hashlib.sha256(f"{seed}/{sample.id}".encode()).digest()
    return index


def _samples(
    name: str, record: Any, form: Form, seen: dict[str, int], counts: Counter[str]
) -> tuple[str, Sequence[Sample]]:
    """The record's id and samples; a repeated id is numbered (LLaVA names an image's records alike)."""
    times = seen[name] = seen.get(name, 0) + 1
    if times > 1:
        if form.once(record):
            counts["further records of an id"] += 1
            return name, ()
        counts["repeated ids"] += 1
        while (name_here := f"{name}~{times}") in seen:
            times += 1
        seen[name] = times
        seen[name_here] = 1
        name = name_here
    samples = form.samples(name, record)
    counts["of no interest"] += not samples
    return name, samples


class Drawn(Sequence[Sample]):
    """Samples in the order of the draw. Each is read from the file again when it is taken; none is kept.

    Raises UserError where the file changed since it was opened.
    """

    def __init__(self, file: Path, content: str, form: Form, index: Index, order: np.ndarray) -> None:
        self.file, self.content, self.form = file, content, form
        self.found, self.numbers = index, order

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> Drawn: ...
    def __getitem__(self, place: int | slice) -> Sample | Drawn:
        if isinstance(place, slice):
            return self.only(self.numbers[place])
        return next(self._read(self.numbers[[place]]))

    def __iter__(self) -> Iterator[Sample]:
        return self._read(self.numbers)

    def only(self, numbers: np.ndarray) -> Drawn:
        """Those of the file's samples with these numbers."""
        return Drawn(self.file, self.content, self.form, self.found, numbers)

    def _read(self, numbers: np.ndarray) -> Iterator[Sample]:
        if version(self.file) != self.content:
            raise UserError(f"{self.file}: was changed while it was read; run the command again")
        with self.found.records.open() as record:
            for n in numbers:
                samples = self.form.samples(self.found.names[n], record(self.found.numbers[n]))
                yield samples[self.found.picks[n]]
