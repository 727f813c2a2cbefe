"""A source that reads one file: which of its samples are drawn, and what is checked before they are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from nsft_exp.records import Sample, UserError
from nsft_exp.source.checking import check_images
from nsft_exp.source.drawing import Drawn, Form, Index, read_index
from nsft_exp.source.exclusion import benchmark_images
from nsft_exp.source.reading import version


class MakesFiles(Protocol):
    """Something that writes a source's files if they are missing (the toy world)."""

    def ensure(self) -> None:
        """Write the files unless they are there."""


class FileSource:
    """Samples of one file in some format.

    `size` samples are drawn by `seed` from all that the file has: a larger size keeps those of a smaller
    one. `check` opens the images of the drawn samples beforehand. `broken=drop` leaves out records that are
    not in the format, and counts them. `exclude` is a benchmark, or a list of them, whose images are left
    out.
    """

    def __init__(
        self,
        form: Form,
        file: str,
        size: int | None = None,
        seed: int = 0,
        exif: str = "apply",
        check: bool = True,
        broken: Literal["refuse", "drop"] = "refuse",
        exclude: Any = None,
        files_from: MakesFiles | None = None,
    ) -> None:
        """`exclude` is what `source.exclude=<benchmark>` names, as an object with `requests()`."""
        if size is not None and size < 1:
            raise UserError(f"source.size={size}: must be at least 1")
        one_of("source.broken", broken, ("refuse", "drop"))
        one_of("source.exif", exif, ("apply", "ignore"))
        self.form, self.file, self.size, self.seed = form, Path(file), size, seed
        self.exif, self.check, self.broken = exif, check, broken
        self.exclude, self.files_from = exclude, files_from
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self._samples: Sequence[Sample] | None = None

    def files(self) -> list[Path]:
        """The annotation file."""
        if self.files_from is not None:
            self.files_from.ensure()
        return [self.file]

    def samples(self) -> Sequence[Sample]:
        """The drawn samples, in the order of the draw; read from the file again when they are used.

        Raises UserError naming file, record and mend for a broken record or image, or too large a size.
        """
        if self._samples is None:
            self._samples = self.draw(self.size)
        return self._samples

    def draw(self, size: int | None, exclude: Any = None) -> Sequence[Sample]:
        """Draw `size` samples (None: all), without the images of `exclude` and of the source's own.

        Afterwards `counts` says what the file holds and what was left out, `problems` which records were
        broken.
        """
        self.files()
        content = version(self.file)
        index = read_index(self.file, content, self.form, self.seed, self.broken == "drop")
        self.counts, self.problems = Counter(index.counts), index.problems
        ranked = Drawn(self.file, content, self.form, index, _order(index, self.file))
        drawn = self._without(ranked, size, exclude)
        if self.check:
            check_images(drawn, self.file, self.exif)
        return drawn

    def _without(self, ranked: Drawn, size: int | None, exclude: Any) -> Drawn:
        """The first `size` of the ranked samples whose images are in no excluded benchmark."""
        found = len(ranked)
        self.counts["samples"] = found
        if not found:
            raise UserError(
                f"{self.file}: no record is left of {self.counts['records']}; see the source's options"
            )
        excluded = [images for images in map(benchmark_images, (self.exclude, exclude)) if images]
        if not excluded:
            kept = ranked[:size]
        else:
            kept = self._kept(ranked, size, excluded)
            found -= self.counts["images of a benchmark"]
        if size is not None and len(kept) < size:
            left = " after source.exclude" if excluded else ""
            raise UserError(
                f"{self.file}: has {found} samples{left}, fewer than source.size={size}; lower it"
            )
        return kept

    def _kept(self, ranked: Drawn, size: int | None, excluded: list[Any]) -> Drawn:
        kept: list[int] = []
        for number, sample in zip(ranked.numbers, ranked, strict=True):
            if len(kept) == size:
                break
            if any(images.shared(sample) for images in excluded):
                self.counts["images of a benchmark"] += 1
            else:
                kept.append(number)
        return ranked.only(np.array(kept, dtype=np.int64))


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError where a config value is none of the choices."""
    if value not in choices:
        listed = ", ".join(choices[:-1]) + f" or {choices[-1]}"
        raise UserError(f"{name}={value}: there is no such choice; take {listed}")


def _order(index: Index, file: Path) -> np.ndarray:
    try:
        return index.order()
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
