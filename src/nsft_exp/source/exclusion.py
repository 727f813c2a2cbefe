"""Which images of a source are those of a benchmark: the same COCO number, or the same bytes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from nsft_exp.records import Request, Sample

COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})\.jpg")
"""COCO's file names of 2017 and of 2014: one number is one picture in both."""


class AsksAboutImages(Protocol):
    """A benchmark, as far as it matters here."""

    def requests(self) -> list[Request]:
        """All questions."""


class BenchmarkImages:
    """The images of some benchmarks. A re-encoded or renamed copy outside of COCO is not recognised."""

    def __init__(self, benchmarks: Iterable[AsksAboutImages]) -> None:
        self.benchmarks = list(benchmarks)

    @cached_property
    def _paths(self) -> list[str]:
        found = (r.image for b in self.benchmarks for r in b.requests() if r.image is not None)
        return list(dict.fromkeys(found))

    @cached_property
    def _numbers(self) -> set[str]:
        return {number for path in self._paths if (number := coco_number(path))}

    @cached_property
    def _by_size(self) -> dict[int, list[str]]:
        sizes: dict[int, list[str]] = {}
        for path in self._paths:
            sizes.setdefault(_size(path), []).append(path)
        return sizes

    @cached_property
    def _hashes(self) -> dict[int, set[str]]:
        return {}

    def shared(self, sample: Sample) -> str:
        """Return by what a sample's image is a benchmark's: `COCO number`, `same file`, or empty: it is not.

        A file is hashed only where a benchmark has one of the same size.
        """
        if sample.image is None:
            return ""
        if any(coco_number(name) in self._numbers for name in (sample.image, sample.cluster)):
            return "COCO number"
        image, size = sample.image, _size(sample.image)
        if size <= 0 or size not in self._by_size:
            return ""
        if size not in self._hashes:
            self._hashes[size] = {_hash(path) for path in self._by_size[size]}
        return "same file" if _hash(image) in self._hashes[size] else ""


def benchmark_images(exclude: Any) -> BenchmarkImages | None:
    """Return the images of one benchmark or a list of them; None: nothing is excluded."""
    if not exclude:
        return None
    return BenchmarkImages(exclude if isinstance(exclude, (list, tuple)) else [exclude])


def coco_number(path: str) -> str:
    """Return the number of an image with a COCO file name, else the empty string."""
    match = COCO_NAME.fullmatch(Path(path).name)
    return match[1] if match else ""


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return -1


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
