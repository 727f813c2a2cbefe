"""KTO (Ethayarajh et al. 2024): chosen answers are desirable, rejected ones undesirable, each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nsft_exp.interfaces import Needs
from nsft_exp.method.sft import answer, check_choice, conversation, opening, wanted
from nsft_exp.records import Conversation, Example, Item, Turn, UserError

if TYPE_CHECKING:
    from nsft_exp.losses import TokenScores

ROLES = ("chosen", "rejected")


class KTO:
    """The mean of `losses.kto` over the chosen and rejected answers of the pairs that differ.

    The reference point z estimates KL(policy || reference) from mismatched answers, as in the paper: each
    question with the chosen and the rejected answer of the next pair that has other answers. The paper
    averages them over a micro-batch before it clips at 0; here z is each example's own average, since no
    result may depend on how a batch is cut.
    """

    consumes: ClassVar[Literal["preference"]] = "preference"
    needs = Needs(reference="logp")

    def __init__(
        self,
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        pairs: str = "all",
    ) -> None:
        check_choice("method.pairs", pairs, ("all", "common"))
        if beta <= 0:
            raise UserError(f"method.beta={beta}: must be positive")
        if min(desirable_weight, undesirable_weight) < 0 or desirable_weight + undesirable_weight == 0:
            raise UserError(
                f"method.desirable_weight={desirable_weight}, "
                f"method.undesirable_weight={undesirable_weight}: neither may be negative, nor both 0"
            )
        self.beta = beta
        self.desirable_weight = desirable_weight
        self.undesirable_weight = undesirable_weight
        self.pairs = pairs

    def examples(self, items: Sequence[Item], rng: Random) -> list[Example]:
        """One example a pair: its chosen and rejected answers, and two mismatched ones of role `mismatch`.

        Raises UserError where no other pair has other answers.
        """
        pairs = wanted(items, "common")
        return [
            Example(item.sample.id, (*(conversation(item, r) for r in ROLES), *mismatched(pairs, number)))
            for number, item in enumerate(pairs)
        ]

    def loss(self, policy: TokenScores, reference: TokenScores | None) -> dict[str, tuple[Any, Any]]:
        """The one term `kto`, per answer."""
        from nsft_exp import losses
        from nsft_exp.method import pair_loss

        assert reference is not None
        chosen_E, rejected_E = (losses.log_ratios(policy, reference, role) for role in ROLES)
        kl_E = losses.log_ratios(policy, reference, "mismatch") / 2
        weights = self.desirable_weight, self.undesirable_weight
        desired_E, undesired_E = pair_loss.kto(chosen_E, rejected_E, kl_E, self.beta, *weights)
        return {"kto": ((desired_E + undesired_E).sum(), chosen_E.new_tensor(2.0 * len(chosen_E)))}


def mismatched(pairs: Sequence[Item], number: int) -> tuple[Conversation, ...]:
    """A pair's question with both answers of the next pair (in a circle) that has neither of its own."""
    item = pairs[number]
    own = {answer(item, role) for role in ROLES}
    for step in range(1, len(pairs)):
        answers = [answer(pairs[(number + step) % len(pairs)], role) for role in ROLES]
        if own.isdisjoint(answers):
            turns = opening(item.sample)
            return tuple(
                Conversation(item.sample.image, (*turns, Turn("mismatch", text))) for text in answers
            )
    raise UserError(
        f"method=kto: sample {item.sample.id}: no other of the {len(pairs)} pairs has other answers, "
        "which KTO's reference point needs; take a larger source.size"
    )
