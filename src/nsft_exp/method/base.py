"""The base VLM itself: nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nsft_exp.interfaces import Needs
from nsft_exp.records import Example, Item

if TYPE_CHECKING:
    from nsft_exp.losses import TokenScores


class Base:
    """The row that every method starts from."""

    consumes: ClassVar[Literal["nothing"]] = "nothing"
    needs = Needs()

    def examples(self, items: Sequence[Item], rng: Random) -> list[Example]:
        """No examples."""
        return []

    def loss(self, policy: TokenScores, reference: TokenScores | None) -> dict[str, tuple[Any, Any]]:
        """No terms."""
        return {}
