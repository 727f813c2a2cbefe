"""Whether a critic's dialogue may be trained on: a pure check of any critic's words, live or replayed.

Turns that give their answer away, that ask nothing, or that speak of the two answers are dropped; a
correction is refused whole where a turn contradicts the chosen answer, gives instructions, or is not in the
answers' language. What is left has as many answers Yes as No. Everything dropped is counted by its reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from nsft_exp.critic.dialogue import corrected, polarity, uncorrected
from nsft_exp.critic.sense import Sense, says, sense_of
from nsft_exp.records import Correction, Exchange, FoundError

_POLAR = re.compile(r"\W*(?:yes|no)\b", re.IGNORECASE)
_LEADING = re.compile(
    r"^(?:is|are|was|were|do|does|did|has|have|wo|ca|would|could)n't\b"
    r"|\b(?:is|are|was|were|do|does|did|has|have|wo|ca)n't (?:it|they|there|he|she|you|that|this|we)\?*$"
    r"|, (?:right|correct|true|no)\?*$|\b(?:obviously|clearly|of course|as we (?:know|can see))\b"
)
_ABOUT_ANSWERS = re.compile(
    r"\b(?:first|second|other|previous|chosen|rejected|correct|wrong|original|given|model's) "
    r"(?:answer|response|description|caption|reply)\b|\baccording to\b|\bthe (?:answer|response|reply)\b"
)
_INSTRUCTION = re.compile(
    r"\b(?:ignore|disregard|forget)\b.{0,40}\b(?:instruction|prompt|above|previous|earlier)"
    r"|\bsystem prompt\b|\bas an ai\b|\blanguage model\b|\bjson\b|\byou are now\b|\bfrom now on\b",
    re.IGNORECASE | re.DOTALL,
)
_EXISTENCE = re.compile(r"^(?:is|are|was|were) there\b|\b(?:see|show|shows|shown|contain|contains|visible)\b")
_POINTING = re.compile(r"\b(?:it|this|that|these|those|they)\b")
COMMON = """
a an the is are was were be there here it this that of in on at to with and or not no yes what which who
where how many does do any some has have for from by as
"""
"""Words of which every English text has many."""
_ENGLISH = frozenset(COMMON.split())
_LETTERS = re.compile(r"[^\W\d_]+")
ENOUGH_WORDS = 12
"""Fewer words than this are not judged for their language."""


def sound(correction: Correction, question: str, chosen: str, balance: bool = True) -> Correction:
    """Return the correction as it may be trained on, or one of another status with the reason.

    `question` and `chosen` are the sample's. Statuses besides the correction's own: `refused` and
    `wrong_language`. `details["dropped"]` counts the dropped turns by reason.
    """
    if correction.status != "ok":
        return correction
    text = "\n".join(f"{exchange.question}\n{exchange.answer}" for exchange in correction.dialogue)
    if in_another_language(text, f"{question}\n{chosen}"):
        return _without(correction, "wrong_language", "the dialogue is not in the language of the answers")
    if _INSTRUCTION.search(text):
        return _without(correction, "refused", "a turn gives instructions instead of asking about the image")
    for exchange in correction.dialogue:
        if problem := contradiction_of(exchange, chosen, correction.errors):
            return _without(
                correction, "refused", f"{problem}: {exchange.question!r} {exchange.answer!r}"[:300]
            )
    reasons = [objection(exchange) for exchange in correction.dialogue]
    dropped = Counter(filter(None, reasons))
    kept = [e for e, reason in zip(correction.dialogue, reasons, strict=True) if not reason]
    even = balanced(kept) if balance else kept
    dropped["unbalanced"] += len(kept) - len(even)
    if not even:
        words = ", ".join(f"{number} {reason}" for reason, number in sorted((+dropped).items()))
        return _without(correction, "refused", f"no turn is left to train on: {words}")
    result = corrected(correction.id, correction.errors, even)
    about = {**correction.details, **result.details, "dropped": dict(sorted((+dropped).items()))}
    return replace(result, details=about)


def balanced(dialogue: Sequence[Exchange]) -> list[Exchange]:
    """Return the turns without the last ones of the commoner polarity: as many Yes as No remain."""
    kinds = [polarity(exchange.answer) for exchange in dialogue]
    spare = kinds.count("yes") - kinds.count("no")
    common, number = ("yes" if spare > 0 else "no"), abs(spare)
    kept: list[Exchange] = []
    for exchange, kind in zip(reversed(dialogue), reversed(kinds), strict=True):
        if kind == common and number:
            number -= 1
        else:
            kept.append(exchange)
    return kept[::-1]


def objection(exchange: Exchange) -> str:
    """Why a turn teaches nothing: `about_answers`, `leading` or `trivial`; empty if there is no objection."""
    question = exchange.question.lower().replace("’", "'").strip()
    asked, answered = sense_of(exchange.question), sense_of(_remainder(exchange.answer))
    if _ABOUT_ANSWERS.search(question):
        return "about_answers"
    given = polarity(exchange.answer) == "open" and bool(answered.content) and " or " not in question
    if _LEADING.search(question) or (given and answered.content <= asked.content):
        return "leading"
    if polarity(exchange.answer) == "open":
        return "" if answered.content else "trivial"
    repeats = any(len(set(chunk)) < len(chunk) for chunk in asked.affirmed)
    return "trivial" if repeats or not asked.content else ""


def contradiction_of(exchange: Exchange, chosen: str, errors: Sequence[FoundError]) -> str:
    """How a turn contradicts the chosen answer, as far as its words show; empty where they do not."""
    kind = polarity(exchange.answer)
    question, answer, right = (
        sense_of(exchange.question),
        sense_of(_remainder(exchange.answer)),
        sense_of(chosen),
    )
    plain = not question.negated and " or " not in exchange.question.lower()
    if plain and kind == "no" and _denies(exchange.question, question, answer, right):
        return "a turn denies what the chosen answer says"
    if plain and kind == "yes" and question.content and question.content in map(frozenset, right.denied):
        return "a turn affirms what the chosen answer denies"
    said: frozenset[str] = frozenset() if answer.negated else answer.content
    said |= question.content if plain and kind == "yes" and not answer.negated else frozenset()
    for error in errors:
        wrong = sense_of(error.wrong).content
        new = wrong - right.content
        if (
            error.category != "relation"
            and new
            and new <= said
            and wrong <= question.content | answer.content
        ):
            return "a turn repeats the error"
    return ""


def _denies(text: str, question: Sense, answer: Sense, right: Sense) -> bool:
    """Whether the answer No to a question denies words that stand side by side in the right answer."""
    words = question.content
    if not words or _POINTING.search(text.lower()) or (answer.content & words and not answer.negated):
        return False
    return (len(words) > 1 or bool(_EXISTENCE.search(text.lower()))) and says(right.affirmed, words)


def in_another_language(text: str, reference: str) -> bool:
    """Whether a text is in another script than the reference, or, beside English, in another language."""
    if _share_of_latin(reference) > 0.9 and _share_of_latin(text) < 0.7:
        return True
    words, known = _LETTERS.findall(text.lower()), _LETTERS.findall(reference.lower())
    if len(words) < ENOUGH_WORDS or not known or _share_of_english(known) < 0.15:
        return False
    return _share_of_english(words) < 0.1


def _share_of_latin(text: str) -> float:
    letters = [letter for letter in text if letter.isalpha()]
    return sum(letter < "\u0250" for letter in letters) / len(letters) if letters else 1.0


def _share_of_english(words: Sequence[str]) -> float:
    return sum(word in _ENGLISH for word in words) / len(words)


def _remainder(answer: str) -> str:
    return _POLAR.sub("", answer, count=1) if _POLAR.match(answer) else answer


def _without(correction: Correction, status: str, reason: str) -> Correction:
    return uncorrected(correction.id, status, reason, correction.errors)
