"""HA-DPO (Zhao et al. 2023): chosen is the model's own answer with its errors mended, rejected the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from nsft_exp.method.dpo import DPO
from nsft_exp.method.nsft_unlikelihood import locate
from nsft_exp.method.sft import wanted
from nsft_exp.records import FoundError, Item

SENTENCE = re.compile(r"[^.!?]+[.!?]*\s*")
WHOLE = ("existence", "count")
"""Categories whose errors are taken out whole: what should be said instead stands elsewhere in the answer."""


class HADPO(DPO):
    """DPO's loss of (mended answer, answer); the options are DPO's.

    Trains on the answers in which the critic found errors that could be mended; `left_out` counts the others.
    """

    consumes: ClassVar[Literal["preference", "correction"]] = "correction"

    def __init__(
        self,
        beta: float = 0.1,
        loss: str = "sigmoid",
        label_smoothing: float = 0.0,
        sft_weight: float | None = None,
        pairs: str = "all",
    ) -> None:
        super().__init__(beta, pairs, loss, label_smoothing, sft_weight=sft_weight)

    def kept(self, items: Sequence[Item]) -> list[Item]:
        """The items that could be mended, the mended answer as the chosen one."""
        found = []
        for item in wanted(items, "common"):
            mended = mended_answer(item)
            if item.preference and mended:
                found.append(replace(item, preference=replace(item.preference, chosen=mended)))
        return found

    def left_out(self, items: Sequence[Item]) -> dict[str, int]:
        """How many rejected answers are not trained on, by reason (equal answers are no pair)."""
        left = [item for item in wanted(items, "common") if not mended_answer(item)]
        criticised = sum(item.correction is not None and bool(item.correction.errors) for item in left)
        return {"no error was found": len(left) - criticised, "no error could be mended": criticised}


def mended_answer(item: Item) -> str | None:
    """Return the rejected answer without its errors; None where none could be mended or nothing is left."""
    if item.preference is None or item.correction is None:
        return None
    text = item.preference.rejected
    intact = len(text)
    placed = [(span, error) for error in item.correction.errors for span in locate(error, text)]
    for (start, end), error in sorted(placed, key=lambda pair: pair[0], reverse=True):
        if end <= intact:  # else it went with an error after it
            mended = mend(text, start, end, error)
            intact = _agreeing(text, mended)
            text = mended
    text = re.sub(r"\s+", " ", text).strip()
    return text if text and text != " ".join(item.preference.rejected.split()) else None


def _agreeing(a: str, b: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def mend(text: str, start: int, end: int, error: FoundError) -> str:
    """Return the text with what is right in place of characters [start, end).

    What should not be said at all goes with its sentence, or, in a text of one sentence, as an item of its
    list.
    """
    if error.right and error.category not in WHOLE:
        return text[:start] + error.right + text[end:]
    sentences = [match.span() for match in SENTENCE.finditer(text)]
    if len(sentences) > 1:
        first, last = next(span for span in sentences if span[0] <= start < span[1])
        return text[:first] + text[last:]
    before = re.sub(r"(?:,\s*|\s+and\s+|,\s*and\s+)$", "", text[:start])
    if before != text[:start]:
        return before + text[end:]
    return text[:start] + re.sub(r"^(?:,\s*and\s+|,\s*|\s+and\s+)", "", text[end:])
