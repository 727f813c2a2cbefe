"""Reading official files: JSON, JSON lines and image paths, with one-line errors that name the place.

What was read becomes requests here too, so that every benchmark checks its images in the same way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from nsft_exp.records import Decoding, Request, Turn, UserError

BOM = b"\xef\xbb\xbf"


class MakesFiles(Protocol):
    """Something that writes a benchmark's files when they are missing (the toy world)."""

    def ensure(self) -> None:
        """Write the files, atomically, unless they are there already."""


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text with `\\n` line ends; UserError if it is missing, empty or not UTF-8."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; point `root` at the folder with the official files") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; it cannot be read") from None
    if data.startswith(BOM):
        raise UserError(f"{path}: line 1: begins with a byte order mark; save it as UTF-8 without one")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line}: not UTF-8 (byte {data[error.start]:#04x}); save it as UTF-8"
        ) from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty; fetch it again")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> Any:
    """Return a JSON file's value; UserError with the line if it is not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: line {error.lineno}: not JSON ({error.msg}); the file may be cut short: fetch it again"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); fetch it again") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file, one a line; UserError naming the first bad line.

    An empty line is an error, as in the official programs; only the last line may lack its line end.
    """
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = f"not JSON ({getattr(error, 'msg', error)})" if line.strip() else "the line is empty"
            raise UserError(f"{path}: line {number}: {what}; each line must be one JSON object") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number}: not a JSON object; each line must be one")
        rows.append(row)
    return rows


def numbered_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`<file>: line <n>`, object) of a JSON-lines file, lines counted from 1."""
    yield from ((f"{path}: line {number}", row) for number, row in enumerate(read_json_lines(path), 1))


def numbered_rows(data: Any, key: str, path: Path, unit: str) -> Iterator[tuple[str, Any]]:
    """Yield (`<file>: <unit> <k>`, row) of the list under `key` of a JSON file's object, rows counted from 0.

    Raises UserError where the file has no such list.
    """
    yield from ((f"{path}: {unit} {k}", row) for k, row in enumerate(need(data, key, list, str(path))))


def need(row: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return row[key] if it is of `kind`; UserError `<where>: ...` if it is missing or of another kind."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object; is this the official file?")
    if key not in row:
        raise UserError(f"{where}: has no field `{key}`; is this the official file?")
    value = row[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(k.__name__ for k in kinds)
        raise UserError(f"{where}: field `{key}` is {json.dumps(value)[:60]}, not {names}; mend the file")
    return value


def need_texts(row: Any, key: str, where: str) -> list[str]:
    """Return row[key], a list of texts; UserError where it is anything else."""
    texts: list[str] = need(row, key, list, where)
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: field `{key}` holds something else than text; mend the file")
    return texts


def image_path(image_root: str | os.PathLike[str] | None, name: str, where: str) -> str:
    """Return the path of image `name` under `image_root`; UserError if it climbs out of it."""
    if image_root is None:
        raise UserError(f"{where}: `image_root` is not set; point it at the folder of the images")
    root, path = os.path.normpath(image_root), os.path.normpath(os.path.join(image_root, name))
    above = os.path.join(os.path.abspath(root), "")
    if not os.path.abspath(path).startswith(above):
        raise UserError(f"{where}: image `{name}` lies outside of {root}; correct the record")
    return path


def ask(
    questions: Iterable[tuple[str, str | None, str]], decoding: Decoding, candidates: tuple[str, ...] = ()
) -> list[Request]:
    """Return a request of one turn for every question (id, image file, text).

    Raises UserError naming the first request whose image file is missing, and how many are.
    """
    requests = [
        Request(key, image, (Turn("prompt", text),), decoding=decoding, candidates=candidates)
        for key, image, text in questions
    ]
    _check_images(requests)
    return requests


def _check_images(requests: Iterable[Request]) -> None:
    missing: dict[str, str] = {}
    for request in requests:
        if request.image is not None and request.image not in missing and not os.path.isfile(request.image):
            missing[request.image] = request.id
    if missing:
        path, record = next(iter(missing.items()))
        raise UserError(
            f"{path}: record {record}: image not found ({len(missing)} missing); check `image_root`"
        )


def prepare(files_from: MakesFiles | None) -> None:
    """Let a maker of files write them if they are missing."""
    if files_from is not None:
        files_from.ensure()
