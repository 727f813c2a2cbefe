"""The toy world's pretraining source: scenes drawn, and conversations written, when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from random import Random
from typing import overload

from PIL import Image

from nsft_exp.conversation import VICUNA_V1
from nsft_exp.records import Exchange, Sample, UserError
from nsft_exp.toy.draw import draw_scene
from nsft_exp.toy.plain import lookup_scene
from nsft_exp.toy.talk import lookup_talk, one_of_each, pretraining_talk
from nsft_exp.toy.world import LEXICON, WORLD, Scene, make_scene

SPLIT, LOOKUP = "pretrain", "lookup"
SCENES_A_SAMPLE = 16
"""The scenes of which a sample takes one."""


class ToyWorld:
    """An endless world: `size` samples of `seed`, each one a scene with one conversation.

    With `lookups` the scenes have no prior and the conversations ask for objects by their nouns alone.

    A sample's image is a name like `toy:pretrain:0:123`, which `open_image` draws. The last exchange is the
    question and answer, the earlier ones are the history; to be learnt from as well they need a method that
    supervises history.
    """

    def __init__(self, size: int, seed: int = 0, lookups: bool = False) -> None:
        if size < 1:
            raise UserError(f"source.size={size}: must be at least 1")
        self.size, self.seed, self.lookups = size, seed, lookups

    def samples(self) -> Sequence[Sample]:
        """The samples; each is made when it is taken, and none is kept."""
        return ToySamples(self.size, self.seed, self.lookups)

    def files(self) -> list[Path]:
        """The files that say what the world is like."""
        return [LEXICON, WORLD]

    def open_image(self, image: str) -> Image.Image:
        """Draw the scene of a sample's `image`: 64 x 64, RGB."""
        return draw_named(image)


class ToySamples(Sequence[Sample]):
    """A sequence of pretraining samples, made one by one."""

    def __init__(self, size: int, seed: int, lookups: bool = False) -> None:
        self.size, self.seed, self.lookups = size, seed, lookups

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(index)
        return self._make(index % self.size)

    def _make(self, number: int) -> Sample:
        if self.lookups:
            name, talk = f"toy:{LOOKUP}:{self.seed}:{number}", lookup_talk
        else:
            name, talk = f"toy:{SPLIT}:{self.seed}:{self._scene_number(number)}", pretraining_talk
        *history, last = talk(scene_named(name), Random(f"talk/{name}"))
        return Sample(name, name, last.question, last.answer, tuple(history), cluster=name)

    def _scene_number(self, number: int) -> int:
        """The sample's scene: about half have several objects of a category, as few others do."""
        some = range(SCENES_A_SAMPLE * number, SCENES_A_SAMPLE * (number + 1))
        several = (n for n in some if number % 2 and not one_of_each(make_scene(SPLIT, self.seed, n)))
        return next(several, some[0])


def scene_named(image: str) -> Scene:
    """Return the scene with this name (`toy:<split>:<seed>:<number>`); UserError for another name."""
    parts = image.split(":")
    if len(parts) != 4 or parts[0] != "toy":
        raise UserError(f"{image}: is not the name of a scene; it must be toy:<split>:<seed>:<number>")
    split, seed, number = parts[1], int(parts[2]), int(parts[3])
    return lookup_scene(seed, number) if split == LOOKUP else make_scene(split, seed, number)


def draw_named(image: str) -> Image.Image:
    """Draw the scene with this name."""
    return draw_scene(scene_named(image))


def tokenizer_texts(size: int = 8000, seed: int = 0) -> Iterator[str]:
    """Yield what the base's tokenizer is trained on: the prompt's fixed text and `size` conversations.

    A quarter of them are lookups, so that their answers are words of it too.
    """
    for _ in range(size // 40):
        yield VICUNA_V1.system
    for sample in chain(ToySamples(size - size // 4, seed), ToySamples(size // 4, seed, lookups=True)):
        for said in (*sample.history, Exchange(sample.question, sample.answer)):
            yield f"{VICUNA_V1.user}{said.question}{VICUNA_V1.answer}"
            yield said.answer
