"""What a right answer entails about a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nsft_exp.critic.lexicon import SIGN, Lexicon
from nsft_exp.critic.reading import Claim, Reading

QUALITIES = ("size", "color", "position")


@dataclass
class Truth:
    """What is known of a picture: of each object its noun and qualities, and what is known not to be there.

    `complete`: everything there is was named, so that what is not among the objects is not in the picture.
    """

    lexicon: Lexicon
    complete: bool = False
    things: list[dict[str, str]] = field(default_factory=list)
    """One dictionary an object: `noun`, and `size`, `color`, `position` as far as they are known."""
    counts: dict[str, int] = field(default_factory=dict)
    total: int | None = None
    absent: set[str] = field(default_factory=set)
    lacking: set[tuple[str, str]] = field(default_factory=set)
    """(noun, color): there is none of that color."""
    several: set[str] = field(default_factory=set)
    """Nouns of which there are objects, nobody said how many (`cups`)."""
    relations: dict[tuple[str, str], str] = field(default_factory=dict)
    scene: str | None = None
    glyph: str | None = None

    def present(self, noun: str) -> bool | None:
        """Whether there is such an object; None: not known."""
        if noun == SIGN and self.glyph is not None:
            return True
        if noun in self.absent or self.counts.get(noun) == 0:
            return False
        if self.counts.get(noun) or noun in self.several or self.of(noun):
            return True
        return False if self.complete else None

    def number(self, noun: str) -> int | None:
        """How many objects of a noun there are; None: not known."""
        if noun in self.counts:
            return self.counts[noun]
        if noun == SIGN and self.glyph is not None:
            return 1
        if noun in self.absent or noun in self.several:
            return 0 if noun in self.absent else None
        return len(self.of(noun)) if self.complete else None

    def number_in_all(self) -> int | None:
        """How many objects there are, signs apart; None: not known."""
        objects = [thing for thing in self.things if thing["noun"] != SIGN]
        known = self.complete and not self.several and not self.counts
        return self.total if self.total is not None else len(objects) if known else None

    def of(self, noun: str) -> list[dict[str, str]]:
        """The known objects of a noun."""
        return [thing for thing in self.things if thing["noun"] == noun]

    def seen(self, noun: str, color: str) -> bool | None:
        """Whether there is an object of this noun and color; None: not known."""
        colors = [thing.get("color") for thing in self.of(noun)]
        if color in colors:
            return True
        known = self.present(noun) is False or (noun, color) in self.lacking
        return False if known or (self.complete and None not in colors) else None

    def single(self, noun: str) -> dict[str, str] | None:
        """The object that `the <noun>` means: the only one of its noun, as far as is known."""
        things = self.of(noun)
        alone = len(things) == 1 and noun not in self.several
        return things[0] if alone and self.number(noun) in (1, None) else None

    def at(self, place: str) -> dict[str, str] | None:
        """The object that is known to be at a place."""
        return next((thing for thing in self.things if thing.get("position") == place), None)

    def related(self, noun: str, other: str) -> tuple[str, ...]:
        """The relations that are known to hold from one object to another, the one to state first."""
        cells = self._cells(noun, other)
        if cells:
            return tuple(relations_of(self.lexicon, *cells))
        if (noun, other) in self.relations:
            return (self.relations[noun, other],)
        back = self.relations.get((other, noun))
        return (self.lexicon.data["inverse"][back],) if back else ()

    def _cells(self, noun: str, other: str) -> tuple[str, str] | None:
        first, second = ((self.single(name) or {}).get("position") for name in (noun, other))
        return (first, second) if first and second else None

    def excluded(self, noun: str, relation: str, other: str) -> bool:
        """Whether a relation cannot hold: its inverse does, or the places say that it does not."""
        holding = self.related(noun, other)
        known = self._cells(noun, other) is not None and relation not in holding
        return known or self.lexicon.data["inverse"][relation] in holding


def truth_of(reading: Reading, lexicon: Lexicon, closed_world: bool = False) -> Truth:
    """Return what a right answer entails; `closed_world`: whatever it does not name is not there."""
    truth = Truth(lexicon, complete=reading.complete or closed_world)
    phrases: dict[Any, dict[str, str]] = {}
    for claim in reading.claims:
        if claim.kind == "existence" and claim.holds and claim.mention >= 0:
            phrases[claim.mention] = {"noun": claim.noun}
            truth.things.append(phrases[claim.mention])
    for claim in reading.claims:
        _learn(truth, claim, phrases)
    return truth


def truth_of_scene(scene: Mapping[str, Any], lexicon: Lexicon) -> Truth:
    """Return the truth of a picture from `{scene, objects: [{category, color, size, place}], sign}`."""
    things = [
        {"noun": o["category"], "color": o["color"], "size": o["size"], "position": o["place"]}
        for o in scene["objects"]
    ]
    sign = scene.get("sign")
    return Truth(lexicon, True, things, scene=scene["scene"], glyph=str(sign) if sign else None)


def relations_of(lexicon: Lexicon, place: str, other: str) -> list[str]:
    """Return the relations from one place of the grid to another: by columns first, then by rows.

    The lexicon lists the places row by row, three in a row, and the relations as left, right, above, below.
    """
    places, (left, right, above, below) = lexicon.data["places"], lexicon.data["relations"]
    (row, column), (other_row, other_column) = (divmod(places.index(p), 3) for p in (place, other))
    holding = [left if column < other_column else right] * (column != other_column)
    return holding + [above if row < other_row else below] * (row != other_row)


def _learn(truth: Truth, claim: Claim, phrases: dict[Any, dict[str, str]]) -> None:
    """Add one claim of the right answer to what is known."""
    if claim.kind == "existence" and not claim.holds:
        if claim.value:
            truth.lacking.add((claim.noun, claim.value))
        else:
            truth.absent.add(claim.noun)
    elif claim.kind == "existence" and claim.other:
        truth.several.add(claim.noun)
    elif claim.kind == "existence" and claim.mention < 0 and not truth.of(claim.noun):
        truth.things.append({"noun": claim.noun})
    elif claim.kind in QUALITIES and claim.holds:
        thing = phrases.get(claim.mention) or truth.single(claim.noun)
        if thing is not None:
            thing.setdefault(claim.kind, claim.value)
    elif claim.kind == "count":
        truth.counts[claim.noun] = int(claim.value)
    elif claim.kind == "total":
        truth.total = int(claim.value)
    elif claim.kind == "relation":
        truth.relations[claim.noun, claim.other] = claim.value
    elif claim.kind == "scene":
        truth.scene = claim.value
    elif claim.kind == "text":
        truth.glyph = claim.value
