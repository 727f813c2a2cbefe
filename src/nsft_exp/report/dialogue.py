"""What a critic found and asked: error categories and the words of its corrective dialogues."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nsft_exp.report.cell import Cell

FUNCTION_WORDS = frozenset(
    """
    a an and any are as at be by can correct describe do does else for from have how i image in into is it its
    many much no not of on or picture please right see shown that the there they this to true was what where
    which who with yes you your
    """.split()  # noqa: SIM905
)
"""Words that say nothing of an image's content; they are left out of the ranking."""


@dataclass
class CodebookFindings:
    """The corrections under one critic and codebook."""

    name: str
    """`<codebook>`, with the critic's name where several critics share a codebook."""
    num_answers: int = 0
    """Rejected answers that the critic read: every correction but those it could not parse or was refused."""
    num_errors: int = 0
    categories: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)


def by_codebook(cells: Sequence[Cell]) -> list[CodebookFindings]:
    """Return the findings of every distinct critique folder among the cells, in their order.

    Cells of several seeds share a folder; where they do not, their corrections are summed.
    """
    folders: dict[Path, Cell] = {}
    for cell in cells:
        if cell.critique_folder is not None:
            folders.setdefault(cell.critique_folder, cell)
    several = len({c.critic for c in folders.values()}) > 1
    found: dict[str, CodebookFindings] = {}
    for cell in folders.values():
        name = f"codebook {cell.codebook}" + (f", critic {cell.critic}" if several else "")
        _add(found.setdefault(name, CodebookFindings(name)), cell)
    return list(found.values())


def _add(findings: CodebookFindings, cell: Cell) -> None:
    for correction in cell.corrections().values():
        if correction.status not in ("ok", "no_error"):
            continue
        findings.num_answers += 1
        findings.num_errors += len(correction.errors)
        findings.categories.update(e.category or "uncategorised" for e in correction.errors)
        for exchange in correction.dialogue:
            findings.words.update(content_words(exchange.question))


def content_words(text: str) -> list[str]:
    """Return the lower-case words of a text without function words."""
    return [w for w in re.findall(r"[a-z][a-z'-]+", text.lower()) if w not in FUNCTION_WORDS]
