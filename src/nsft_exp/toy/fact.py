"""Questions about a scene with their right answers, in the wordings of the lexicon."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from nsft_exp.records import Exchange
from nsft_exp.toy.text import Writer, amount, capital, phrase, relation, with_article
from nsft_exp.toy.world import Scene, Thing, lexicon

Use = Literal["test", "source", "correction", "open_correction"]
Style = Literal["short", "plain", "please", "full"]


@dataclass(frozen=True)
class Fact:
    """Something to ask: the words of the question, those of the right answer, and whether both agree."""

    kind: str
    asked: dict[str, Any]
    right: dict[str, Any] = field(default_factory=dict)
    true: bool = True


def exchange(fact: Fact, use: Use, style: Style, rng: Random) -> Exchange:
    """Ask a fact in one of the wordings of a use, and answer it in a style.

    `short`: with LLaVA's suffix, a word or phrase; `plain`: the same without the suffix; `please`: Yes or
    No, asked for by MME's suffix; `full`: a sentence.
    """
    lines = lexicon()["questions"][fact.kind]
    question = rng.choice(lines[use]).format(**fact.asked)
    polar = is_polar(fact.kind, use)
    if style == "full":
        template = lines[("affirm" if fact.true else "deny") if polar else "full"]
        return Exchange(question, template.format(**fact.asked | fact.right))
    suffix = "" if style == "plain" else lexicon()[style]
    answer = ("Yes" if fact.true else "No") if polar else short_answer(fact)
    return Exchange(question + suffix, answer)


def is_polar(kind: str, use: Use) -> bool:
    """Whether a kind of question in a use is answered by yes or no."""
    return kind in ("existence", "missing", "relation") or use == "correction"


def short_answer(fact: Fact) -> str:
    """Return the right word or phrase, with a capital as LLaVA's short answers have."""
    return capital(lexicon()["questions"][fact.kind]["short"].format(**fact.asked | fact.right))


def mme(fact: Fact) -> Exchange | None:
    """Ask a fact in MME's form, or return None for a kind that MME does not ask."""
    forms, form = lexicon()["mme"], fact.kind
    if fact.kind == "color":
        asked = {"a": with_article(f"{fact.asked['color']} {fact.asked['noun']}")}
    elif fact.kind == "count":
        asked, form = fact.asked, "count_one" if fact.asked["amount"].startswith("one ") else "count"
    elif fact.kind in ("existence", "relation"):
        asked, form = fact.asked, "position" if fact.kind == "relation" else fact.kind
    else:
        return None
    return Exchange(forms[form].format(**asked) + lexicon()["please"], "Yes" if fact.true else "No")


def existence(writer: Writer, category: str) -> Fact:
    """Ask for a category; the answer is the writer's."""
    return Fact("existence", {"a": with_article(category), "noun": category}, true=writer.reports(category))


def attribute(thing: Thing, kind: Literal["color", "size"], asked: str) -> Fact:
    """Ask whether (or which) color or size a thing has."""
    right = getattr(thing, kind)
    return Fact(kind, {"noun": thing.category, kind: asked}, {kind: right}, asked == right)


def count(scene: Scene, category: str, asked: int) -> Fact:
    """Ask for the number of a category's objects."""
    right = sum(t.category == category for t in scene.things)
    plural = lexicon()["categories"][category]["plural"]
    words = lexicon()["counts"]
    return Fact(
        "count",
        {
            "noun": category,
            "plural": plural,
            "count": words[asked],
            "amount": amount(asked, category, plural),
        },
        {"count": words[right], "amount": amount(right, category, plural)},
        asked == right,
    )


def total(scene: Scene, asked: int) -> Fact:
    """Ask for the number of all objects."""
    right, words = len(scene.things), lexicon()["counts"]
    return Fact(
        "total",
        {"count": words[asked], "amount": amount(asked, "object", "objects")},
        {"count": words[right], "amount": amount(right, "object", "objects")},
        asked == right,
    )


def position(thing: Thing, asked: str) -> Fact:
    """Ask whether a thing is at a place, or where it is."""
    return Fact(
        "position", {"noun": thing.category, "place": asked}, {"place": thing.place}, asked == thing.place
    )


def column(thing: Thing) -> Fact:
    """Ask whether a thing is on the left, in the middle or on the right."""
    return Fact("column", {"noun": thing.category}, {"column": thing.place.split()[-1]})


def naming(thing: Thing, asked: Thing | None = None) -> Fact:
    """Ask what is in a thing's place, or whether it is the asked one."""
    asked = asked or thing
    right = {"noun": thing.category, "a": phrase(thing)}
    return Fact("naming", {"place": thing.place, "a": phrase(asked)}, right, asked == thing)


def lacking(writer: Writer, category: str) -> Fact:
    """Ask whether a category is missing; the answer is the writer's."""
    return Fact("missing", {"a": with_article(category), "noun": category}, true=not writer.reports(category))


def word_fits(right: str, wrong: str, true: bool) -> Fact:
    """Ask whether a word fits the picture (the right or the wrong one), or which of the two fits better."""
    asked = {"word": right if true else wrong, "wrong": wrong if true else right}
    return Fact("word", asked, true=true)


def relation_of(first: Thing, second: Thing, asked: str) -> Fact:
    """Ask whether one thing lies so to another."""
    right = relation(first, second)
    slots = {"noun": first.category, "other": second.category}
    return Fact("relation", slots | {"relation": asked}, {"relation": right}, asked == right)


def scene_kind(scene: Scene, asked: str) -> Fact:
    """Ask whether the place is of a kind, or which."""
    right = {"scene": scene.kind, "a_scene": with_article(scene.kind)}
    return Fact("scene", {"a_scene": with_article(asked)}, right, asked == scene.kind)


def sign_text(writer: Writer, asked: str) -> Fact:
    """Ask whether the sign shows a letter, or which; the answer is the writer's."""
    return Fact("text", {"glyph": asked}, {"glyph": writer.glyph}, asked == writer.glyph)
