"""RLHF-V's dense DPO (Yu et al. 2024): the words in which two answers differ weigh more than the others."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from nsft_exp.method.dpo import DPO
from nsft_exp.records import Conversation, Item, UserError

Span = tuple[int, int]
WORD = re.compile(r"\w+|[^\w\s]")


class RLHFV(DPO):
    """DPO on weighted log-probabilities: sum_unchanged log p + `changed_weight` sum_changed log p.

    `reduction=mean` divides an answer's sum by its summed weight N = |unchanged| + changed_weight |changed|,
    the paper's normaliser; `sum`, the public code's setting, does not. Answers are compared word by word, and
    fewer than `min_match` words in common at a place do not interrupt a change. All other words, and the end
    of an answer, weigh 1. The other options are DPO's.
    """

    def __init__(
        self,
        beta: float = 0.1,
        changed_weight: float = 1.1,
        min_match: int = 3,
        reduction: str = "sum",
        sft_weight: float = 0.0,
        pairs: str = "all",
    ) -> None:
        super().__init__(beta=beta, pairs=pairs, reduction=reduction, sft_weight=sft_weight)
        if changed_weight <= 0:
            raise UserError(f"method.changed_weight={changed_weight}: must be positive")
        if min_match < 1:
            raise UserError(f"method.min_match={min_match}: must be at least 1 word")
        self.changed_weight = changed_weight
        self.min_match = min_match

    def conversations(self, item: Item) -> tuple[Conversation, ...]:
        """The pair's two sequences, their changed spans weighted."""
        pair = super().conversations(item)
        chosen, rejected = (c.turns[-1].text for c in pair)
        spans = changed_spans(chosen, rejected, self.min_match)
        return tuple(self._weighted(c, s) for c, s in zip(pair, spans, strict=True))

    def _weighted(self, conversation: Conversation, spans: Sequence[Span]) -> Conversation:
        *before, answer = conversation.turns
        weighted = tuple((start, end, self.changed_weight) for start, end in spans)
        return replace(conversation, turns=(*before, replace(answer, spans=weighted)))


def changed_spans(first: str, second: str, min_match: int = 3) -> tuple[list[Span], list[Span]]:
    """Return the character spans [start, end) of each text that the other has not, from word to word.

    Words are compared as they are written, punctuation marks by themselves. A run of fewer than `min_match`
    equal words counts as changed.
    """
    ours, theirs = list(WORD.finditer(first)), list(WORD.finditer(second))
    matcher = difflib.SequenceMatcher(None, [m[0] for m in ours], [m[0] for m in theirs], autojunk=False)
    kept = [block for block in matcher.get_matching_blocks() if block.size >= min_match]
    return (
        _characters(ours, _gaps([(b.a, b.a + b.size) for b in kept], len(ours))),
        _characters(theirs, _gaps([(b.b, b.b + b.size) for b in kept], len(theirs))),
    )


def _characters(words: Sequence[re.Match[str]], ranges: Iterator[Span]) -> list[Span]:
    return [(words[start].start(), words[end - 1].end()) for start, end in ranges]


def _gaps(kept: Sequence[Span], length: int) -> Iterator[Span]:
    """The non-empty ranges of 0..length between the kept ones."""
    position = 0
    for start, end in (*kept, (length, length)):
        if start > position:
            yield position, start
        position = end
