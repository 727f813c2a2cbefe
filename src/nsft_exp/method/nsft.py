"""nSFT: continual SFT on the chosen answer and on a corrective dialogue about the rejected one.

L_nSFT = L_sft(y_c) + w L_sft(G(y_r; y_c, Q)) (the nSFT paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nsft_exp.interfaces import Needs
from nsft_exp.method.sft import answer, check_choice, nll, opening, wanted
from nsft_exp.records import Conversation, Example, Item, Turn, UserError

if TYPE_CHECKING:
    from nsft_exp.losses import TokenScores


class NSFT:
    """Two SFT terms, each normalised over the global batch by itself (see SFT), the second times `weight`.

    `correction_as=turns`: the dialogue goes on in the chosen answer's conversation, so that the image is read
    once; `examples`: it is a conversation of its own about the same image. `use_chosen=False` trains on the
    dialogue alone. `kl` adds that many times the exact divergence per token to the reference, whose direction
    is `forward` (KL(reference || policy)) or `reverse`. An item without a correction gives its chosen answer
    only.
    """

    consumes: ClassVar[Literal["correction"]] = "correction"

    def __init__(
        self,
        weight: float = 1.0,
        correction_as: str = "turns",
        use_chosen: bool = True,
        kl: float = 0.0,
        kl_direction: Literal["forward", "reverse"] = "forward",
        normalise: str = "token",
        pairs: str = "all",
    ) -> None:
        check_choice("method.correction_as", correction_as, ("turns", "examples"))
        check_choice("method.kl_direction", kl_direction, ("forward", "reverse"))
        check_choice("method.normalise", normalise, ("token", "example"))
        check_choice("method.pairs", pairs, ("all", "common"))
        if weight < 0 or kl < 0:
            raise UserError(f"method.weight={weight}, method.kl={kl}: neither may be negative")
        self.weight = weight
        self.correction_as = correction_as
        self.use_chosen = use_chosen
        self.kl = kl
        self.kl_direction = kl_direction
        self.normalise = normalise
        self.pairs = pairs

    @property
    def needs(self) -> Needs:
        """The reference's distribution where there is a KL term."""
        return Needs("distribution", self.kl_direction) if self.kl else Needs()

    def examples(self, items: Sequence[Item], rng: Random) -> list[Example]:
        """One example an item; without the chosen answer, only items that have a correction."""
        found = [Example(item.sample.id, self._conversations(item)) for item in wanted(items, self.pairs)]
        return [example for example in found if example.conversations]

    def _conversations(self, item: Item) -> tuple[Conversation, ...]:
        image, dialogue = item.sample.image, correction_turns(item)
        chosen = (*opening(item.sample), Turn("chosen", answer(item, "chosen"))) if self.use_chosen else ()
        parts = (chosen + dialogue,) if self.correction_as == "turns" else (chosen, dialogue)
        return tuple(Conversation(image, turns) for turns in parts if turns)

    def loss(self, policy: TokenScores, reference: TokenScores | None) -> dict[str, tuple[Any, Any]]:
        """The terms `chosen`, `correction` (times `weight`) and `kl` (times `kl`)."""
        terms = {}
        if self.use_chosen:
            terms["chosen"] = nll(policy, "chosen", self.normalise)
        total, count = nll(policy, "correction", self.normalise)
        terms["correction"] = (self.weight * total, count)
        if self.kl:
            from nsft_exp import losses

            total, count = losses.mean_kl(policy)
            terms["kl"] = (self.kl * total, count)
        return terms


def correction_turns(item: Item) -> tuple[Turn, ...]:
    """The corrective dialogue as turns with supervised answers; none where there is no correction."""
    if item.correction is None or item.correction.status != "ok":
        return ()
    return tuple(
        turn
        for exchange in item.correction.dialogue
        for turn in (Turn("prompt", exchange.question), Turn("correction", exchange.answer))
    )
