"""A reward model: the pairwise logistic loss of two answers' scores (LLaVA-RLHF, Sun et al. 2023)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nsft_exp.interfaces import Needs
from nsft_exp.method.dpo import each_pair
from nsft_exp.method.sft import answer, check_choice, opening
from nsft_exp.records import Conversation, Example, Item, Sample, Turn, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from nsft_exp.losses import TokenScores

log = logging.getLogger(__name__)

FACTS = "Facts about the image: {facts}\n{question}"
"""How facts stand before the question that was answered."""
ENOUGH = 32
"""Pairs from which on a collapse can be told from bad luck."""


class Reward:
    """Learns a score r of an answer, read at the last token, from pairs that differ.

    The loss of a pair is -log sigmoid(r_c - r_r) + `center` |r_c + r_r|, averaged over the pairs of the
    global batch. `criteria` is a question about the answer that follows it, and the score is read after it;
    null: at the answer's own end. `facts` (factual augmentation) puts what is known of the image before the
    question, where the policy never sees it: `answer`, the ground truth, or a field of the sample's `meta`.

    A model has collapsed where fewer than `min_accuracy` of the pairs are ranked right, or the mean distance
    of their two scores is below `min_spread`: judged on the last validation, or else on the last quarter of
    the steps. `when_collapsed` is then `stop` or `report`.
    """

    consumes: ClassVar[Literal["preference"]] = "preference"
    needs = Needs(values=True)

    def __init__(
        self,
        criteria: str | None = None,
        facts: str | None = None,
        center: float = 1e-3,
        min_accuracy: float = 0.55,
        min_spread: float = 0.01,
        when_collapsed: str = "stop",
    ) -> None:
        check_choice("reward.method.when_collapsed", when_collapsed, ("stop", "report"))
        if center < 0:
            raise UserError(f"reward.method.center={center}: must not be negative")
        self.criteria = criteria
        self.facts = facts
        self.center = center
        self.min_accuracy = min_accuracy
        self.min_spread = min_spread
        self.when_collapsed = when_collapsed

    # --- examples ----------------------------------------------------------------------------------

    def examples(self, items: Sequence[Item], rng: Random) -> list[Example]:
        """One example a pair: each answer in its conversation, judged at its end."""
        return [
            Example(
                item.sample.id,
                tuple(self.judged(item.sample, answer(item, r), r) for r in ("chosen", "rejected")),
            )
            for item in each_pair(items)
        ]

    def judged(self, sample: Sample, text: str, role: str) -> Conversation:
        """The conversation with this answer; its last turn has the role, at whose last token the score is."""
        turns = self._opening(sample)
        if self.criteria is None:
            return Conversation(sample.image, (*turns, Turn(role, text)))
        asked = Turn("prompt", text), Turn("prompt", self.criteria), Turn(role, "Score:")
        return Conversation(sample.image, (*turns, *asked))

    def _opening(self, sample: Sample) -> tuple[Turn, ...]:
        *before, last = opening(sample)
        if self.facts is None:
            return (*before, last)
        known = sample.answer if self.facts == "answer" else sample.meta.get(self.facts)
        if not known:
            raise UserError(
                f"reward.method.facts={self.facts}: sample {sample.id} has no such facts; it has "
                f"{', '.join(['answer', *sample.meta])}"
            )
        facts = " ".join(map(str, known)) if isinstance(known, (list, tuple)) else str(known)
        return (*before, Turn("prompt", FACTS.format(facts=facts, question=last.text)))

    # --- loss --------------------------------------------------------------------------------------

    def loss(self, policy: TokenScores, reference: TokenScores | None) -> dict[str, tuple[Any, Any]]:
        """The terms `reward` and `center`, per pair."""
        from nsft_exp import losses

        chosen_E, rejected_E = (losses.last_values(policy, role) for role in ("chosen", "rejected"))
        count = chosen_E.new_tensor(float(len(chosen_E)))
        terms = {"reward": (pairwise_logistic(chosen_E, rejected_E).sum(), count)}
        if self.center:
            terms["center"] = (self.center * (chosen_E + rejected_E).abs().sum(), count)
        return terms

    # --- what came of it ---------------------------------------------------------------------------

    def check(self, rows: Sequence[dict[str, Any]]) -> None:
        """Raise UserError (or log, `when_collapsed=report`) where these metrics are of a collapsed model."""
        pairs, found = last_scores(rows)
        if pairs < ENOUGH:
            log.info("the reward model is not judged: %d pairs are too few", pairs)
            return
        problem = None
        if not found["spread"] >= self.min_spread:
            problem = f"the two answers' scores lie {found['spread']:.2g} apart (reward.method.min_spread)"
        elif not found["accuracy"] >= self.min_accuracy:
            problem = f"{found['accuracy']:.0%} of the pairs are ranked right (reward.method.min_accuracy)"
        if problem is None:
            return
        message = f"the reward model has collapsed: of {pairs} pairs, {problem}"
        if self.when_collapsed == "stop":
            raise UserError(f"{message}; give it more pairs or steps, or reward.method.when_collapsed=report")
        log.warning(message)


def pairwise_logistic(chosen_E: Tensor, rejected_E: Tensor) -> Tensor:
    """Return loss_E = -log sigmoid(r_c - r_r) (Bradley and Terry 1952)."""
    import torch.nn.functional as F

    return -F.logsigmoid(chosen_E - rejected_E)


def last_scores(rows: Sequence[dict[str, Any]]) -> tuple[int, dict[str, float]]:
    """How many pairs the end of a training judged, and their mean `accuracy` and `spread`.

    The last validation where it had enough pairs, else the last quarter of the training steps.
    """
    validated = [row for row in rows if row.get("validation/pairs", 0) >= ENOUGH]
    if validated:
        last = validated[-1]
        return int(last["validation/pairs"]), {k: last[f"validation/{k}"] for k in ("accuracy", "spread")}
    trained = [row for row in rows if "accuracy" in row]
    late = trained[-max(1, len(trained) // 4) :] if trained else []
    pairs = sum(row["examples"] for row in late)
    means = {
        name: sum(row[name] * row["examples"] for row in late) / max(1, pairs)
        for name in ("accuracy", "spread")
    }
    return pairs, means
