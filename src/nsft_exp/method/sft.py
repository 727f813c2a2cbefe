"""Continual supervised fine-tuning on the chosen answers: L_sft(y_c)."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nsft_exp.interfaces import Needs
from nsft_exp.records import Conversation, Example, Item, Sample, Turn, UserError

if TYPE_CHECKING:
    from nsft_exp.losses import TokenScores


class SFT:
    """Trains on the chosen answer of every item (the ground truth, where there is no preference).

    `supervise_history` also supervises the earlier answers of the conversation, as LLaVA's own training does.
    `pairs=common` keeps the items whose chosen and rejected answers differ, so that every method sees the
    same ones. The loss is the mean over all supervised tokens of the global batch (`normalise=token`) or the
    mean of the examples' means (`example`).
    """

    consumes: ClassVar[Literal["sample"]] = "sample"
    needs = Needs()

    def __init__(
        self,
        supervise_history: bool = False,
        pairs: str = "all",
        normalise: str = "token",
        match: str = "none",
    ) -> None:
        check_choice("method.pairs", pairs, ("all", "common"))
        check_choice("method.normalise", normalise, ("token", "example"))
        check_choice("method.match", match, ("none", "correction"))
        self.match = match
        self.supervise_history = supervise_history
        self.pairs = pairs
        self.normalise = normalise

    def examples(self, items: Sequence[Item], rng: Random) -> list[Example]:
        """One example an item: its image, earlier exchanges and question, and the chosen answer."""
        kept = wanted(items, self.pairs)
        rounds = matched(kept) if self.match == "correction" else [kept]
        return [
            Example(
                item.sample.id + (f"#{number}" if number else ""),
                (conversation(item, "chosen", self.supervise_history),),
            )
            for number, part in enumerate(rounds)
            for item in part
        ]

    def loss(self, policy: TokenScores, reference: TokenScores | None) -> dict[str, tuple[Any, Any]]:
        """The one term `chosen`."""
        return {"chosen": nll(policy, "chosen", self.normalise)}


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError where a config value is none of the choices."""
    if value not in choices:
        raise UserError(f"{name}={value}: there is no such choice; take {' or '.join(choices)}")


def wanted(items: Sequence[Item], pairs: str) -> list[Item]:
    """All items, or (`common`) those that are a pair. Raises UserError where there is no pairing."""
    if pairs == "all":
        return list(items)
    if items and all(item.preference is None for item in items):
        raise UserError("method.pairs=common needs preferences; choose a pairing (pairing=gt)")
    return [item for item in items if item.preference and item.preference.status == "ok"]


def matched(items: Sequence[Item]) -> list[list[Item]]:
    """Return passes over the items, the last one in part, whose answers have the words of nSFT's supervision.

    Raises UserError where there are no corrections to match.
    """
    corrections = [item.correction for item in items if item.correction]
    if not corrections:
        raise UserError("method.match=correction needs corrections; choose a critic (variant=token_matched)")
    words = [len(answer(item, "chosen").split()) for item in items]
    left = sum(len(exchange.answer.split()) for c in corrections for exchange in c.dialogue)
    passes = [list(items)]
    while left > 0:
        part: list[Item] = []
        for item, count in zip(items, words, strict=True):
            if left <= 0:
                break
            part.append(item)
            left -= max(count, 1)
        passes.append(part)
    return passes


def opening(sample: Sample, supervise_history: bool = False) -> tuple[Turn, ...]:
    """The turns before a sample's answer: its earlier exchanges and its question."""
    role = "chosen" if supervise_history else "prompt"
    turns: list[Turn] = []
    for exchange in sample.history:
        turns += [Turn("prompt", exchange.question), Turn(role, exchange.answer)]
    return (*turns, Turn("prompt", sample.question))


def conversation(item: Item, role: str, supervise_history: bool = False) -> Conversation:
    """The item's conversation ending in its `chosen` or `rejected` answer."""
    return Conversation(
        item.sample.image, (*opening(item.sample, supervise_history), Turn(role, answer(item, role)))
    )


def answer(item: Item, role: str) -> str:
    """The item's `chosen` or `rejected` answer; the ground truth is chosen where there is no preference."""
    if item.preference is None:
        return item.sample.answer
    return item.preference.chosen if role == "chosen" else item.preference.rejected


def nll(scores: TokenScores, role: str, normalise: str) -> tuple[Any, Any]:
    """(sum, weight) of the negative log-likelihood of a role's tokens, per token or per example."""
    from nsft_exp import losses

    return losses.sft(scores, role) if normalise == "token" else losses.sft_per_example(scores, role)
