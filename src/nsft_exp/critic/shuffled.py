"""The shuffled controls: other images' questions, with answers from this image's truth or with their own."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import astuple
from random import Random
from typing import Any

from nsft_exp.critic.codebook import Codebook
from nsft_exp.critic.matched import MatchedRandom, Shape, candidates, redraw
from nsft_exp.critic.rule import judge
from nsft_exp.critic.truth import Truth
from nsft_exp.critic.wording import Ask
from nsft_exp.records import Preference, Sample, UserError


class Shuffled(MatchedRandom):
    """Each turn is one that the rule critic writes for other images of the cell, drawn as often as it does.

    `answers=truth` answers it from this image's chosen answer, so that the turns are true and only their
    choice is another's: what the model says wrongly in general, not here. `answers=own` leaves the other
    image's answer: label noise of the same look. A turn whose shape no other image has (or that this image's
    chosen answer cannot answer) is drawn as MatchedRandom draws it. The rejected answers of the other images
    are read; of this image's only the shape of its dialogue is.
    """

    def __init__(
        self,
        lexicon: str,
        codebook: Codebook,
        max_turns: int = 5,
        closed_world: bool = False,
        seed: int = 0,
        answers: str = "truth",
    ) -> None:
        super().__init__(lexicon, codebook, max_turns, closed_world, seed)
        if answers not in ("truth", "own"):
            raise UserError(f"critic.answers={answers}: there is no such choice; take truth or own")
        self.answers = answers

    def survey(self, pairs: Sequence[tuple[Sample, Preference]]) -> None:
        """Collect the turns that the rule critic writes for each image of the cell."""
        self.asked: defaultdict[str, Counter[Any]] = defaultdict(Counter)
        asks: defaultdict[Shape, set[Ask]] = defaultdict(set)
        for sample, preference in pairs:
            if preference.status == "ok":
                turns = judge(self.rule, sample, preference, self.rule.codebook).turns
                self.asked[image_of(sample)].update(map(self.name, turns))
                for ask in turns:
                    asks[ask.shape].add(ask)
        self.asks = {shape: sorted(some, key=astuple) for shape, some in asks.items()}
        self.everywhere: Counter[Any] = Counter()
        for asked in self.asked.values():
            self.everywhere.update(asked)

    def name(self, ask: Ask) -> Any:
        """What a turn of another image is known by here: the turn itself, or its question alone."""
        return ask if self.answers == "own" else (ask.kind, ask.noun, ask.value, ask.other)

    def turns(self, sample: Sample, shapes: Sequence[Shape], truth: Truth, rng: Random) -> list[Ask]:
        """Return turns of these shapes, drawn from those of other images."""
        mine = self.asked.get(image_of(sample), Counter())

        def times(ask: Ask) -> float:
            return self.everywhere[self.name(ask)] - mine[self.name(ask)]

        def find(shape: Shape) -> list[Ask]:
            others = [ask for ask in self.asks.get(shape, ()) if times(ask)] if self.answers == "own" else []
            return others or candidates(*shape, truth)

        return redraw(shapes, find, rng, times)


def image_of(sample: Sample) -> str:
    """Return the name of a sample's image (its id where it has none)."""
    return sample.cluster or sample.id
