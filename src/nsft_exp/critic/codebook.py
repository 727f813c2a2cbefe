"""The vision error codebook Q: the kinds of error that a critic may name (the nSFT paper)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nsft_exp.records import UserError

LEVELS = ("instance", "image", "text")
UNCATEGORISED = "uncategorised"
"""The category of every error that is found without a codebook."""


@dataclass(frozen=True)
class Category:
    """One kind of visual error, in words that an LLM critic is given."""

    name: str
    level: str
    """`instance` (about one kind of object), `image` (about the whole picture) or `text` (writing in it)."""
    meaning: str
    example: str


class Codebook:
    """An ordered list of error categories; the order is the order of importance.

    `categories` maps a name to `{level, meaning, example}`; one that is null is left out. Without categories
    the critic still sees both answers, but names no kinds of error: the paper's row "without VEC". Raises
    UserError for a category whose fields are wrong.
    """

    def __init__(self, categories: Mapping[str, Mapping[str, str] | None] | None = None) -> None:
        given = (categories or {}).items()
        self.categories = tuple(_category(name, fields) for name, fields in given if fields is not None)

    def __bool__(self) -> bool:
        return bool(self.categories)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the categories in order."""
        return tuple(category.name for category in self.categories)


def _category(name: str, fields: Mapping[str, str]) -> Category:
    if set(fields) != {"level", "meaning", "example"}:
        raise UserError(f"codebook: category {name}: has {sorted(fields)}; give level, meaning and example")
    if fields["level"] not in LEVELS:
        raise UserError(
            f"codebook: category {name}: level {fields['level']!r}; use one of {', '.join(LEVELS)}"
        )
    return Category(name, fields["level"], fields["meaning"], fields["example"])
