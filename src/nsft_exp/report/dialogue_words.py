"""The words of corrective dialogues with and without codebook, and how many of them name an object.

The paper: without codebook the dialogues are full of words that are no entity, with it of objects. The share
of words that name an object is a check of their quality that needs no model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nsft_exp.report import wording
from nsft_exp.report.cell import Cell
from nsft_exp.report.dialogue import FUNCTION_WORDS
from nsft_exp.report.results import Results
from nsft_exp.report.table import Grid, markdown

ObjectsIn = Callable[[str], list[str]]
"""A text's words that name an object, as written."""


@dataclass
class DialogueWords:
    """The words of one codebook's corrective dialogues, questions and answers, in lower case."""

    codebook: str
    num_dialogues: int = 0
    words: Counter[str] = field(default_factory=Counter)
    object_words: Counter[str] = field(default_factory=Counter)
    """Those of them that name an object; of a name of several words each one."""

    @property
    def object_share(self) -> float | None:
        """Words that name an object, in percent of all words; None without any word."""
        return 100 * self.object_words.total() / self.words.total() if self.words else None

    def ranked(self, number: int) -> list[tuple[str, float]]:
        """Return the most frequent words but function words, with their share of all words in percent."""
        counted = [(w, n) for w, n in self.words.most_common() if w not in FUNCTION_WORDS]
        return [(word, 100 * n / self.words.total()) for word, n in counted[:number]]


def with_and_without(cells: Sequence[Cell]) -> list[DialogueWords]:
    """Return the words of nSFT's dialogues by codebook, one critic's; empty unless some had no codebook.

    Cells that change anything else of nSFT (a control's critic, the number of turns) are left out.
    """
    objects_in = _object_table(cells)
    plain = [
        c
        for c in cells
        if c.method == "nsft" and (not c.variant or c.variant.endswith("codebook")) and c.critique_folder
    ]
    without = next((c for c in plain if c.codebook == "none"), None)
    if without is None or objects_in is None:
        return []
    found: dict[str, dict[Path, Cell]] = {}
    for cell in plain:
        if cell.critic == without.critic and cell.critique_folder is not None:
            found.setdefault(cell.codebook, {}).setdefault(cell.critique_folder, cell)
    words = [_words(codebook, folders.values(), objects_in) for codebook, folders in found.items()]
    return [w for w in words if w.words] if len(found) > 1 else []


def _object_table(cells: Sequence[Cell]) -> ObjectsIn | None:
    """Return how the first benchmark with a table of objects finds them in a text."""
    found = (e.benchmark for cell in cells for e in cell.evaluations if hasattr(e.benchmark, "objects_in"))
    return next((benchmark.objects_in for benchmark in found), None)


def _words(codebook: str, cells: Iterable[Cell], objects_in: ObjectsIn) -> DialogueWords:
    found = DialogueWords(codebook)
    for cell in cells:
        for correction in cell.corrections().values():
            found.num_dialogues += bool(correction.dialogue)
            for exchange in correction.dialogue:
                for text in (exchange.question, exchange.answer):
                    found.words.update(words_of(text))
                    found.object_words.update(words_of(" ".join(objects_in(text))))
    return found


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"[a-z][a-z'-]*", text.lower())


def to_markdown(results: Results) -> str:
    """Return the section on what the dialogues are made of; empty without the two to compare."""
    rows = [
        [w.codebook, *map(wording.quantity, (w.num_dialogues, w.words.total(), w.object_share))]
        for w in with_and_without(results.cells)
    ]
    header = ["dialogues", "words", "words that name an object, %"]
    table = markdown(Grid("codebook", [("", len(header))], header, rows))
    return f"\n## Words of the corrective dialogues\n\n{table}\n" if rows else ""
