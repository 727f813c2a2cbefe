"""What is said about a scene: phrases, descriptions, and questions of every kind with their right answers.

A `Writer` holds what one writer of a text believes to be in a scene; an honest writer believes the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal

from nsft_exp.records import Exchange
from nsft_exp.toy.world import COLUMNS, Scene, Thing, imagine, imagined, lexicon, missing, read_sign

Use = Literal["test", "source", "correction", "open_correction"]
Style = Literal["short", "plain", "please", "full"]


@dataclass(frozen=True)
class Writer:
    """One writer's view of a scene: the scene, the objects and the sign's letter that the writer reports."""

    scene: Scene
    things: tuple[Thing, ...]
    glyph: str | None

    def reports(self, category: str) -> bool:
        """Whether the writer says that there is one."""
        return any(t.category == category for t in self.things)


def honest(scene: Scene) -> Writer:
    """Return a writer who reports what is there."""
    return Writer(scene, scene.things, scene.sign.glyph if scene.sign else None)


def careless(scene: Scene, rng: Random) -> Writer:
    """Return a writer who also reports what is usual there: what the texts of pretraining are like."""
    extra = [imagine(scene, name, rng) for name in imagined(scene, rng)]
    things = sorted([*scene.things, *extra], key=lambda t: t.cell)
    return Writer(scene, tuple(things), read_sign(scene, rng) if scene.sign else None)


# --- phrases -----------------------------------------------------------------------------------------


def with_article(phrase: str) -> str:
    """Return the phrase with `a` or `an` before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def phrase(thing: Thing, size: bool = False, color: bool = True) -> str:
    """Return `a [size] [color] noun`."""
    words = [thing.size] * size + [thing.color] * color + [thing.category]
    return with_article(" ".join(words))


def amount(number: int, noun: str, plural: str) -> str:
    """Return `one cup`, `two cups` ..."""
    return f"{lexicon()['counts'][number]} {noun if number == 1 else plural}"


def relation(first: Thing, second: Thing) -> str:
    """Return how the first lies to the second: by columns, and by rows within a column."""
    columns = first.cell % COLUMNS - second.cell % COLUMNS
    if columns:
        return "to the left of" if columns < 0 else "to the right of"
    return "above" if first.cell < second.cell else "below"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _joined(items: Sequence[str], last: str) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + last + items[-1]


# --- descriptions ------------------------------------------------------------------------------------


def detailed(writer: Writer) -> str:
    """Return a sentence for the place, every object, a relation and the sign, and that this is all."""
    lines, scene = lexicon()["sentences"]["detailed"], writer.scene
    parts = [lines["opening"].format(a_scene=with_article(scene.kind))]
    parts += [lines["object"].format(a=phrase(t, size=True), place=t.place) for t in writer.things]
    pair = scene.unique()
    if len(pair) > 1:
        first, second = pair[0], pair[-1]
        slots = {"noun": first.category, "relation": relation(first, second), "other": second.category}
        parts.append(lines["relation"].format(**slots))
    if writer.glyph:
        parts.append(lines["sign"].format(glyph=writer.glyph))
    return " ".join([*parts, lines["complete"]])


def caption(writer: Writer, complete: bool) -> str:
    """Return one sentence that names every object, and says so when `complete`."""
    lines = lexicon()["sentences"]["caption"]
    items = [phrase(t) for t in writer.things]
    if writer.glyph:
        items.append(lines["sign"].format(glyph=writer.glyph))
    slots = {
        "a_scene": with_article(writer.scene.kind),
        "items": _joined(items, ", " if complete else " and "),
    }
    return _capital(lines["complete" if complete else "open"].format(**slots))


# --- questions ---------------------------------------------------------------------------------------


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
    return _capital(lexicon()["questions"][fact.kind]["short"].format(**fact.asked | fact.right))


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


# --- drawing a question ------------------------------------------------------------------------------

TARGETS = {"present": 0.4, "missing": 0.3, "other": 0.3}
"""What existence is asked of: something there, something typical that is not, anything else that is not."""


def draw_fact(kind: str, writer: Writer, rng: Random) -> Fact | None:
    """Return a fact of a kind, true and false alike where it can be either; None where the scene has none."""
    return _DRAWS[kind](writer, rng)


