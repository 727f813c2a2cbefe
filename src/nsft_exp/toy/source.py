"""The toy world's pretraining source: scenes drawn, and conversations written, when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import overload

from PIL import Image

from nsft_exp.conversation import VICUNA_V1
from nsft_exp.records import Exchange, Sample, UserError
from nsft_exp.toy.draw import draw_scene
from nsft_exp.toy.talk import one_of_each, pretraining_talk
from nsft_exp.toy.world import LEXICON, WORLD, make_scene

SPLIT = "pretrain"
SCENES_A_SAMPLE = 16
"""The scenes of which a later sample takes one."""


class ToyWorld:
    """An endless world: `size` samples of `seed`, each one a scene with one conversation.

    What `later` ones are is said in `pretraining_talk`.

    A sample's image is a name like `toy:pretrain:0:123`, which `open_image` draws. The last exchange is the
    question and answer, the earlier ones are the history; to be learnt from as well they need a method that
    supervises history.
    """

    def __init__(self, size: int, seed: int = 0, later: bool = False) -> None:
        if size < 1:
            raise UserError(f"source.size={size}: must be at least 1")
        self.size, self.seed, self.later = size, seed, later

    def samples(self) -> Sequence[Sample]:
        """The samples; each is made when it is taken, and none is kept."""
        return ToySamples(self.size, self.seed, self.later)

    def files(self) -> list[Path]:
        """The files that say what the world is like."""
        return [LEXICON, WORLD]

    def open_image(self, image: str) -> Image.Image:
        """Draw the scene of a sample's `image`: 64 x 64, RGB."""
        return draw_named(image)


class ToySamples(Sequence[Sample]):
    """A sequence of pretraining samples, made one by one."""

    def __init__(self, size: int, seed: int, later: bool = False) -> None:
        self.size, self.seed, self.later = size, seed, later

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
        number = self._scene_number(number)
        scene = make_scene(SPLIT, self.seed, number)
        *history, last = pretraining_talk(scene, Random(f"talk/{self.seed}/{number}"), self.later)
        name = f"toy:{SPLIT}:{self.seed}:{number}"
        return Sample(name, name, last.question, last.answer, tuple(history), cluster=name)

    def _scene_number(self, number: int) -> int:
        """The sample's scene: `later` about half have several objects of a category, as few others do."""
        if not self.later:
            return number
        some = range(SCENES_A_SAMPLE * number, SCENES_A_SAMPLE * (number + 1))
        several = (n for n in some if number % 2 and not one_of_each(make_scene(SPLIT, self.seed, n)))
        return next(several, some[0])


def draw_named(image: str) -> Image.Image:
    """Draw the scene with this name (`toy:<split>:<seed>:<number>`); UserError for another name."""
    parts = image.split(":")
    if len(parts) != 4 or parts[0] != "toy":
        raise UserError(f"{image}: is not the name of a scene; it must be toy:<split>:<seed>:<number>")
    return draw_scene(make_scene(parts[1], int(parts[2]), int(parts[3])))


def tokenizer_texts(size: int = 8000, seed: int = 0) -> Iterator[str]:
    """Yield what the base's tokenizer is trained on: the prompt's fixed text and `size` conversations."""
    for _ in range(size // 40):
        yield VICUNA_V1.system
    for sample in ToySamples(size, seed):
        for said in (*sample.history, Exchange(sample.question, sample.answer)):
            yield f"{VICUNA_V1.user}{said.question}{VICUNA_V1.answer}"
            yield said.answer
