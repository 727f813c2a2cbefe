"""MME's files: two questions an image, in a text file beside it or in a folder of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nsft_exp.benchmark.reading import read_text
from nsft_exp.records import UserError

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
YES_OR_NO = " Please answer yes or no."


@dataclass(frozen=True)
class MmeItem:
    """One question of an image's two."""

    id: str
    """`<category>/<stem>#1` or `#2`."""
    category: str
    stem: str
    question: str
    """As in the file, with its yes-or-no sentence."""
    label: str


class MmeFiles:
    """The question files of these categories under `root` or `root/MME_Benchmark_release_version`."""

    def __init__(self, root: Path, categories: Sequence[str]) -> None:
        self.root, self.categories = root, tuple(categories)

    def items(self) -> dict[str, MmeItem]:
        """Return all questions by id. UserError for a file that is not two questions."""
        items = [item for c in self.categories for path in self.question_files(c) for item in _read(path, c)]
        return {item.id: item for item in items}

    def release(self) -> Path:
        """The folder that holds the categories."""
        below = self.root / "MME_Benchmark_release_version"
        return below if below.is_dir() else self.root

    def question_files(self, category: str) -> list[Path]:
        """A category's question files in order of their names. UserError where there is none."""
        folder = self.release() / category
        if (folder / "questions_answers_YN").is_dir():
            folder = folder / "questions_answers_YN"
        found = sorted(path for path in folder.glob("*.txt") if not path.name.startswith("."))
        if not found:
            raise UserError(f"{folder}: no question files of MME's category {category}; correct `root`")
        return found

    def image(self, item: MmeItem) -> str:
        """The path of a question's image; where there is none, the one that it should have."""
        folder = self.release() / item.category
        if (folder / "images").is_dir():
            folder = folder / "images"
        for suffix in (".jpg", ".png", ".jpeg"):
            if (folder / (item.stem + suffix)).exists():
                return str(folder / (item.stem + suffix))
        return str(folder / (item.stem + ".jpg"))


def _read(path: Path, category: str) -> list[MmeItem]:
    rows = read_text(path).removesuffix("\n").split("\n")
    items = []
    for number, row in enumerate(rows, 1):
        question, tab, label = row.strip().partition("\t")
        if not tab or label.lower() not in ("yes", "no"):
            raise UserError(f"{path}: line {number}: not `question<TAB>Yes|No`; fetch the file again")
        items.append(
            MmeItem(f"{category}/{path.stem}#{number}", category, path.stem, question, label.lower())
        )
    if len(items) != 2:
        raise UserError(f"{path}: {len(items)} questions, not 2; fetch the file again")
    return items
