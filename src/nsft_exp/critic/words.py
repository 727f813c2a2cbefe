"""Correction without a codebook: turns about the words in which two answers differ."""

from __future__ import annotations

import difflib
import re
from random import Random

from nsft_exp.critic.codebook import UNCATEGORISED
from nsft_exp.critic.truth import Truth
from nsft_exp.critic.wording import Ask
from nsft_exp.records import FoundError

_WORD = re.compile(r"\w+")


def word_errors(chosen: str, rejected: str, truth: Truth) -> list[FoundError]:
    """Return the words of the rejected answer that the chosen one lacks, each with what stands in its place.

    An object that is not known to be absent is no error (see Truth.complete).
    """
    ours, theirs = list(_WORD.finditer(chosen)), list(_WORD.finditer(rejected))
    known = {match[0].lower() for match in ours}
    matcher = difflib.SequenceMatcher(
        None, [m[0].lower() for m in ours], [m[0].lower() for m in theirs], autojunk=False
    )
    errors: list[FoundError] = []
    for _, start, end, first, last in matcher.get_opcodes():
        for number, match in enumerate(theirs[first:last]):
            word = match[0].lower()
            if word not in known and not _unknown_object(word, truth):
                right = ours[start + number][0] if start + number < end else ""
                errors.append(FoundError(UNCATEGORISED, match.start(), match.end(), match[0], right))
    return errors


def plan_words(chosen: str, rejected: str, truth: Truth, num_turns: int, rng: Random) -> list[Ask]:
    """Return up to `num_turns` turns about differing words, as many Yes as No; an odd last one is open."""
    wrong = _distinct(error.wrong for error in word_errors(chosen, rejected, truth))
    own = _distinct(match[0] for match in _WORD.finditer(chosen))
    theirs = set(_distinct(match[0] for match in _WORD.finditer(rejected)))
    right = [word for word in own if word not in theirs] or own
    pairs = min(num_turns // 2, len(wrong), len(right))
    turns = [Ask("word", "no", "", word, word) for word in rng.sample(wrong, pairs)]
    turns += [Ask("word", "yes", "", word, word) for word in rng.sample(right, pairs)]
    if len(turns) < num_turns and num_turns % 2 and wrong and right:
        truthful = rng.choice(right)
        turns.append(Ask("word", "open", "", truthful, truthful, rng.choice(wrong)))
    rng.shuffle(turns)
    return turns


def _distinct(words: object) -> list[str]:
    return list(dict.fromkeys(word.lower() for word in words))  # type: ignore[attr-defined]


def _unknown_object(word: str, truth: Truth) -> bool:
    noun = truth.lexicon.canonical.get(word)
    return noun is not None and truth.present(noun) is not False
