"""Corrections of short answers by hand-made templates, without an LLM: the truth confirmed, the error denied.

The nSFT paper makes OCR-VQA's questions this way: a pair of turns for every pair of answers, one that affirms
the ground truth and one that denies the rejected answer. Its wording is not public; conf/critic/template.yaml
has ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from random import Random

from nsft_exp.critic.codebook import UNCATEGORISED
from nsft_exp.critic.dialogue import corrected, uncorrected
from nsft_exp.llm.envelope import clean
from nsft_exp.records import Correction, Exchange, FoundError, Preference, Sample, UserError

_WORD = re.compile(r"\w+")
_ARTICLES = ("a", "an", "the")


class Template:
    """Two turns for every pair of short answers, in random order: one answered Yes, one answered No.

    `affirm` and `deny` are lists of `[question, answer]`, in which `{question}` is the sample's question (its
    first line) and `{answer}` the chosen or the rejected answer; which wording a sample gets depends on its
    id alone. An answer of more than `max_words` words or of several lines is refused, and so is a pair of
    which one answer contains the other: denying it could be wrong. Raises UserError for templates that are no
    such lists.
    """

    def __init__(
        self, affirm: Sequence[Sequence[str]], deny: Sequence[Sequence[str]], max_words: int = 8
    ) -> None:
        self.affirm, self.deny = _checked("affirm", affirm), _checked("deny", deny)
        self.max_words = max_words

    def corrections(self, pairs: Iterable[tuple[Sample, Preference]]) -> Iterator[Correction]:
        """Yield one Correction for every pair, in order; each depends on its own pair alone."""
        for sample, preference in pairs:
            if preference.status != "ok":
                yield uncorrected(sample.id, "no_error", f"no pair: {preference.status}")
            else:
                yield self._correct(sample, preference)

    def _correct(self, sample: Sample, preference: Preference) -> Correction:
        chosen, rejected = clean(preference.chosen), clean(preference.rejected)
        right, wrong = normal(chosen), normal(rejected)
        if right == wrong:
            return uncorrected(sample.id, "no_error", "both answers have the same words")
        for answer in (preference.chosen, preference.rejected):
            if not is_short(answer, self.max_words):
                reason = (
                    f"an answer is not of 1 to {self.max_words} words in one line; use critic=llm or route"
                )
                return uncorrected(sample.id, "refused", reason)
        if f" {right} " in f" {wrong} " or f" {wrong} " in f" {right} ":
            return uncorrected(sample.id, "refused", "one answer contains the other")
        rng = Random(f"template/{sample.id}")
        question = clean(sample.question.strip().split("\n")[0])
        turns = [
            _filled(rng.choice(self.affirm), question, chosen),
            _filled(rng.choice(self.deny), question, rejected),
        ]
        rng.shuffle(turns)
        span = (0, len(preference.rejected))
        error = FoundError(UNCATEGORISED, *span, preference.rejected, chosen)
        return corrected(sample.id, [error], turns)


def is_short(answer: str, max_words: int) -> bool:
    """Whether an answer is one line of at least one and at most `max_words` words."""
    return "\n" not in answer.strip() and 0 < len(_WORD.findall(answer)) <= max_words


def normal(answer: str) -> str:
    """Return the words of an answer in lower case, without articles and punctuation."""
    return " ".join(word for word in _WORD.findall(answer.lower()) if word not in _ARTICLES)


def _filled(wording: tuple[str, str], question: str, answer: str) -> Exchange:
    """The turn with its slots filled; braces in the sample's own words stay as they are."""

    def fill(text: str) -> str:
        words: Mapping[str, str] = {"{question}": question, "{answer}": answer.rstrip(".")}
        return re.sub(r"\{question\}|\{answer\}", lambda match: words[match[0]], text)

    return Exchange(fill(wording[0]), fill(wording[1]))


def _checked(name: str, wordings: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    for wording in wordings:
        if len(wording) != 2 or "{answer}" not in wording[0] or not all(isinstance(t, str) for t in wording):
            raise UserError(f"critic.{name}: {wording!r} is not [question with {{answer}}, answer]")
    if not wordings:
        raise UserError(f"critic.{name}: has no wording; give at least one [question, answer]")
    return [(question, answer) for question, answer in wordings]
