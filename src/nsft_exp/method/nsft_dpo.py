"""Corrections and preferences together (ours): L_dpo(y_c, y_r) + w L_sft(G(y_r; y_c, Q))."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nsft_exp.method.dpo import DPO
from nsft_exp.method.nsft import correction_turns
from nsft_exp.method.sft import check_choice, nll
from nsft_exp.records import Conversation, Item, UserError

if TYPE_CHECKING:
    from nsft_exp.losses import TokenScores


class NSFTDPO(DPO):
    """DPO's term per pair and nSFT's correction term, each normalised over the global batch by itself.

    `weight`, `correction_as` and `normalise` are nSFT's, the other options DPO's; `sft_weight=1` adds
    L_sft(y_c), and so all of nSFT. Trains on the pairs that differ; one without a correction gives DPO's term
    only.
    """

    consumes: ClassVar[Literal["preference", "correction"]] = "correction"

    def __init__(
        self,
        beta: float = 0.1,
        weight: float = 1.0,
        correction_as: str = "turns",
        loss: str = "sigmoid",
        label_smoothing: float = 0.0,
        sft_weight: float | None = None,
        normalise: str = "token",
        pairs: str = "all",
    ) -> None:
        super().__init__(beta, pairs, loss, label_smoothing, sft_weight=sft_weight)
        check_choice("method.correction_as", correction_as, ("turns", "examples"))
        check_choice("method.normalise", normalise, ("token", "example"))
        if weight < 0:
            raise UserError(f"method.weight={weight}: must not be negative")
        self.weight = weight
        self.correction_as = correction_as
        self.normalise = normalise

    def conversations(self, item: Item) -> tuple[Conversation, ...]:
        """The pair's two sequences; the dialogue goes on in the chosen one, or is a third."""
        chosen, rejected = super().conversations(item)
        dialogue = correction_turns(item)
        if self.correction_as == "turns":
            return Conversation(chosen.image, chosen.turns + dialogue), rejected
        return (chosen, rejected, *([Conversation(chosen.image, dialogue)] if dialogue else ()))

    def loss(self, policy: TokenScores, reference: TokenScores | None) -> dict[str, tuple[Any, Any]]:
        """DPO's terms, and `correction` (times `weight`)."""
        total, count = nll(policy, "correction", self.normalise)
        return super().loss(policy, reference) | {"correction": (self.weight * total, count)}
