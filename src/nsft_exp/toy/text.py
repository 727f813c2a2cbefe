"""What is said about a scene: who writes, phrases and descriptions.

A `Writer` holds what one writer of a text believes to be in a scene; an honest writer believes the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from nsft_exp.toy.world import COLUMNS, Scene, Thing, imagine, imagined, lexicon, read_sign


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


def capital(text: str) -> str:
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
    return capital(lines["complete" if complete else "open"].format(**slots))
