"""Reading plain sentences about a picture: what a question asks and what an answer claims.

The reader knows a vocabulary (a lexicon file) and a few English constructions. It never sees the picture
or an annotation of it: only the texts that an LLM critic would see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from nsft_exp.critic.lexicon import OBJECT, Lexicon, with_article

USES = ("test", "source", "correction", "open_correction")

_SLOT = re.compile(r"\{(\w+)\}")
_YES_NO = re.compile(r"\W*(yes|no)\W*", re.IGNORECASE)


@dataclass(frozen=True)
class Claim:
    """One thing that an answer says about the picture, with the characters [start, end) that say it."""

    kind: str
    """`existence color size position count total relation scene text`."""
    noun: str
    value: str
    """What is said of it; for existence empty, or the color of what is denied (`there is no red cup`)."""
    start: int
    end: int
    holds: bool = True
    """False for a denial (`there is no cup`)."""
    other: str = ""
    """The second noun of a relation; of existence `several` for a plural without a number."""
    mention: int = -1
    """Where the noun phrase (`a large red cup`) starts that says it; -1: it is about `the cup`."""


@dataclass(frozen=True)
class Reading:
    """All that one answer claims, and whether it says that it named everything."""

    claims: tuple[Claim, ...]
    complete: bool = False


@dataclass(frozen=True)
class Question:
    """What a question asks: the kind of its wording, and the words in its slots."""

    kind: str
    slots: Mapping[str, str]


class Reader:
    """Reads questions and answers in the words of a lexicon."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon

    def question(self, text: str) -> Question | None:
        """Return what a question asks, or None for an unknown wording. Only its first line counts."""
        line = text.strip().split("\n")[0].strip()
        please = str(self.lexicon.data.get("please", "")).strip()
        line = line.removesuffix(please).strip() if please else line
        for kind, pattern in self._questions:
            match = pattern.fullmatch(line)
            if match:
                return Question(kind, {slot: words.lower() for slot, words in match.groupdict().items()})
        return None

    def read(self, question: str, answer: str) -> Reading:
        """Return what an answer to a question claims.

        A short answer (`Yes`, `red`, `two`) is read as the sentence that it stands for: its claims then
        have the whole answer as their span.
        """
        asked = self.question(question)
        whole = _YES_NO.fullmatch(answer)
        sentence = None
        if asked and whole:
            sentence = self._proposition(asked)
        elif asked:
            sentence = self._spelled_out(asked, answer.strip().rstrip(".").strip())
        if sentence is None:
            return Reading(self._scan(answer), complete="nothing else" in answer.lower())
        holds = not (whole and whole[1].lower() == "no")
        spoken = [replace(claim, start=0, end=len(answer)) for claim in self._scan(sentence)]
        return Reading(tuple(spoken if holds else self._denied(spoken)))

    def _proposition(self, asked: Question) -> str | None:
        """The sentence that a bare Yes to this question affirms."""
        template = self.lexicon.sentence(asked.kind, "affirm")
        return _filled(template, asked.slots) if template else None

    def _spelled_out(self, asked: Question, answer: str) -> str | None:
        """The sentence that a word or phrase stands for as the answer to this question."""
        full, word = self.lexicon.sentence(asked.kind, "full"), answer.lower()
        words: dict[str, str] = {}
        if asked.kind in ("count", "total") and self.lexicon.number(word) is not None:
            words = {"amount": f"{word} {asked.slots.get('plural', OBJECT + 's')}"}
        elif asked.kind == "naming" and word.split(" ")[-1] in self.lexicon.canonical:
            words = {"a": with_article(word)}
        elif asked.kind == "text" and re.fullmatch(r"\w+", answer):
            words = {"glyph": answer}
        elif asked.kind == "scene" and word in self.lexicon.choices("scene"):
            words = {"a_scene": with_article(word)}
        elif asked.kind in ("color", "size", "position") and word in self.lexicon.choices(asked.kind):
            words = {"place" if asked.kind == "position" else asked.kind: word}
        return _filled(full, {**asked.slots, **words}) if full and words else None

    def _denied(self, claims: list[Claim]) -> list[Claim]:
        """What a bare No says: the most specific claim does not hold; of a relation the inverse does."""
        if not claims:
            return []
        last = claims[-1] if claims[-1].kind != "existence" else claims[0]
        if last.kind == "relation":
            return [replace(last, value=self.lexicon.data["inverse"][last.value])]
        if last.mention >= 0 and last.kind == "color":  # "a red cup": there may be cups of other colors
            return [replace(last, kind="existence", holds=False)]
        return [replace(last, holds=False)]

    def _scan(self, text: str) -> tuple[Claim, ...]:
        """The claims of running text, in the order of their places."""
        found: list[Claim] = []
        for pattern, claims in self._constructions:
            for match in list(pattern.finditer(text)):
                found += claims(match, match.start())
                text = text[: match.start()] + "\0" * len(match[0]) + text[match.end() :]
        return tuple(sorted(found, key=lambda claim: claim.start))

    @cached_property
    def _constructions(self) -> list[tuple[re.Pattern[str], Callable[[re.Match[str], int], Iterator[Claim]]]]:
        """What is looked for in a text, the more specific first; what is found is taken out of it."""
        word = self._words
        adjectives = rf"(?:(?P<size>{word['size']}) )?(?:(?P<color>{word['color']}) )?"
        be = r"(?:is|lies|are)(?P<no> not)?"
        the = rf"\bthe (?P<noun>{word['noun']}) {be}"
        phrase = rf"{adjectives}(?P<noun>{word['noun']})\b(?: (?:is )?at the (?P<place>{word['place']})\b)?"
        table: list[tuple[str, Callable[[re.Match[str], int], Iterator[Claim]]]] = [
            (rf"{the} (?P<relation>{word['relation']}) the (?P<other>{word['noun']})\b", self._related),
            (rf"{the} at the (?P<place>{word['place']})\b", self._described),
            (rf"{the} (?P<color>{word['color']})\b", self._described),
            (rf"{the} (?P<size>{word['size']})\b", self._described),
            (r"\b(?:an?|the) sign(?: that)? reads (?P<glyph>\w+)", self._lettered),
            (rf"\bno {adjectives}(?P<noun>{word['noun']})\b", self._absent),
            (rf"\b(?P<count>{word['count']}) (?P<noun>{word['noun']}|{OBJECT}s?)\b", self._counted),
            (rf"\b(?:(?P<article>an?|the|another) )?{phrase}", self._mentioned),
            (rf"\b(?P<scene>{word['scene']})\b", self._placed),
        ]
        return [(re.compile(pattern, re.IGNORECASE), claims) for pattern, claims in table]

    def _related(self, match: re.Match[str], _: int) -> Iterator[Claim]:
        noun, other = self._noun(match["noun"]), self._noun(match["other"])
        yield from (
            Claim("existence", name, "", *match.span(part))
            for name, part in ((noun, "noun"), (other, "other"))
        )
        relation = match["relation"].lower()
        relation = self.lexicon.data["inverse"][relation] if match["no"] else relation
        yield Claim("relation", noun, relation, match.start(), match.end(), other=other)

    def _described(self, match: re.Match[str], _: int) -> Iterator[Claim]:
        noun = self._noun(match["noun"])
        yield Claim("existence", noun, "", *match.span("noun"))
        for claim in self._qualities(match, noun, -1):
            yield replace(claim, holds=not match["no"])

    def _qualities(self, match: re.Match[str], noun: str, mention: int) -> Iterator[Claim]:
        for kind, part in (("size", "size"), ("color", "color"), ("position", "place")):
            if match.groupdict().get(part):
                yield Claim(kind, noun, match[part].lower(), *match.span(part), mention=mention)

    def _lettered(self, match: re.Match[str], _: int) -> Iterator[Claim]:
        yield Claim("text", "", match["glyph"].upper(), *match.span("glyph"))

    def _absent(self, match: re.Match[str], _: int) -> Iterator[Claim]:
        color = (match["color"] or "").lower()
        yield Claim("existence", self._noun(match["noun"]), color, match.start(), match.end(), holds=False)

    def _counted(self, match: re.Match[str], _: int) -> Iterator[Claim]:
        noun, number = self._noun(match["noun"]), str(self.lexicon.number(match["count"].lower()))
        kind = "total" if noun == OBJECT else "count"
        yield Claim(kind, "" if kind == "total" else noun, number, match.start(), match.end())

    def _mentioned(self, match: re.Match[str], place: int) -> Iterator[Claim]:
        noun = self._noun(match["noun"])
        plural = match["noun"].lower() == self.lexicon.data["categories"].get(noun, {}).get("plural")
        mention = -1 if plural or (match["article"] or "").lower() == "the" else place
        end = match.end("noun")
        number = "several" if plural else ""
        yield Claim("existence", noun, "", match.start(), end, other=number, mention=mention)
        if not plural:
            yield from self._qualities(match, noun, mention)

    def _placed(self, match: re.Match[str], _: int) -> Iterator[Claim]:
        yield Claim("scene", "", match["scene"].lower(), match.start(), match.end())

    # --- patterns ----------------------------------------------------------------------------------

    def _noun(self, name: str) -> str:
        return self.lexicon.canonical[name.lower()]

    @cached_property
    def _words(self) -> dict[str, str]:
        """A pattern for every kind of word."""
        data = self.lexicon.data
        nouns = [name for name, noun in self.lexicon.canonical.items() if noun != OBJECT]
        lists = {
            "noun": nouns, "size": data["sizes"], "color": data["colors"], "place": data["places"],
            "relation": data["relations"], "scene": data["scenes"], "count": data["counts"],
        }  # fmt: skip
        found = {name: sorted(map(re.escape, words), key=len, reverse=True) for name, words in lists.items()}
        return {name: "|".join(words) for name, words in found.items()} | {
            "count": "|".join([*found["count"], "[0-9]{1,3}"])
        }

    @cached_property
    def _questions(self) -> list[tuple[str, re.Pattern[str]]]:
        """(kind, pattern) of every wording in the file."""
        data, kinds = self.lexicon.data, {"count_one": "count", "position": "relation", "color": "existence"}
        table = [
            (kind, text)
            for kind in data["questions"]
            for use in USES
            for text in self.lexicon.wordings(kind, use)
        ]
        table += [(kinds.get(form, form), text) for form, text in data.get("mme", {}).items()]
        return [(kind, re.compile(self._pattern(text), re.IGNORECASE)) for kind, text in table]

    def _pattern(self, wording: str) -> str:
        word = self._words
        amount = rf"(?:{word['count']}) (?:{word['noun']}|{OBJECT}s?)"
        adjectives = rf"(?:(?:{word['size']}) )?(?:(?:{word['color']}) )?"
        slots = {
            **word,
            "a": rf"an? {adjectives}(?:{word['noun']})",
            "a_scene": rf"an? (?:{word['scene']})",
            "amount": amount,
            "plural": word["noun"],
            "other": word["noun"],
            "glyph": r"\w+",
            "word": r"\S+",
            "wrong": r"\S+",
        }
        pieces = _SLOT.split(wording)
        return "".join(f"(?P<{p}>{slots[p]})" if i % 2 else re.escape(p) for i, p in enumerate(pieces))


def _filled(template: str, slots: Mapping[str, str]) -> str | None:
    """The template with its slots filled; None where a slot has no words."""
    names = set(_SLOT.findall(template))
    return template.format(**{name: slots[name] for name in names}) if names <= set(slots) else None