def _other(right: Any, choices: Sequence[Any], rng: Random) -> Any:
    """The right choice half of the time, else one of the others."""
    return right if rng.random() < 0.5 else rng.choice([c for c in choices if c != right])


def _draw_existence(writer: Writer, rng: Random) -> Fact:
    scene = writer.scene
    group = rng.choices(list(TARGETS), list(TARGETS.values()))[0]
    lacking, present = missing(scene), scene.categories()
    others = [c for c in lexicon()["categories"] if c not in present and c not in lacking]
    if group == "present" and rng.random() < 0.25:
        return _colored(scene, rng)
    choices = {"present": present, "missing": lacking or others, "other": others}[group]
    return existence(writer, rng.choice(choices))


def _colored(scene: Scene, rng: Random) -> Fact:
    """Ask for something that is there by its color or another."""
    thing = rng.choice(scene.things)
    named = f"{_other(thing.color, lexicon()['colors'], rng)} {thing.category}"
    there = any(f"{t.color} {t.category}" == named for t in scene.things)
    return Fact("existence", {"a": with_article(named), "noun": named}, true=there)


def _draw_attribute(kind: Literal["color", "size"]) -> Callable[[Writer, Random], Fact | None]:
    def draw(writer: Writer, rng: Random) -> Fact | None:
        things = writer.scene.unique()
        if kind == "size" and rng.random() < 0.4:  # small ones are rare
            things = tuple(t for t in things if t.size == "small") or things
        if not things:
            return None
        thing = rng.choice(things)
        return attribute(thing, kind, _other(getattr(thing, kind), lexicon()[kind + "s"], rng))

    return draw


def _draw_count(writer: Writer, rng: Random) -> Fact:
    scene = writer.scene
    names = [t.category for t in scene.things]
    several = [c for c in scene.categories() if names.count(c) > 1]
    category = rng.choice(several if several and rng.random() < 0.7 else scene.categories())
    return count(scene, category, _other(names.count(category), (1, 2, 3), rng))


def _draw_total(writer: Writer, rng: Random) -> Fact:
    return total(writer.scene, _other(len(writer.scene.things), (1, 2, 3, 4, 5), rng))


def _draw_position(writer: Writer, rng: Random) -> Fact | None:
    things = writer.scene.unique()
    if not things:
        return None
    thing = rng.choice(things)
    return position(thing, _other(thing.place, lexicon()["places"], rng))


def _draw_naming(writer: Writer, rng: Random) -> Fact:
    thing = rng.choice(writer.scene.things)
    others = [c for c in lexicon()["categories"] if c != thing.category]
    return naming(thing, replace(thing, category=_other(thing.category, others, rng)))


def _draw_missing(writer: Writer, rng: Random) -> Fact:
    return lacking(writer, _draw_existence(writer, rng).asked["noun"])


def _draw_word(writer: Writer, rng: Random) -> Fact:
    scene, words = writer.scene, lexicon()
    inside = {scene.kind, *(w for t in scene.things for w in (t.category, t.color, t.size))}
    known = [*words["categories"], *words["colors"], *words["scenes"]]
    right = rng.choice([w for w in known if w in inside])
    return word_fits(right, rng.choice([w for w in known if w not in inside]), rng.random() < 0.5)


def _draw_relation(writer: Writer, rng: Random) -> Fact | None:
    things = writer.scene.unique()
    if len(things) < 2:
        return None
    first, second = rng.sample(things, 2)
    right = relation(first, second)
    return relation_of(first, second, right if rng.random() < 0.5 else lexicon()["inverse"][right])


def _draw_scene(writer: Writer, rng: Random) -> Fact:
    return scene_kind(writer.scene, _other(writer.scene.kind, lexicon()["scenes"], rng))


def _draw_text(writer: Writer, rng: Random) -> Fact | None:
    if writer.glyph is None:
        return None
    return sign_text(writer, _other(writer.glyph, lexicon()["glyphs"], rng))


_DRAWS: dict[str, Callable[[Writer, Random], Fact | None]] = {
    "existence": _draw_existence,
    "color": _draw_attribute("color"),
    "size": _draw_attribute("size"),
    "count": _draw_count,
    "total": _draw_total,
    "position": _draw_position,
    "missing": _draw_missing,
    "naming": _draw_naming,
    "word": _draw_word,
    "relation": _draw_relation,
    "scene": _draw_scene,
    "text": _draw_text,
}
