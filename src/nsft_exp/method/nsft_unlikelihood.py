"""Negative supervision taken literally (ours): SFT on y_c, unlikelihood on the error spans of y_r."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nsft_exp.interfaces import Needs
from nsft_exp.method.sft import answer, check_choice, conversation, nll, opening, wanted
from nsft_exp.records import ROLES, Conversation, Example, FoundError, Item, Turn, UserError

if TYPE_CHECKING:
    from nsft_exp.losses import TokenScores

log = logging.getLogger(__name__)

MARK = 2.0
"""Weight of the tokens of an error; the answer's others, its end token among them, weigh 1."""


class NSFTUnlikelihood:
    """L_sft(y_c) + w L_ul(errors of y_r), each term normalised over the global batch by itself.

    L_ul is -log(1 - p) of the tokens of the rejected answer that the critic's errors span (Welleck et al.
    2020); the answer's other tokens are read as context. The corrective dialogue is not trained on. An item
    without an error that can be located gives its chosen answer only, or nothing where `use_chosen=False`;
    `left_out` counts these.
    """

    consumes: ClassVar[Literal["correction"]] = "correction"
    needs = Needs()

    def __init__(
        self, weight: float = 1.0, use_chosen: bool = True, normalise: str = "token", pairs: str = "all"
    ) -> None:
        check_choice("method.normalise", normalise, ("token", "example"))
        check_choice("method.pairs", pairs, ("all", "common"))
        if weight <= 0:
            raise UserError(f"method.weight={weight}: must be positive; method=cont_sft is without this term")
        self.weight = weight
        self.use_chosen = use_chosen
        self.normalise = normalise
        self.pairs = pairs

    def examples(self, items: Sequence[Item], rng: Random) -> list[Example]:
        """One example an item: its chosen answer, and its rejected one with the errors marked."""
        for reason, number in self.left_out(items).items():
            if number:
                log.warning("%d of %d pairs left out: %s", number, len(wanted(items, "common")), reason)
        found = [Example(item.sample.id, self._conversations(item)) for item in wanted(items, self.pairs)]
        return [example for example in found if example.conversations]

    def left_out(self, items: Sequence[Item]) -> dict[str, int]:
        """How many rejected answers are not trained on, by reason (equal answers are no pair)."""
        left = [item for item in wanted(items, "common") if not error_spans(item)]
        criticised = sum(item.correction is not None and bool(item.correction.errors) for item in left)
        return {"no error was found": len(left) - criticised, "no error could be located": criticised}

    def _conversations(self, item: Item) -> tuple[Conversation, ...]:
        found = (conversation(item, "chosen"),) if self.use_chosen else ()
        spans = tuple((start, end, MARK) for start, end in error_spans(item))
        if not spans:
            return found
        turns = (*opening(item.sample), Turn("rejected", answer(item, "rejected"), spans))
        return (*found, Conversation(item.sample.image, turns))

    def loss(self, policy: TokenScores, reference: TokenScores | None) -> dict[str, tuple[Any, Any]]:
        """The terms `chosen` and `unlikelihood` (times `weight`)."""
        from nsft_exp import losses

        terms = {"chosen": nll(policy, "chosen", self.normalise)} if self.use_chosen else {}
        wrong_BT = (policy.role == ROLES.index("rejected")) & (policy.weight == MARK)
        total, count = losses.unlikelihood(
            policy, wrong_BT.to(policy.logp.dtype), self.normalise == "example"
        )
        return terms | {"unlikelihood": (self.weight * total, count)}


def error_spans(item: Item) -> list[tuple[int, int]]:
    """Return the character spans [start, end) of the rejected answer's errors that can be located.

    None where there is no pair or no critique.
    """
    if item.correction is None or item.preference is None or item.preference.status != "ok":
        return []
    text = item.preference.rejected
    return sorted({span for error in item.correction.errors for span in locate(error, text)})


def locate(error: FoundError, text: str) -> list[tuple[int, int]]:
    """Return the error's span as the critic gives it where that holds its words, or where they stand once."""
    given = text[error.start : error.end] if 0 <= error.start < error.end <= len(text) else ""
    if given.strip() and (given == error.wrong or not error.wrong):
        return [(error.start, error.end)]
    if error.wrong.strip() and text.count(error.wrong) == 1:
        start = text.index(error.wrong)
        return [(start, start + len(error.wrong))]
    return []
