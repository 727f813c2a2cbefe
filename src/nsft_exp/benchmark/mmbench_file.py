"""MMBench's TSV: a row for every rotation of every question, with the image in base64."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nsft_exp.benchmark.reading import read_text
from nsft_exp.records import UserError

LETTERS = "ABCDEFGH"
ROUND = 1_000_000
"""What the index grows by from one rotation of a question to the next."""
COLUMNS = ("index", "question", "A", "B", "answer")


@dataclass(frozen=True)
class MmbItem:
    """One row: one rotation of one question."""

    index: int
    question: str
    hint: str
    options: dict[str, str]
    answer: str
    category: str
    ability: str
    """The l2-category."""

    @property
    def base(self) -> int:
        """The index of the question's first pass."""
        return self.index % ROUND


def read_rows(path: Path) -> Iterator[tuple[MmbItem, str]]:
    """Yield each row and its `image` cell (base64, or the index of the row that has it; may be empty).

    Raises UserError naming the line for a missing column or a malformed row.
    """
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader(io.StringIO(read_text(path)), delimiter="\t")
    lacking = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if lacking:
        raise UserError(f"{path}: line 1: has no column {', '.join(lacking)}; is this MMBench's TSV?")
    for row in reader:
        yield _item(row, f"{path}: line {reader.line_num}"), row.get("image") or ""


def write_image(path: Path, text: str, where: str) -> None:
    """Write an image from base64, whole or not at all. UserError `<where>: ...` if the text is not base64."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        data = b""
    if not data:
        raise UserError(f"{where}: its image is not base64; fetch the file again")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)


def _item(row: Mapping[str, str | None], where: str) -> MmbItem:
    index = row.get("index") or ""
    if not index.isdigit():
        raise UserError(f"{where}: index `{index[:20]}` is not a number; fetch the file again")
    options = {c: row[c] or "" for c in LETTERS if c in row and not _is_empty(row[c])}
    answer = row.get("answer") or ""
    if answer not in options:
        raise UserError(
            f"{where}: answer `{answer[:20]}` is not one of its options; a split with answers is needed"
        )
    hint = row.get("hint")
    return MmbItem(
        int(index),
        row.get("question") or "",
        "" if _is_empty(hint) else hint or "",
        options,
        answer,
        row.get("category") or "",
        row.get("l2-category") or "",
    )


def _is_empty(cell: str | None) -> bool:
    return cell is None or cell == "" or cell.lower() in ("nan", "none")
