"""Scenes without a prior: what they hold is as likely as anything else, whatever the place."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from nsft_exp.toy.world import FAINT, SPLITS, Scene, Sign, Thing, View, lexicon

MOST_THINGS, MOST_ALIKE = 5, 3
"""What the world's questions can count."""
SEVERAL = 0.6
"""How many lookup scenes have objects of one category, where there is more than one."""


def random_scene(rng: Random) -> Scene:
    """A drawing in which nothing follows from anything else; a scene of no split but pretraining's."""
    while True:
        scene = _draw(rng)
        if scene.bucket() in SPLITS["pretrain"]:
            return scene


def _draw(rng: Random) -> Scene:
    words = lexicon()
    cells = list(range(len(words["places"])))
    sign = None
    if rng.random() < 0.6:
        sign = Sign(rng.choice(words["glyphs"]), rng.choice(cells), rng.random() < 0.4)
        cells.remove(sign.cell)
    things = tuple(_thing(cell, rng) for cell in cells if rng.random() < 0.75)
    return Scene(rng.choice(words["scenes"]), things, sign, rng.randrange(3))


def _thing(cell: int, rng: Random) -> Thing:
    words = lexicon()
    view: View = rng.choice(FAINT) if rng.random() < 0.5 else "clear"
    category, color = rng.choice(list(words["categories"])), rng.choice(words["colors"])
    size = "small" if view == "small" else "large"
    return Thing(category, color, size, cell, view, rng.randint(-1, 1), rng.randint(-1, 1))


def lookup_scene(seed: int, number: int) -> Scene:
    """Return scene `number` to look objects up in: one to five, often two or three of one category."""
    rng = Random(f"lookup/{seed}/{number}")
    while True:
        scene = random_scene(rng)
        if rng.random() < SEVERAL:
            scene = _several(scene, rng)
        alike = Counter(thing.category for thing in scene.things)
        countable = 0 < len(scene.things) <= MOST_THINGS and max(alike.values()) <= MOST_ALIKE
        if countable and scene.bucket() in SPLITS["pretrain"]:
            return scene


def _several(scene: Scene, rng: Random) -> Scene:
    """The scene with one or two objects turned into another one's category."""
    if len(scene.things) < 2:
        return scene
    first, *others = rng.sample(range(len(scene.things)), min(len(scene.things), rng.randint(2, 3)))
    category = scene.things[first].category
    things = (replace(t, category=category) if n in others else t for n, t in enumerate(scene.things))
    return replace(scene, things=tuple(things))
