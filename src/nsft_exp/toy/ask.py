"""Drawing a question about a scene: of any kind, true and false alike where it can be either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, Literal

from nsft_exp.toy.fact import (
    Fact,
    attribute,
    column,
    count,
    existence,
    lacking,
    naming,
    position,
    relation_of,
    scene_kind,
    sign_text,
    total,
    word_fits,
)
from nsft_exp.toy.text import Writer, relation, with_article
from nsft_exp.toy.world import Scene, lexicon, missing

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


def _draw_column(writer: Writer, rng: Random) -> Fact | None:
    things = writer.scene.unique()
    return column(rng.choice(things)) if things else None


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
    "column": _draw_column,
    "missing": _draw_missing,
    "naming": _draw_naming,
    "word": _draw_word,
    "relation": _draw_relation,
    "scene": _draw_scene,
    "text": _draw_text,
}
