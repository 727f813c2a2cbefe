"""Direct preference optimisation (Rafailov et al. 2023) on pairs of answers, and losses that came later."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nsft_exp.interfaces import Needs
from nsft_exp.method.sft import answer, check_choice, conversation, wanted
from nsft_exp.records import Conversation, Example, Item, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from nsft_exp.losses import TokenScores

log = logging.getLogger(__name__)

MARGIN = ("sigmoid", "hinge", "ipo", "robust")
"""Losses of the margin against a reference."""
WITHOUT_REFERENCE = ("simpo", "orpo")
AVERAGED = ("ipo", *WITHOUT_REFERENCE)
"""Losses of averages per token; the others are of sums."""
SMOOTHED = ("sigmoid", "robust")


class DPO:
    """A loss of chosen and rejected answers, averaged over the pairs of the global batch.

    Trains on the items whose chosen and rejected answers differ; `pairs` says the same for every method, and
    both of its values mean these items here. `loss` is one of

    - `sigmoid`: DPO, -log sigmoid(beta m); with `label_smoothing` conservative DPO
    - `hinge`, `ipo` (beta is its tau), `robust` (needs `label_smoothing`): other functions of the margin m
    - `simpo` (`gamma` is the target margin), `orpo` (`beta` is its lambda): no reference is run

    `reduction` of an answer's token log-probabilities is `sum` or `mean`; null is the loss's own: mean for
    ipo (as its authors confirmed to TRL), simpo and orpo, sum for the others. `sft_weight` adds that many
    times L_sft(y_c), a term of its own; null is 1 for orpo, whose paper has it, and 0 for the others.

    `side=chosen|rejected` trains through one answer only: with the whole margin and the other's gradient
    stopped (`side_form=coefficient`), or with that answer's part of the margin `alone`.

    `max_length_ratio` leaves out the pairs whose longer answer has more than that many times the shorter's
    words (`left_out` counts them).
    """

    consumes: ClassVar[Literal["preference", "correction"]] = "preference"

    def __init__(
        self,
        beta: float = 0.1,
        pairs: str = "all",
        loss: str = "sigmoid",
        label_smoothing: float = 0.0,
        gamma: float = 0.0,
        reduction: str | None = None,
        sft_weight: float | None = None,
        side: str = "both",
        side_form: str = "coefficient",
        max_length_ratio: float | None = None,
    ) -> None:
        check_choice("method.pairs", pairs, ("all", "common"))
        check_choice("method.side", side, ("both", "chosen", "rejected"))
        check_choice("method.side_form", side_form, ("coefficient", "alone"))
        if loss == "kto":
            raise UserError("method.loss=kto: it needs mismatched answers too; take method=kto")
        check_choice("method.loss", loss, (*MARGIN, *WITHOUT_REFERENCE))
        self.beta = beta
        self.pairs = pairs
        self.objective = loss
        self.label_smoothing = label_smoothing
        self.gamma = gamma
        self.reduction = reduction or ("mean" if loss in AVERAGED else "sum")
        self.sft_weight = float(loss == "orpo") if sft_weight is None else sft_weight
        self.side = side
        self.side_form = side_form
        self.max_length_ratio = max_length_ratio
        self._check()

    def _check(self) -> None:
        """Refuse numbers out of range and options that the loss does not have."""
        loss = self.objective
        if self.beta <= 0:
            raise UserError(f"method.beta={self.beta}: must be positive")
        if self.sft_weight < 0:
            raise UserError(f"method.sft_weight={self.sft_weight}: must not be negative")
        if self.max_length_ratio is not None and self.max_length_ratio < 1:
            raise UserError(f"method.max_length_ratio={self.max_length_ratio}: take 1 (equal) or more")
        check_choice("method.reduction", self.reduction, ("sum", "mean"))
        if self.reduction == "sum" and loss in WITHOUT_REFERENCE:
            raise UserError(f"method.reduction=sum: method.loss={loss} is defined on averages; leave it null")
        self._check_smoothing()
        if self.gamma < 0 or (self.gamma and loss != "simpo"):
            raise UserError(f"method.gamma={self.gamma}: a margin of method.loss=simpo only, not negative")
        if self.side != "both" and loss not in MARGIN:
            raise UserError(f"method.side={self.side}: needs method.loss={' or '.join(MARGIN)}, not {loss}")

    def _check_smoothing(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"method.label_smoothing={self.label_smoothing}: take a share from 0 to below 0.5"
            )
        if self.label_smoothing and self.objective not in SMOOTHED:
            raise UserError(
                f"method.label_smoothing={self.label_smoothing}: method.loss={self.objective} has none; "
                f"take {' or '.join(SMOOTHED)}"
            )
        if self.objective == "robust" and not self.label_smoothing:
            raise UserError("method.loss=robust is DPO itself without method.label_smoothing; take 0.1, say")

    @property
    def needs(self) -> Needs:
        """The reference's log-probabilities, where the loss has a reference."""
        return Needs() if self.objective in WITHOUT_REFERENCE else Needs(reference="logp")

    # --- examples ----------------------------------------------------------------------------------

    def examples(self, items: Sequence[Item], rng: Random) -> list[Example]:
        """One example a pair: the conversation that ends in the chosen answer, and that with the rejected."""
        for reason, number in self.left_out(items).items():
            if number:
                log.warning("%d of %d pairs left out: %s", number, len(each_pair(items)), reason)
        return [Example(item.sample.id, self.conversations(item)) for item in self.kept(items)]

    def conversations(self, item: Item) -> tuple[Conversation, ...]:
        """The sequences of one pair."""
        return conversation(item, "chosen"), conversation(item, "rejected")

    def kept(self, items: Sequence[Item]) -> list[Item]:
        """The pairs that are trained on: one for each rejected answer of a sample."""
        limit = self.max_length_ratio
        pairs = each_pair(items)
        return pairs if limit is None else [item for item in pairs if length_ratio(item) <= limit]

    def left_out(self, items: Sequence[Item]) -> dict[str, int]:
        """How many pairs that differ are not trained on, by reason."""
        if self.max_length_ratio is None:
            return {}
        return {"answers of unequal length": len(each_pair(items)) - len(self.kept(items))}

    # --- loss --------------------------------------------------------------------------------------

    def loss(self, policy: TokenScores, reference: TokenScores | None) -> dict[str, tuple[Any, Any]]:
        """The term `dpo` (or `simpo`, `orpo`), per pair, and `sft` (times `sft_weight`), per token."""
        from nsft_exp import losses

        if self.objective in WITHOUT_REFERENCE:
            reference = None
        else:
            assert reference is not None
        loss_E = self.pair_losses(
            losses.log_ratios(policy, reference, "chosen", self.reduction),
            losses.log_ratios(policy, reference, "rejected", self.reduction),
        )
        name = self.objective if reference is None else "dpo"
        terms = {name: (loss_E.sum(), loss_E.new_tensor(float(len(loss_E))))}
        if self.sft_weight:
            total, count = losses.sft(policy, "chosen")
            terms["sft"] = (self.sft_weight * total, count)
        return terms

    def pair_losses(self, chosen_E: Tensor, rejected_E: Tensor) -> Tensor:
        """Return loss_E of the answers' log ratios (log-probabilities where there is no reference)."""
        from nsft_exp import losses
        from nsft_exp.method import pair_loss

        margin_E = pair_loss.margin_of_side(chosen_E, rejected_E, self.side, self.side_form)
        match self.objective:
            case "hinge":
                return pair_loss.hinge(margin_E, self.beta)
            case "ipo":
                return pair_loss.ipo(margin_E, self.beta)
            case "robust":
                return pair_loss.robust(margin_E, self.beta, self.label_smoothing)
            case "simpo":
                return pair_loss.simpo(chosen_E, rejected_E, self.beta, self.gamma)
            case "orpo":
                return self.beta * pair_loss.odds_ratio(chosen_E, rejected_E)
        return losses.dpo_sigmoid(margin_E, self.beta, self.label_smoothing)


def each_pair(items: Sequence[Item]) -> list[Item]:
    """Return an item for every pair of a chosen and a rejected answer that differ.

    Further rejected answers of a sample are in its preference's details (`others`); their ids have a number.
    """
    found = []
    for item in wanted(items, "common"):
        assert item.preference is not None
        found.append(item)
        for number, other in enumerate(item.preference.details.get("others", ()), 1):
            sample = replace(item.sample, id=f"{item.sample.id}#{number}")
            found.append(Item(sample, replace(item.preference, **other), item.correction))
    return found


def length_ratio(item: Item) -> float:
    """Words of the longer answer of a pair over words of the shorter (an empty answer counts as one)."""
    short, long = sorted(max(1, len(answer(item, role).split())) for role in ("chosen", "rejected"))
    return long / short
