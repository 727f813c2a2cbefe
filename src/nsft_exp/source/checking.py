"""Opening every image of the chosen samples before any work starts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from nsft_exp.images import open_image
from nsft_exp.records import Sample, UserError

_CACHE = ".images-opened.json"


def check_images(samples: Iterable[Sample], file: Path, exif: str = "apply") -> None:
    """Decode every image fully; raise one UserError that names the first bad one, and how many are bad.

    What was opened is remembered (by path, size and time) in a file beside the annotations, where that
    folder can be written.
    """
    cache = file.parent / _CACHE
    known = _read(cache)
    fresh, bad, seen = dict(known), [], set()
    for sample in samples:
        if sample.image is None or sample.image in seen:
            continue
        seen.add(sample.image)
        version = _version(sample.image)
        if version and known.get(sample.image) == version:
            continue
        try:
            open_image(sample.image, exif)
            fresh[sample.image] = version
        except UserError as error:
            bad.append((sample.id, str(error)))
    if fresh != known:
        _write(cache, fresh)
    if bad:
        more = f" ({len(bad)} images of {len(seen)} are bad)" if len(bad) > 1 else ""
        raise UserError(f"{file}: record {bad[0][0]}: {bad[0][1]}{more}")


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
