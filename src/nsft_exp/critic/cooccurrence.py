"""The control with negatives from the co-occurrence prior: what usually is in such a picture, and is not.

A model that hallucinates names what usually goes with what it sees. Negatives drawn so are as hard as those
of a rejected answer, without reading one: "negative supervision matters" needs nSFT above this control.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from random import Random

from nsft_exp.critic.matched import MatchedRandom, Shape, candidates, redraw
from nsft_exp.critic.truth import QUALITIES, Truth, truth_of
from nsft_exp.critic.wording import Ask
from nsft_exp.records import Preference, Sample

Fact = tuple[str, str, str]
"""(noun, kind, value) of something that a picture shows; an object is (noun, existence, "")."""


class MatchedPrior(MatchedRandom):
    """The matched control whose draws follow co-occurrence counts over the chosen answers of the cell.

    How usual a fact is in a picture: of each object that its chosen answer names (and of the scene), the
    share of the chosen answers with that object that state the fact too; the mean of these shares. A fact
    that stands beside none of them weighs nothing, unless there is no other. The constructor's arguments
    are MatchedRandom's.
    """

    def survey(self, pairs: Sequence[tuple[Sample, Preference]]) -> None:
        """Count what goes with what in the chosen answers of all pairs; no rejected answer is read."""
        self.seen: Counter[Fact] = Counter()
        self.together: Counter[tuple[Fact, Fact]] = Counter()
        for sample, preference in pairs:
            reading = self.rule.reader.read(sample.question, preference.chosen)
            facts = list(dict.fromkeys(facts_of(truth_of(reading, self.rule.lexicon))))
            self.seen.update(facts)
            anchors = [fact for fact in facts if fact[1] in ("existence", "scene")]
            self.together.update((anchor, fact) for anchor in anchors for fact in facts if fact != anchor)

    def turns(self, sample: Sample, shapes: Sequence[Shape], truth: Truth, rng: Random) -> list[Ask]:
        """Return turns of these shapes, the more usual the likelier."""
        anchors = [fact for fact in facts_of(truth) if fact[1] in ("existence", "scene")]

        def find(shape: Shape) -> list[Ask]:
            return candidates(*shape, truth)

        return redraw(shapes, find, rng, lambda ask: self.usual(claimed(ask), anchors))

    def usual(self, fact: Fact, anchors: Iterable[Fact]) -> float:
        """Return how usual a fact is beside these anchors, between 0 and 1; over all answers without any."""
        shares = [self.together[a, fact] / self.seen[a] for a in anchors if self.seen[a] and a != fact]
        return sum(shares) / len(shares) if shares else self.seen[fact] / max(1, self.seen.total())


def facts_of(truth: Truth) -> Iterator[Fact]:
    """Yield what a picture shows as far as its chosen answer tells."""
    if truth.scene:
        yield "", "scene", truth.scene
    if truth.glyph is not None:
        yield "", "text", truth.glyph
    for thing in truth.things:
        noun = thing["noun"]
        yield noun, "existence", ""
        yield from ((noun, kind, thing[kind]) for kind in QUALITIES if kind in thing)
    for noun, number in truth.counts.items():
        yield noun, "count", str(number)
    for (noun, other), relation in truth.relations.items():
        yield noun, relation, other


def claimed(ask: Ask) -> Fact:
    """Return the fact that a question is about, whichever way it is answered."""
    if ask.kind == "naming":  # the noun is the value, the place is given
        return (ask.value or ask.right).split(" ")[-1], "existence", ""
    if ask.kind in ("existence", "missing"):
        return (ask.noun, "color", ask.value) if ask.value else (ask.noun, "existence", "")
    if ask.kind == "relation":
        return ask.noun, ask.value or ask.right, ask.other
    return ask.noun, ask.kind, ask.value or ask.right
