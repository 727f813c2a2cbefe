"""Several sources in equal parts (the paper's mixture: LLaVA-150k, OCR-VQA and TextCaps)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, overload

from nsft_exp.records import Sample, UserError


class Part(Protocol):
    """A source that draws as many samples as it is asked for."""

    size: int | None
    counts: Counter[str]
    problems: list[str]

    def files(self) -> list[Path]:
        """Its annotation files."""

    def draw(self, size: int | None, exclude: Any = None) -> Sequence[Sample]:
        """The first `size` samples of its draw."""


class Mixed:
    """`size` samples in all, from each part in turn: every beginning of the draw is as even as it can be.

    Sample ids begin with the part's name. `exclude` is a benchmark, or a list of them, whose images are left
    out of every part. `seed` is the parts' own (their YAML takes it over) and is here for the stages' keys.
    """

    def __init__(self, parts: Mapping[str, Part], size: int, seed: int = 0, exclude: Any = None) -> None:
        if size < 1:
            raise UserError(f"source.size={size}: must be at least 1")
        if not parts:
            raise UserError("source.parts: has no part; name one source or more")
        for name, part in parts.items():
            if part.size is not None:
                raise UserError(f"source.parts.{name}.size={part.size}: a part has no size; give source.size")
        self.parts, self.size, self.seed, self.exclude = dict(parts), size, seed, exclude
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self._samples: Sequence[Sample] | None = None

    def files(self) -> list[Path]:
        """The annotation files of all parts."""
        return [file for part in self.parts.values() for file in part.files()]

    def samples(self) -> Sequence[Sample]:
        """The drawn samples, part after part in turn. Raises UserError naming the part that is at fault."""
        if self._samples is None:
            drawn = [self._draw(number, name) for number, name in enumerate(self.parts)]
            self._samples = Interleaved(drawn, list(self.parts))
        return self._samples

    def _draw(self, number: int, name: str) -> Sequence[Sample]:
        part = self.parts[name]
        share = (self.size - number + len(self.parts) - 1) // len(self.parts)
        try:
            drawn = part.draw(share, self.exclude) if share > 0 else []
        except UserError as error:
            raise UserError(f"source.parts.{name} (a share of {share}): {error}") from None
        self.counts.update({f"{name}: {what}": count for what, count in part.counts.items()})
        self.problems += part.problems
        return drawn


class Interleaved(Sequence[Sample]):
    """Sample 0 of every part, then sample 1 of every part, and so on."""

    def __init__(self, parts: list[Sequence[Sample]], names: list[str]) -> None:
        self.parts, self.names = parts, names

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> list[Sample]: ...
    def __getitem__(self, place: int | slice) -> Sample | list[Sample]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        row, part = divmod(place % len(self), len(self.parts))
        return self._named(part, self.parts[part][row])

    def __iter__(self) -> Iterator[Sample]:
        iterators = [iter(part) for part in self.parts]
        for place in range(len(self)):
            part = place % len(self.parts)
            yield self._named(part, next(iterators[part]))

    def _named(self, part: int, sample: Sample) -> Sample:
        return replace(sample, id=f"{self.names[part]}/{sample.id}")
