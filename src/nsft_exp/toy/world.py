"""Scenes of the toy world and what its writers imagine in them.

A scene is a place with one to five objects on a grid of three columns and two rows. Every kind of place
has four typical objects, each in half of its scenes and with a usual place of its own. Where one is
missing, something else that is hard to make out often stands in its usual place; there the writers of the
pretraining texts mostly name the typical object too. A model that learns from them learns to see, and
to say what is usual where it sees badly. Names and numbers are in lexicon.yaml and world.yaml.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal

import yaml

FOLDER = Path(__file__).parent
LEXICON = FOLDER / "lexicon.yaml"
WORLD = FOLDER / "world.yaml"

View = Literal["clear", "small", "pale", "hidden"]
FAINT: tuple[View, ...] = ("small", "pale", "hidden")
COLUMNS = 3

SPLITS = {"pretrain": range(14), "align": range(14, 17), "validation": range(17, 18), "test": range(18, 20)}
"""Which of BUCKETS a split's scenes fall into, so that no scene is in two splits, whatever the seeds."""
BUCKETS = 20


@cache
def lexicon() -> dict[str, Any]:
    """Return the world's words and sentences (lexicon.yaml)."""
    return dict(yaml.safe_load(LEXICON.read_text(encoding="utf-8")))


@cache
def likelihoods() -> dict[str, Any]:
    """Return what is usual in the world and how often its writers err (world.yaml)."""
    return dict(yaml.safe_load(WORLD.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Thing:
    """One object: what it is, how it looks, and its cell of the grid (row by row)."""

    category: str
    color: str
    size: str
    cell: int
    view: View = "clear"
    dx: int = 0
    dy: int = 0

    @property
    def place(self) -> str:
        """Its place in words: `top left`."""
        return str(lexicon()["places"][self.cell])


@dataclass(frozen=True)
class Sign:
    """A board with one letter or digit, perhaps in pale print."""

    glyph: str
    cell: int
    pale: bool = False


@dataclass(frozen=True)
class Scene:
    """A kind of place, its objects in reading order, perhaps a sign, and the background's shade (0-2)."""

    kind: str
    things: tuple[Thing, ...]
    sign: Sign | None = None
    shade: int = 0

    def categories(self) -> tuple[str, ...]:
        """The distinct categories in it, in reading order."""
        return tuple(dict.fromkeys(t.category for t in self.things))

    def unique(self) -> tuple[Thing, ...]:
        """The objects that are the only ones of their category."""
        names = [t.category for t in self.things]
        return tuple(t for t in self.things if names.count(t.category) == 1)

    def at(self, cell: int) -> Thing | None:
        """The object in a cell, if there is one."""
        return next((t for t in self.things if t.cell == cell), None)

    def bucket(self) -> int:
        """A number below BUCKETS from all that the scene's texts can say; shade and jitter play no part."""
        parts = sorted((t.cell, t.category, t.color, t.size, t.view) for t in self.things)
        sign = (self.sign.glyph, self.sign.cell, self.sign.pale) if self.sign else None
        return int(hashlib.sha256(repr((self.kind, parts, sign)).encode()).hexdigest(), 16) % BUCKETS


def usual_cells(kind: str) -> dict[str, int]:
    """Return the typical objects of a kind of place, each with its usual cell."""
    places = lexicon()["places"]
    return {name: places.index(place) for name, place in likelihoods()["scenes"][kind]["usual"].items()}


def missing(scene: Scene) -> tuple[str, ...]:
    """Return the typical objects that the scene lacks."""
    return tuple(name for name in usual_cells(scene.kind) if name not in scene.categories())


def tempting(scene: Scene) -> tuple[str, ...]:
    """Return the missing typical objects in whose usual place something is hard to make out."""
    cells = usual_cells(scene.kind)
    seen = {name: scene.at(cells[name]) for name in missing(scene)}
    return tuple(name for name, thing in seen.items() if thing is not None and thing.view != "clear")


def imagined(scene: Scene, rng: Random) -> tuple[str, ...]:
    """Return the missing typical objects that one writer of this scene names all the same."""
    rates, temptations = likelihoods()["texts"], tempting(scene)
    return tuple(
        n for n in missing(scene) if rng.random() < rates["unclear" if n in temptations else "clear"]
    )


def imagine(scene: Scene, category: str, rng: Random) -> Thing:
    """Return what a writer who names a missing object has in mind: the usual one, where it usually is."""
    size = "large" if rng.random() < 0.8 else "small"
    color = _color(category, likelihoods()["texts"]["favourite"], rng)
    return Thing(category, color, size, usual_cells(scene.kind)[category])


def read_sign(scene: Scene, rng: Random) -> str:
    """Return how one writer reads the scene's sign: a pale one mostly as it usually reads in such a place."""
    assert scene.sign is not None
    rate = likelihoods()["texts"]["unclear" if scene.sign.pale else "clear"]
    return str(likelihoods()["scenes"][scene.kind]["glyph"]) if rng.random() < rate else scene.sign.glyph


def make_scene(split: str, seed: int, index: int) -> Scene:
    """Return scene number `index` of a split: the same on every machine, never one of another split."""
    rng = Random(f"{split}/{seed}/{index}")
    while True:
        scene = _draw(rng)
        if scene.bucket() in SPLITS[split]:
            return scene


def _draw(rng: Random) -> Scene:
    chances = likelihoods()["scene"]
    kind = rng.choice(lexicon()["scenes"])
    usual = usual_cells(kind)
    present = [name for name in usual if rng.random() < chances["typical"]]
    cells = _settle(usual, present, rng)
    others = [name for name in lexicon()["categories"] if name not in usual]
    rng.shuffle(others)
    things = [_thing(name, cell, chances["faint"], rng) for name, cell in cells.items()]
    for name, cell in usual.items():
        if name not in present and cell not in cells.values() and rng.random() < chances["stand_in"]:
            things.append(_thing(others.pop(), cell, chances["stand_in_faint"], rng))
    free = [cell for cell in range(len(lexicon()["places"])) if cell not in [t.cell for t in things]]
    rng.shuffle(free)
    if not things or (len(things) < 5 and rng.random() < chances["extra"]):
        twin = things and rng.random() < chances["twin"]
        name = rng.choice(things).category if twin else others.pop()
        things.append(_thing(name, free.pop(), chances["faint"], rng))
    sign = _sign(kind, free.pop(), rng) if rng.random() < chances["sign"] else None
    return Scene(kind, tuple(sorted(things, key=lambda t: t.cell)), sign, rng.randrange(3))


def _settle(usual: dict[str, int], present: list[str], rng: Random) -> dict[str, int]:
    """Give present typical objects their cells: the usual one, or now and then one that is nobody's."""
    nobodys = [cell for cell in range(len(lexicon()["places"])) if cell not in usual.values()]
    rng.shuffle(nobodys)
    stays = likelihoods()["scene"]["usual_place"]
    return {name: usual[name] if not nobodys or rng.random() < stays else nobodys.pop() for name in present}


def _thing(name: str, cell: int, faint: float, rng: Random) -> Thing:
    view: View = rng.choice(FAINT) if rng.random() < faint else "clear"
    color = _color(name, likelihoods()["scene"]["favourite"], rng)
    size = "small" if view == "small" else "large"
    return Thing(name, color, size, cell, view, rng.randint(-1, 1), rng.randint(-1, 1))


def _color(category: str, favourite: float, rng: Random) -> str:
    usual = likelihoods()["favourite"][category]
    return str(usual if rng.random() < favourite else rng.choice(lexicon()["colors"]))


def _sign(kind: str, cell: int, rng: Random) -> Sign:
    chances = likelihoods()["scene"]
    usual = rng.random() < chances["sign_usual"]
    glyph = likelihoods()["scenes"][kind]["glyph"] if usual else rng.choice(lexicon()["glyphs"])
    return Sign(glyph, cell, rng.random() < chances["sign_faint"])
