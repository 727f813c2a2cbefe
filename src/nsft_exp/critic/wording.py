"""Turns of a corrective dialogue: what is asked, and the words of the question and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nsft_exp.critic.lexicon import OBJECT, Lexicon, with_article
from nsft_exp.records import Exchange


@dataclass(frozen=True)
class Ask:
    """One turn: a question about one fact, and how it is answered."""

    kind: str
    """A kind of question in the lexicon (`existence`, `color` ...), or of CRITICS_OWN."""
    answer: Literal["yes", "no", "open"]
    noun: str = ""
    value: str = ""
    """What the question says; for existence a color, where several objects of the noun differ."""
    right: str = ""
    """The value that is right (the same as `value` for an answer `yes` to most kinds)."""
    other: str = ""
    """The second noun of a relation, or the place of a naming."""

    @property
    def use(self) -> str:
        """Which list of wordings the question is from."""
        return "open_correction" if self.answer == "open" else "correction"

    @property
    def shape(self) -> tuple[str, str, bool]:
        """What a matched control copies: kind, answer, and whether it asks by a quality."""
        return (self.kind, self.answer, self.kind in ("existence", "missing") and bool(self.value))


def can_ask(lexicon: Lexicon, ask: Ask) -> bool:
    """Whether the lexicon has a wording for this turn."""
    return bool(lexicon.wordings(ask.kind, ask.use))


def worded(lexicon: Lexicon, ask: Ask, number: int) -> Exchange:
    """Return the turn in words, by the wording `number` (counted round) of its kind."""
    wordings = lexicon.wordings(ask.kind, ask.use)
    form = {"yes": "affirm", "no": "deny", "open": "full"}[ask.answer]
    sentence = lexicon.sentence(ask.kind, form)
    assert wordings, f"no wording for {ask}"
    assert sentence, f"no answer for {ask}"
    question = wordings[number % len(wordings)].format(**slots(lexicon, ask, ask.value))
    return Exchange(question, sentence.format(**slots(lexicon, ask, ask.right)))


def slots(lexicon: Lexicon, ask: Ask, value: str) -> dict[str, str]:
    """Return the words of a turn's slots where the fact has this value."""
    noun = ask.noun
    if ask.kind == "naming":  # the place is given, the noun is the value
        return {"a": with_article(value), "noun": value, "place": ask.other}
    if ask.kind in ("existence", "missing"):
        named = f"{value} {noun}".strip()
        return {"a": with_article(named), "noun": named}
    if ask.kind in ("count", "total"):
        return counted(lexicon, noun or OBJECT, value)
    if ask.kind == "scene":
        return {"a_scene": with_article(value), "scene": value}
    names = {"position": "place", "text": "glyph"}
    return {"noun": noun, "other": ask.other, "wrong": ask.other, names.get(ask.kind, ask.kind): value}


def counted(lexicon: Lexicon, noun: str, number: str) -> dict[str, str]:
    """Return `amount` (`one cup`, `two cups`), `plural` and the counting word."""
    words, forms = lexicon.data["counts"], lexicon.data["categories"].get(noun, {})
    plural = forms.get("plural", noun + "s")
    word = words[int(number)] if number and int(number) < len(words) else number
    return {
        "amount": f"{word} {noun if number == '1' else plural}",
        "plural": plural,
        "count": word,
        "noun": noun,
    }
