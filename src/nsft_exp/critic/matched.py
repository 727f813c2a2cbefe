"""The matched controls: dialogues shaped like the rule critic's, without the rejected answer's content.

Of the rule critic's dialogue for the same sample only the shape is taken: how many turns, of which kinds, and
which are answered Yes and No. What is asked is then drawn from what the chosen answer entails: true facts for
Yes, true negatives for No. If this does as well as nSFT, the rejected answer is not what matters. The draw is
uniform here; cooccurrence.py and shuffled.py have other draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random

from nsft_exp.critic.codebook import Codebook
from nsft_exp.critic.dialogue import corrected, uncorrected
from nsft_exp.critic.lexicon import SIGN
from nsft_exp.critic.rule import Rule, judge, write
from nsft_exp.critic.truth import QUALITIES, Truth
from nsft_exp.critic.wording import Ask
from nsft_exp.records import Correction, Preference, Sample, UserError

Shape = tuple[str, str, bool]
"""Kind, answer, and whether it asks by a quality (Ask.shape)."""


class MatchedRandom:
    """The rule critic's dialogues with their content drawn at random; `seed` moves the draws.

    `lexicon`, `max_turns` and `closed_world` are the rule critic's, and so is which samples get a dialogue.
    """

    def __init__(
        self,
        lexicon: str,
        codebook: Codebook,
        max_turns: int = 5,
        closed_world: bool = False,
        seed: int = 0,
    ) -> None:
        self.rule = Rule(lexicon, codebook, max_turns, closed_world)
        self.seed = seed

    def corrections(self, pairs: Iterable[tuple[Sample, Preference]]) -> Iterator[Correction]:
        """Yield one Correction for every pair, in order. It names no errors: none was looked at."""
        if not self.rule.codebook:
            raise UserError("critic: a matched control needs the kinds of a codebook; use codebook=full")
        for sample, preference in pairs:
            if preference.status != "ok":
                yield uncorrected(sample.id, "no_error", f"no pair: {preference.status}")
                continue
            judged = judge(self.rule, sample, preference, self.rule.codebook)
            shapes = [ask.shape for ask in judged.turns]
            turns = self.turns(sample, shapes, judged.truth, Random(f"matched/{self.seed}/{sample.id}"))
            if turns:
                yield corrected(sample.id, (), write(self.rule.lexicon, turns, sample.id))
            else:
                status = "refused" if judged.wrongs else "no_error"
                yield uncorrected(sample.id, status, "the rule critic asks nothing here")

    def turns(self, sample: Sample, shapes: Sequence[Shape], truth: Truth, rng: Random) -> list[Ask]:
        """Return turns of these shapes, drawn by `rng` from what the truth entails."""
        return redraw(shapes, lambda shape: candidates(*shape, truth), rng)


def redraw(
    shapes: Iterable[Shape],
    find: Callable[[Shape], list[Ask]],
    rng: Random,
    weigh: Callable[[Ask], float] = lambda ask: 0.0,
) -> list[Ask]:
    """Return turns of the given shapes, drawn from what is found for each, none twice unless it must be.

    A turn is drawn in proportion to its weight; where all weigh nothing, all are alike. Returns none at all
    if nothing is found for some shape.
    """
    turns: list[Ask] = []
    for shape in shapes:
        found = find(shape)
        if not found:
            return []
        choices = [ask for ask in found if ask not in turns] or found
        weights = [weigh(ask) for ask in choices]
        turns.append(rng.choices(choices, weights)[0] if any(weights) else rng.choice(choices))
    return turns


def candidates(kind: str, answer: str, by_quality: bool, truth: Truth) -> list[Ask]:
    """Return all turns of a shape that the truth can answer, in a stable order."""
    if kind in ("existence", "missing"):
        facts = _existence(kind, answer, by_quality, truth)
    elif kind == "naming":
        facts = _naming(answer, truth)
    elif kind == "relation":
        facts = _relation(answer, truth)
    else:
        facts = _valued(kind, answer, truth)
    return list(dict.fromkeys(facts))


def _existence(kind: str, answer: str, by_quality: bool, truth: Truth) -> Iterator[Ask]:
    there = (answer == "yes") == (kind == "existence")
    if not by_quality:
        known = [noun for noun in truth.lexicon.nouns if truth.present(noun) is there]
        yield from (_ask(kind, answer, noun) for noun in known or [SIGN])
        return
    for noun in dict.fromkeys([*(thing["noun"] for thing in truth.things), *(n for n, _ in truth.lacking)]):
        colors = [color for color in truth.lexicon.choices("color") if truth.seen(noun, color) is there]
        yield from (_ask(kind, answer, noun, color, color) for color in colors)


def _naming(answer: str, truth: Truth) -> Iterator[Ask]:
    for thing in truth.things:
        if "position" in thing:
            named = " ".join(filter(None, (thing.get("color"), thing["noun"])))
            others = [noun for noun in truth.lexicon.nouns if noun != thing["noun"]]
            values = {"yes": [thing["noun"]], "no": others, "open": [""]}[answer]
            right = named if answer == "open" else thing["noun"]
            yield from (_ask("naming", answer, "", value, right, thing["position"]) for value in values)


def _relation(answer: str, truth: Truth) -> Iterator[Ask]:
    nouns = list(dict.fromkeys(thing["noun"] for thing in truth.things))
    known = {(a, b) for a in nouns for b in nouns if a != b} | set(truth.relations)
    for noun, other in sorted(known):
        for right in truth.related(noun, other)[:1]:
            value = right if answer == "yes" else str(truth.lexicon.data["inverse"][right])
            yield _ask("relation", answer, noun, value, right, other)


def _valued(kind: str, answer: str, truth: Truth) -> Iterator[Ask]:
    """Facts with one right value: qualities and numbers of a noun, of all, the scene, the sign's text."""
    for noun, right in _values(kind, truth):
        numbers = [str(n) for n in range(1, max(3, int(right)) + 1)] if kind in ("count", "total") else None
        wrong = [value for value in numbers or truth.lexicon.choices(kind) if value != right]
        values = {"yes": [right], "no": wrong, "open": [""]}[answer]
        yield from (_ask(kind, answer, noun, value, right) for value in values)


def _values(kind: str, truth: Truth) -> list[tuple[str, str]]:
    """(noun, right value) of everything of a kind that is known."""
    sign = [SIGN] if truth.glyph is not None else []
    nouns = list(dict.fromkeys((*(thing["noun"] for thing in truth.things), *truth.counts, *sign)))
    if kind in QUALITIES:
        single = {noun: truth.single(noun) or {} for noun in nouns}
        return [(noun, thing[kind]) for noun, thing in single.items() if kind in thing]
    if kind == "count":
        return [(noun, str(number)) for noun in nouns if (number := truth.number(noun))]
    whole = {"total": truth.number_in_all(), "scene": truth.scene, "text": truth.glyph}[kind]
    return [("", str(whole))] if whole else []


def _ask(kind: str, answer: str, noun: str, value: str = "", right: str = "", other: str = "") -> Ask:
    return Ask(kind, answer, noun, value, right, other)  # type: ignore[arg-type]
