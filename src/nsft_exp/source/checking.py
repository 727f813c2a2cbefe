"""Opening every image of the chosen samples before any work starts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nsft_exp.images import open_image
from nsft_exp.records import Sample, UserError

_CACHE = ".images-opened.json"


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be opened: why, and the samples that have it."""

    path: str
    reason: str
    ids: list[str]


def check_images(samples: Iterable[Sample], file: Path, exif: str = "apply") -> None:
    """Decode every image fully; raise one UserError that names the first bad one, and how many are bad."""
    bad, count = bad_images(samples, file, exif)
    if bad:
        more = f" ({len(bad)} images of {count} are bad)" if len(bad) > 1 else ""
        raise UserError(f"{file}: record {bad[0].ids[0]}: {bad[0].reason}{more}")


def bad_images(samples: Iterable[Sample], file: Path, exif: str = "apply") -> tuple[list[BadImage], int]:
    """Decode every image fully; return those that cannot be, and the number of distinct images.

    What was opened is remembered (by path, size and time) in a file beside the annotations, where that
    folder can be written.
    """
    cache = file.parent / _CACHE
    known = _read(cache)
    fresh, bad, seen = dict(known), dict[str, BadImage](), set[str]()
    for sample in samples:
        path = sample.image
        if path is None:
            continue
        if path not in seen:
            seen.add(path)
            version = _version(path)
            if not version or known.get(path) != version:
                reason = _reason(path, exif)
                if reason:
                    bad[path] = BadImage(path, reason, [])
                else:
                    fresh[path] = version
        if path in bad:
            bad[path].ids.append(sample.id)
    if fresh != known:
        _write(cache, fresh)
    return list(bad.values()), len(seen)


def _reason(path: str, exif: str) -> str:
    """Why an image cannot be opened; empty: it can."""
    try:
        open_image(path, exif)
    except UserError as error:
        return str(error)
    return ""


def _version(path: str) -> str:
    try:
        stat = os.stat(path)
    except OSError:
        return ""
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _read(cache: Path) -> dict[str, str]:
    try:
        found = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(cache: Path, opened: dict[str, str]) -> None:
    """Remember what was opened; a folder that cannot be written only costs the next run the same work."""
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(opened), encoding="utf-8")
        temporary.replace(cache)
    except OSError:
        temporary.unlink(missing_ok=True)
