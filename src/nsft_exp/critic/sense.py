"""Which words of a sentence carry its content, and what a text of plain English affirms and denies.

A shallow reading for checks that must not accuse falsely: where it is not sure, it says nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_CLAUSE = re.compile(r"[.,;:!?\n]+|\bbut\b|\bwhile\b|\balthough\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
JOINING = "is are was were be been being"
"""Between a noun and what is said of it: `the truck is red` and `a red truck` say the same."""
NEGATIONS = "no not none nothing nobody nor never neither without cannot missing absent lack lacks"
FUNCTION = """
a an the this that these those there here it its they them their he she his her we you your i my our
of in on at to from by with for as into onto and or so if than then what which who whose where when how
do does did can could will would shall should may might must has have had having am
any some all anything something everything else only just also very please tell me say says describe
see seen seeing show shows shown
visible contain contains depict depicts appear appears image picture photo photograph scene exactly yes
"""
"""Words that say nothing about a picture by themselves."""
_JOINING, _NEGATIONS, _FUNCTION = (frozenset(words.split()) for words in (JOINING, NEGATIONS, FUNCTION))


@dataclass(frozen=True)
class Sense:
    """What a text says, in chunks of neighbouring content words (lower case, singular)."""

    content: frozenset[str]
    affirmed: tuple[tuple[str, ...], ...]
    """Chunks of clauses without a negation."""
    denied: tuple[tuple[str, ...], ...]
    """Chunks that a negation stands directly before."""
    negated: bool
    """Whether any clause has a negation."""


def sense_of(text: str) -> Sense:
    """Return the content words of an English text and which of its chunks are affirmed and denied."""
    affirmed: list[tuple[str, ...]] = []
    denied: list[tuple[str, ...]] = []
    content: set[str] = set()
    negated = False
    for clause in _CLAUSE.split(text.lower().replace("’", "'")):
        chunks, after = _chunks(clause)
        content.update(word for chunk in chunks for word in chunk)
        negated = negated or after is not None
        if after is None:
            affirmed += chunks
        elif after < len(chunks):
            denied.append(chunks[after])
    return Sense(frozenset(content), tuple(affirmed), tuple(denied), negated)


def _chunks(clause: str) -> tuple[list[tuple[str, ...]], int | None]:
    """The clause's chunks, and the number of the one after its first negation (None: no negation)."""
    chunks: list[list[str]] = [[]]
    after: int | None = None
    for word in _WORD.findall(clause):
        if word in _NEGATIONS or word.endswith("n't"):
            chunks += [[]] if chunks[-1] else []
            after = len(chunks) - 1 if after is None else after
        elif word in _FUNCTION:
            chunks += [[]] if chunks[-1] else []
        elif word not in _JOINING:
            chunks[-1].append(singular(word))
    return [tuple(chunk) for chunk in chunks if chunk], after


def singular(word: str) -> str:
    """Return a word without a plural ending; the same for both numbers is enough here."""
    word = word.removesuffix("'s")
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def says(chunks: tuple[tuple[str, ...], ...], words: frozenset[str]) -> bool:
    """Whether some chunk holds exactly these words side by side; a single one must end its chunk."""
    size = len(words)
    for chunk in chunks:
        starts = range(len(chunk) - size, -1, -1) if size > 1 else range(len(chunk) - 1, len(chunk))
        if any(frozenset(chunk[start : start + size]) == words for start in starts):
            return True
    return False
