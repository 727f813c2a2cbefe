"""Which claims of an answer a right answer contradicts: the errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nsft_exp.critic.lexicon import SIGN
from nsft_exp.critic.reading import Claim
from nsft_exp.critic.truth import QUALITIES, Truth

CATEGORIES = {
    "existence": "existence",
    "naming": "existence",
    "color": "attribute",
    "size": "attribute",
    "count": "count",
    "total": "count",
    "scene": "scene",
    "relation": "relation",
    "position": "relation",
    "text": "text",
}
"""Kind of contradiction -> category of the codebook (conf/codebook/full.yaml)."""


@dataclass(frozen=True)
class Contradiction:
    """A claim that the right answer contradicts."""

    kind: str
    """A key of CATEGORIES; `naming`: something else is at the place where the claim puts its noun."""
    claim: Claim
    right: str
    """The value that is right; for existence empty (it is not there) or the noun (it is)."""
    place: str = ""
    """Where the rejected answer puts the object, if it says so."""
    twin: bool = False
    """True where the picture holds several objects of the noun, so that `the cup` means none of them."""

    @property
    def category(self) -> str:
        """Its category of the codebook."""
        return CATEGORIES[self.kind]

    @property
    def subject(self) -> tuple[str, str, str]:
        """What two contradictions about the same thing have in common."""
        return (self.kind, self.claim.noun, self.claim.value)


def contradictions(truth: Truth, claims: Sequence[Claim]) -> list[Contradiction]:
    """The claims of another answer that cannot be true, in the answer's order, each thing once.

    An object that is not known to be absent is no error, nor is what is said of it.
    """
    found: list[Contradiction] = []
    for claim in claims:
        for wrong in _judge(truth, claim, claims):
            if wrong.subject not in (known.subject for known in found):
                found.append(wrong)
    return found


def _judge(truth: Truth, claim: Claim, claims: Sequence[Claim]) -> Iterator[Contradiction]:
    if claim.kind == "existence":
        yield from _judge_existence(truth, claim, claims)
    elif claim.kind in QUALITIES:
        yield from _judge_quality(truth, claim, claims)
    elif claim.kind in ("count", "total"):
        number = truth.number_in_all() if claim.kind == "total" else truth.number(claim.noun)
        if number == 0 and claim.value != "0" and claim.kind == "count":
            yield Contradiction("existence", replace(claim, value=""), "")
        elif number is not None and str(number) != claim.value:
            yield Contradiction(claim.kind, claim, str(number))
    elif claim.kind == "relation":
        if truth.excluded(claim.noun, claim.value, claim.other):
            right = truth.related(claim.noun, claim.other)
            yield Contradiction("relation", claim, right[0] if right else "")
    elif claim.kind == "scene" and truth.scene not in (None, claim.value):
        yield Contradiction("scene", claim, truth.scene or "")
    elif claim.kind == "text" and truth.glyph not in (None, claim.value):
        yield Contradiction("text", claim, truth.glyph or "")
    elif claim.kind == "text" and truth.present(SIGN) is False:
        yield Contradiction("existence", replace(claim, noun=SIGN, value=""), "")


def _judge_existence(truth: Truth, claim: Claim, claims: Sequence[Claim]) -> Iterator[Contradiction]:
    there, place = truth.present(claim.noun), _place(claim, claims)
    if not claim.holds:
        if truth.seen(claim.noun, claim.value) if claim.value else there:
            yield Contradiction("existence", claim, claim.noun)
    elif there is False:
        yield Contradiction("existence", claim, "", place)
    elif there is None and (occupant := truth.at(place)) is not None:
        yield Contradiction("naming", claim, occupant["noun"], place)
    elif claim.mention >= 0:
        yield from _judge_number(truth, claim, claims)


def _judge_number(truth: Truth, claim: Claim, claims: Sequence[Claim]) -> Iterator[Contradiction]:
    """Of several noun phrases of one noun, the one that matches no object makes the number wrong."""
    same = [c for c in claims if c.kind == "existence" and c.noun == claim.noun and c.mention >= 0]
    number = truth.number(claim.noun)
    if number is None or len(same) <= number:
        return
    matched = [c for c in same if _matched(truth, c, claims) is not None]
    surplus = [c for c in same if c not in matched] or same[number:]
    if claim == surplus[0]:
        yield Contradiction("count", replace(claim, kind="count", value=str(len(same))), str(number))


def _judge_quality(truth: Truth, claim: Claim, claims: Sequence[Claim]) -> Iterator[Contradiction]:
    thing, things = _matched(truth, claim, claims), truth.of(claim.noun)
    right = thing.get(claim.kind) if thing else None
    if right is not None:
        if (right != claim.value) == claim.holds:
            yield Contradiction(claim.kind, claim, right, twin=truth.single(claim.noun) is None)
    elif claim.kind == "color" and claim.mention >= 0 and truth.seen(claim.noun, claim.value) is False:
        if len(things) > 1:
            yield Contradiction("color", claim, things[0]["color"], twin=True)
        elif (claim.noun, claim.value) in truth.lacking:
            yield Contradiction("existence", claim, "")


def _matched(truth: Truth, claim: Claim, claims: Sequence[Claim]) -> dict[str, str] | None:
    """The object that a claim is about: the only one of its noun, or the one at the claim's place."""
    there = truth.at(_place(claim, claims))
    if there is not None and there["noun"] == claim.noun:
        return there
    same = {c.mention for c in claims if c.kind == "existence" and c.noun == claim.noun and c.mention >= 0}
    return truth.single(claim.noun) if len(same) <= 1 else None


def _place(claim: Claim, claims: Sequence[Claim]) -> str:
    """Where the claim's noun phrase puts the object, or an empty string."""
    if claim.mention < 0:
        return ""
    return next((c.value for c in claims if c.kind == "position" and c.mention == claim.mention), "")
