"""Direct preference optimisation (Rafailov et al. 2023) on chosen and rejected answers."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nsft_exp.interfaces import Needs
from nsft_exp.method.sft import check_choice, conversation, wanted
from nsft_exp.records import Example, Item, UserError

if TYPE_CHECKING:
    from nsft_exp.losses import TokenScores


class DPO:
    """-log sigmoid(beta m) with summed log-probabilities, averaged over the pairs of the global batch.

    Trains on the items whose chosen and rejected answers differ; `pairs` says the same for every method, and
    both of its values mean these items here.
    """

    consumes: ClassVar[Literal["preference"]] = "preference"
    needs = Needs(reference="logp")

    def __init__(self, beta: float = 0.1, pairs: str = "all") -> None:
        check_choice("method.pairs", pairs, ("all", "common"))
        if beta <= 0:
            raise UserError(f"method.beta={beta}: must be positive")
        self.beta = beta
        self.pairs = pairs

    def examples(self, items: Sequence[Item], rng: Random) -> list[Example]:
        """One example a pair: the conversation that ends in the chosen answer, and that with the rejected."""
        return [
            Example(item.sample.id, (conversation(item, "chosen"), conversation(item, "rejected")))
            for item in wanted(items, "common")
        ]

    def loss(self, policy: TokenScores, reference: TokenScores | None) -> dict[str, tuple[Any, Any]]:
        """The one term `dpo`, per pair."""
        from nsft_exp import losses

        assert reference is not None
        loss_E = losses.dpo_sigmoid(losses.margins(policy, reference), self.beta)
        return {"dpo": (loss_E.sum(), loss_E.new_tensor(float(len(loss_E))))}
