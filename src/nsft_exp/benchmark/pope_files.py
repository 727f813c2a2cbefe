"""POPE's files: the labels of POPE and, where it is there, LLaVA's question file, joined line by line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.prompts import SHORT_ANSWER
from nsft_exp.benchmark.reading import need, numbered_lines
from nsft_exp.records import UserError

FIRST_ID = {"adversarial": 1, "random": 10_000_001, "popular": 20_000_001}
"""LLaVA's number of each split's first question."""
_QUESTION = re.compile(r"Is there an? (.+?) in the image\?")
RELEASE = (
    "they are of two releases of POPE, and answers would meet the wrong labels; LLaVA's questions "
    "belong to POPE commit e3e39262 (2,910 random questions), not to its newest (3,000)"
)


@dataclass(frozen=True)
class PopeItem:
    """One question: LLaVA's id and text, and POPE's label."""

    id: int
    split: str
    image: str
    text: str
    label: str


class PopeFiles:
    """The label files of these splits under `root`, and the place of LLaVA's question file."""

    def __init__(self, root: Path, splits: Sequence[str]) -> None:
        self.root, self.splits = root, splits
        self.questions = root / "llava_pope_test.jsonl"

    @property
    def label_files(self) -> dict[str, Path]:
        """The label file of each split: in `coco`, or in `root` itself where that is POPE's folder."""
        below = self.root / "coco"
        here = not below.is_dir() and any(self.root.glob("coco_pope_*.json"))
        folder = self.root if here else below
        return {split: folder / f"coco_pope_{split}.json" for split in self.splits}

    def present(self) -> list[Path]:
        """The label files and, if it is there, LLaVA's question file."""
        return [*self.label_files.values(), *([self.questions] if self.questions.exists() else [])]

    def items(self, suffix: str) -> dict[str, PopeItem]:
        """Return all questions by id, in file order, each ending with `suffix` (or with nothing).

        Raises UserError for a malformed line, and for files of two releases.
        """
        labels = {split: _read_labels(path) for split, path in self.label_files.items()}
        if self.questions.exists():
            return self._joined(labels, suffix)
        items = [
            PopeItem(FIRST_ID[split] + k, split, row["image"], row["text"] + suffix, row["label"])
            for split, rows in labels.items()
            for k, row in enumerate(rows)
        ]
        return {str(item.id): item for item in items}

    def other_ids(self) -> set[int]:
        """The ids of LLaVA's questions of splits that are not scored."""
        if not self.questions.exists():
            return set()
        asked = self._read_questions()
        return {row["question_id"] for s, rows in asked.items() if s not in self.splits for _, row in rows}

    def _joined(self, labels: Mapping[str, list[dict[str, Any]]], suffix: str) -> dict[str, PopeItem]:
        """LLaVA's questions with POPE's labels."""
        asked, items = self._read_questions(), {}
        for split, rows in labels.items():
            self._check_release(split, asked[split], rows)
            for (_, question), row in zip(asked[split], rows, strict=True):
                text = question["text"] if suffix else question["text"].removesuffix(SHORT_ANSWER)
                item = PopeItem(question["question_id"], split, row["image"], text, row["label"])
                items[str(item.id)] = item
        if len(items) != sum(map(len, labels.values())):
            raise UserError(f"{self.questions}: a question_id occurs twice; fetch the file again")
        return items

    def _read_questions(self) -> dict[str, list[tuple[str, dict[str, Any]]]]:
        """LLaVA's questions by split, each with its place."""
        asked: dict[str, list[tuple[str, dict[str, Any]]]] = {split: [] for split in FIRST_ID}
        for where, row in numbered_lines(self.questions):
            for key, kind in (("question_id", int), ("image", str), ("text", str), ("category", str)):
                need(row, key, kind, where)
            if row["category"] not in asked:
                raise UserError(f"{where}: category `{row['category']}` is not a POPE split; mend the file")
            asked[row["category"]].append((where, row))
        return asked

    def _check_release(
        self, split: str, asked: Sequence[tuple[str, dict[str, Any]]], rows: Sequence[dict[str, Any]]
    ) -> None:
        path = self.label_files[split]
        for k, ((where, question), row) in enumerate(zip(asked, rows, strict=False), 1):
            if (question["image"], _bare(question["text"])) != (row["image"], _bare(row["text"])):
                raise UserError(f"{where}: asks another question than {path} line {k}: {RELEASE}")
        if len(asked) != len(rows):
            raise UserError(
                f"{self.questions}: {len(asked)} {split} questions, but {path} has {len(rows)}: {RELEASE}"
            )


def _read_labels(path: Path) -> list[dict[str, Any]]:
    rows = []
    for where, row in numbered_lines(path):
        need(row, "image", str, where)
        need(row, "text", str, where)
        if need(row, "label", str, where) not in ("yes", "no"):
            raise UserError(f"{where}: label `{row['label']}` is neither yes nor no; mend the file")
        rows.append(row)
    return rows


def named_object(text: str) -> str | None:
    """Return the object that a question of POPE's form asks for, in either release's spelling; else None."""
    found = _QUESTION.search(_bare(text))
    return found.group(1) if found else None


def _bare(text: str) -> str:
    """The question without LLaVA's suffix; the old release spells `imange` in some lines."""
    return text.removesuffix(SHORT_ANSWER).replace("imange", "image")
