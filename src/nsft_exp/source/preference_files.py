"""Opening a file or folder of preferences, whichever of the usual containers it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nsft_exp.source.reading import BrokenFile, JsonFile, JsonLines, Records, Rows

UNPACKED = "unpacked to"
"""The key of an image's place under which the file is that its bytes were written to."""
SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}
"""How image files begin."""


def open_records(place: Path, images: Path) -> Records:
    """Return the records of a .json, .jsonl or .parquet file, or of a folder.

    A folder is one that `datasets` saved, or has parquet files or one .jsonl file. Images inside of the rows
    are written to the folder `images`. Raises BrokenFile for anything else.
    """
    if place.is_dir():
        return _folder(place, images)
    kinds: dict[str, Callable[[], Records]] = {
        ".json": lambda: JsonFile(place),
        ".jsonl": lambda: JsonLines(place),
        ".parquet": lambda: Rows(lambda: _parquet([place], images)),
    }
    if place.suffix not in kinds:
        raise BrokenFile(f"{place}: is no .json, .jsonl or .parquet file and no folder; check source.file")
    return kinds[place.suffix]()


def _folder(folder: Path, images: Path) -> Records:
    if (folder / "dataset_dict.json").exists():
        folder = folder / "train"
    if (folder / "state.json").exists():
        return Rows(lambda: _saved(folder, images))
    lines, tables = (sorted(folder.rglob(f"*.{kind}")) for kind in ("jsonl", "parquet"))
    if len(lines) == 1 and not tables:
        return JsonLines(lines[0])
    if tables and not lines:
        return Rows(lambda: _parquet(tables, images))
    raise BrokenFile(
        f"{folder}: has {len(lines)} .jsonl and {len(tables)} .parquet files; name one of them in source.file"
    )


def _parquet(files: list[Path], images: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise BrokenFile(f"{files[0]}: reading parquet needs pyarrow; pip install pyarrow") from None
    for file in files:
        try:
            with ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=256):
                    yield from (unpacked(row, images) for row in batch.to_pylist())
        except (ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BrokenFile(f"{file}: cannot be read as parquet ({reason}); fetch it again") from None


def _saved(folder: Path, images: Path) -> Iterator[Any]:
    try:
        from datasets import load_from_disk
    except ImportError:
        raise BrokenFile(f"{folder}: reading a saved data set needs datasets; pip install datasets") from None
    try:
        table = load_from_disk(str(folder)).with_format("arrow")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BrokenFile(f"{folder}: cannot be read as a data set ({reason}); save it again") from None
    for batch in table.iter(batch_size=256):
        yield from (unpacked(row, images) for row in batch.to_pylist())


def unpacked(value: Any, images: Path) -> Any:
    """Return a row with every image's bytes written to a file of the folder, and its path as `unpacked to`.

    Without bytes an image keeps the path that it has.
    """
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes) and "path" in value:
            return {"path": None, UNPACKED: _written(value["bytes"], images)}
        return {key: unpacked(inner, images) for key, inner in value.items()}
    return [unpacked(inner, images) for inner in value] if isinstance(value, list) else value


def _written(data: bytes, folder: Path) -> str:
    """Write an image under the hash of its bytes, unless it is there; return its absolute path."""
    suffix = next((s for start, s in SUFFIXES.items() if data.startswith(start)), "")
    file = folder.absolute() / f"{hashlib.sha256(data).hexdigest()[:32]}{suffix}"
    if file.exists() and file.stat().st_size == len(data):
        return str(file)
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(file)
    except OSError as error:
        raise BrokenFile(f"{file}: cannot be written ({error.strerror}); set source.folder") from None
    return str(file)
