"""A critic made worse by stated rates: errors that it overlooks, and right claims that it takes for wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from nsft_exp.critic.contradiction import Contradiction
from nsft_exp.critic.plan import other_value
from nsft_exp.critic.reading import Claim, Reading
from nsft_exp.critic.truth import Truth
from nsft_exp.records import UserError


@dataclass(frozen=True)
class Weakness:
    """The rates of a critic's two kinds of mistake: by default it makes none.

    Each error is overlooked with the probability `miss`, so that the recall is `1 - miss` of what it was.
    Each claim of the rejected answer that nothing contradicts is taken for wrong with the probability
    `invent`; what is right instead is then made up. The draws depend on the sample's id alone. Raises
    UserError for rates that are none.
    """

    miss: float = 0.0
    invent: float = 0.0

    def __post_init__(self) -> None:
        for name in ("miss", "invent"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"critic.{name}={getattr(self, name)}: is a rate; take a number from 0 to 1")

    def __bool__(self) -> bool:
        return bool(self.miss or self.invent)

    def apply(
        self, wrongs: Sequence[Contradiction], truth: Truth, said: Reading, key: str
    ) -> list[Contradiction]:
        """Return the errors that the worse critic sees, in the rejected answer's order."""
        if not self:
            return list(wrongs)
        rng = Random(f"miss/{key}")
        seen = [wrong for wrong in wrongs if rng.random() >= self.miss]
        rng = Random(f"invent/{key}")
        for claim in right_claims(said, wrongs):
            if rng.random() < self.invent:
                seen.append(_invented(claim, truth, rng))
        return sorted(seen, key=lambda wrong: (wrong.claim.start, wrong.claim.end))


def right_claims(said: Reading, wrongs: Sequence[Contradiction]) -> list[Claim]:
    """Return the claims of an answer that touch no error, each thing once."""
    spans = [(wrong.claim.start, wrong.claim.end) for wrong in wrongs]
    free = [c for c in said.claims if not any(c.start < end and start < c.end for start, end in spans)]
    return list({(claim.kind, claim.noun, claim.value): claim for claim in free}.values())


def _invented(claim: Claim, truth: Truth, rng: Random) -> Contradiction:
    """The error that a right claim is taken for."""
    if claim.kind == "existence":
        return Contradiction("existence", claim, "" if claim.holds else claim.noun)
    if not claim.holds:
        return Contradiction(claim.kind, claim, claim.value)
    return Contradiction(claim.kind, claim, other_value(truth.lexicon, claim.kind, claim.value, rng))
