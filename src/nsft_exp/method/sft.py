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
    same ones. `match=epochs` repeats items until they have as many supervised words as nSFT with its
    corrections; `match=samples` takes further samples for that, from the last `spare` items (the plan has the
    source draw so many more). The loss is the mean over all supervised tokens of the global batch
    (`normalise=token`) or the mean of the examples' means (`example`).
    """

    consumes: ClassVar[Literal["sample"]] = "sample"
    needs = Needs()

    def __init__(
        self,
        supervise_history: bool = False,
        pairs: str = "all",
        normalise: str = "token",
        match: str = "none",
        spare: int = 0,
    ) -> None:
        check_choice("method.pairs", pairs, ("all", "common"))
        check_choice("method.normalise", normalise, ("token", "example"))
        check_choice("method.match", match, ("none", "epochs", "samples"))
        if (spare > 0) != (match == "samples"):
            raise UserError(
                f"method.spare={spare}: the further samples of method.match=samples, and only of it"
            )
        self.match = match
        self.spare = spare
        self.supervise_history = supervise_history
        self.pairs = pairs
        self.normalise = normalise

    def examples(self, items: Sequence[Item], rng: Random) -> list[Example]:
        """One example an item: its image, earlier exchanges and question, and the chosen answer."""
        rounds = [wanted(items, self.pairs)]
        if self.match != "none":
            own, spare = items[: len(items) - self.spare], items[len(items) - self.spare :]
            rounds = matched(wanted(own, self.pairs), wanted(spare, self.pairs))
        return [
            Example(
                item.sample.id + (f"#{number}" if number else ""),
                (conversation(item, "chosen", self.supervise_history),),
            )
            for number, part in enumerate(rounds)
            for item in part
        ]

    def left_out(self, items: Sequence[Item]) -> dict[str, int]:
        """How many of the spare samples were not needed."""
        unused = len(wanted(items, self.pairs)) - len(self.examples(items, Random(0)))
        return {"spare samples": unused} if self.match == "samples" else {}

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


def matched(items: Sequence[Item], spare: Sequence[Item] = ()) -> list[list[Item]]:
    """Return lists of items whose chosen answers have the words of nSFT's supervision on `items`.

    The items come first; then as many of the spare ones as it takes or, without any, the items again and
    again, the last time in part. Raises UserError where there are no corrections to match, or too few spare
    items.
    """
    corrections = [item.correction for item in items if item.correction]
    if not corrections:
        raise UserError("method.match needs corrections; choose a critic (variant=token_matched)")
    left = sum(len(exchange.answer.split()) for c in corrections for exchange in c.dialogue)
    passes = [list(items)]
    while left > 0:
        part, left = _worth(spare or items, left)
        passes.append(part)
        if spare and left > 0:
            raise UserError(
                f"method.spare={len(spare)}: further samples are {left} words short of the corrections; "
                "take more"
            )
    return passes


def _worth(items: Sequence[Item], words: int) -> tuple[list[Item], int]:
    """Return the first items whose chosen answers have so many words, and how many words are then left."""
    part: list[Item] = []
    for item in items:
        if words <= 0:
            break
        part.append(item)
        words -= max(1, len(answer(item, "chosen").split()))
    return part, words


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
