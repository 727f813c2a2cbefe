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
COLUMNS = ("index", "question", "A", "B")
NOT_UPLOADED = ("hint", "category", "source", "image", "comment", "l2-category")
"""Columns that LLaVA leaves out of its upload file."""
PREDICTION = 6
"""The place of the column `prediction` there."""


@dataclass(frozen=True)
class MmbItem:
    """One row: one rotation of one question."""

    index: int
    question: str
    hint: str
    options: dict[str, str]
    answer: str
    """Its letter; empty in a test split, which only the server scores."""
    category: str
    ability: str
    """The l2-category."""

    @property
    def base(self) -> int:
        """The index of the question's first pass."""
        return self.index % ROUND


def read_rows(path: Path) -> Iterator[tuple[MmbItem, str]]:
    """Yield each row and its `image` cell (base64, or the index of the row that has it; may be empty).

    A file without any answer is a test split. Raises UserError naming the line for a missing column or a
    malformed row.
    """
    rows = list(_table(path))
    answered = any(row.get("answer") for _, row in rows)
    seen: set[int] = set()
    for where, row in rows:
        item = _item(row, where, answered)
        if item.index in seen:
            raise UserError(f"{where}: index {item.index} occurs twice; fetch the file again")
        seen.add(item.index)
        yield item, row.get("image") or ""


def upload_table(path: Path, answers: Mapping[str, str]) -> list[list[str | int | None]]:
    """Return LLaVA's upload file for MMBench's server, header first: the TSV's columns but NOT_UPLOADED,
    with each index's answer as `prediction` (no value where there is none)."""
    table: list[list[str | int | None]] = []
    for _, row in _table(path):
        kept = [column for column in row if column not in NOT_UPLOADED]
        if not table:
            table.append([*kept[:PREDICTION], "prediction", *kept[PREDICTION:]])
        cells: list[str | int | None] = [
            int(row["index"] or 0) if c == "index" else row[c] or None for c in kept
        ]
        table.append([*cells[:PREDICTION], answers.get(row["index"] or ""), *cells[PREDICTION:]])
    return table


def _table(path: Path) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield (`<file>: line <n>`, row) of the TSV. UserError for a missing column or cell."""
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader(io.StringIO(read_text(path)), delimiter="\t")
    lacking = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if lacking:
        raise UserError(f"{path}: line 1: has no column {', '.join(lacking)}; is this MMBench's TSV?")
    last = (reader.fieldnames or ("",))[-1]
    try:
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            if None in row or row[last] is None:
                raise UserError(
                    f"{where}: has more or fewer cells than the header; the file may be cut short"
                )
            yield where, row
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}; fetch the file again") from None


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


def _item(row: Mapping[str, str | None], where: str, answered: bool) -> MmbItem:
    index = row.get("index") or ""
    if not index.isdigit():
        raise UserError(f"{where}: index `{index[:20]}` is not a number; fetch the file again")
    options = {c: row[c] or "" for c in LETTERS if c in row and not _is_empty(row[c])}
    answer = row.get("answer") or ""
    letters = [c for c in LETTERS if c in row]  # the right option may be one that counts as empty ("None")
    if answered and answer not in letters:
        raise UserError(
            f"{where}: answer `{answer[:20]}` is not the letter of an option; fetch the file again"
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
