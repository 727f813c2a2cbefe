"""A vocabulary and the wordings of questions, from a file: what the rule critic knows of a language."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from nsft_exp.records import UserError

PARTS = (
    "categories",
    "scenes",
    "colors",
    "sizes",
    "places",
    "relations",
    "inverse",
    "counts",
    "glyphs",
    "questions",
)
SIGN = "sign"
OBJECT = "object"
"""The noun of a count of everything."""

CRITICS_OWN: dict[str, dict[str, Any]] = {
    "missing": {
        "correction": ["Is {a} missing here?"],
        "affirm": "Yes, there is no {noun}.",
        "deny": "No, there is {a}.",
    },
    "naming": {
        "correction": ["Is that {a} at the {place}?"],
        "open_correction": ["Please name the object at the {place}."],
        "full": "There is {a} at the {place}.",
        "affirm": "Yes, there is {a} at the {place}.",
        "deny": "No, there is {a} at the {place}.",
    },
    "word": {
        "correction": ["Does the word {word} fit this picture?"],
        "open_correction": ["Which word fits this picture better, {word} or {wrong}?"],
        "full": "The word {word} fits better.",
        "affirm": "Yes, the word {word} fits.",
        "deny": "No, the word {word} does not fit.",
    },
}
"""Wordings that only a critic needs; a lexicon's own go before them."""


def with_article(phrase: str) -> str:
    """Return the phrase with `a` or `an` before it."""
    return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"


class Lexicon:
    """A vocabulary with the wordings of questions. The file is read on first use.

    Raises UserError for a file that is missing, is no YAML or lacks a part (PARTS).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @cached_property
    def data(self) -> dict[str, Any]:
        """The file's content."""
        try:
            data = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or "it is no YAML text"
            raise UserError(
                f"{self.path}: cannot read the lexicon ({reason}); give critic.lexicon=<file>"
            ) from error
        missing = [part for part in PARTS if not isinstance(data, dict) or part not in data]
        if missing:
            raise UserError(f"{self.path}: the lexicon has no {', '.join(missing)}; see toy/lexicon.yaml")
        return data

    @cached_property
    def nouns(self) -> tuple[str, ...]:
        """The categories: one noun each."""
        return tuple(self.data["categories"])

    @cached_property
    def canonical(self) -> dict[str, str]:
        """Every way to name a category (plural, synonym) -> its noun."""
        names = {OBJECT: OBJECT, OBJECT + "s": OBJECT, SIGN: SIGN}
        for noun, forms in self.data["categories"].items():
            names |= dict.fromkeys((noun, forms["plural"], *forms.get("synonyms", ())), noun)
        return names

    def number(self, word: str) -> int | None:
        """The number that a counting word or a digit says."""
        words = self.data["counts"]
        digits = re.fullmatch("[0-9]{1,3}", word)
        return words.index(word) if word in words else int(word) if digits else None

    def choices(self, kind: str) -> tuple[str, ...]:
        """The values that a kind of claim can have."""
        lists = {
            "color": "colors",
            "size": "sizes",
            "position": "places",
            "scene": "scenes",
            "text": "glyphs",
        }
        return tuple(map(str, self.data[lists[kind]]))

    def wordings(self, kind: str, use: str) -> tuple[str, ...]:
        """The wordings of a kind of question in a use; none for a kind that nobody asks so."""
        return tuple(self._asking(kind).get(use) or CRITICS_OWN.get(kind, {}).get(use) or ())

    def sentence(self, kind: str, form: str) -> str | None:
        """The sentence that answers a kind of question: form `affirm`, `deny` or `full`."""
        return self._asking(kind).get(form) or CRITICS_OWN.get(kind, {}).get(form)

    def _asking(self, kind: str) -> dict[str, Any]:
        return self.data["questions"].get(kind) or {}
