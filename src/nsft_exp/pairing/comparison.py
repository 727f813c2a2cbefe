"""Asking a VLM which of two answers is better, and reading what it says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from nsft_exp.records import Decoding, Reply, Request, Sample, Turn, UserError

CRITERIA = """\
Two answers to a question about the image are to be compared with the correct answer. Judge by three criteria:
1. Objects: does the answer name objects that are there, and none that are not?
2. Relations: does it place the objects and say what they do as they are?
3. Attributes: are their colors, numbers, sizes and materials right?
Length and style do not count. The better answer has fewer errors against the image and the correct answer.

Example. Question: What is on the desk? Correct answer: A laptop and a white mug.
Answer 1: A laptop, a black mug and a lamp. Answer 2: A laptop beside a white mug.
Better answer: [2] (Answer 1 adds a lamp and gives the mug a wrong color.)
Example. Question: What is the man doing? Correct answer: He is sitting on a bench and reading a newspaper.
Answer 1: The man reads a newspaper on a bench. Answer 2: The man stands behind a bench and reads a book.
Better answer: [1] (Answer 2 has a wrong relation to the bench and a wrong object.)

Question: {question}
Correct answer: {reference}
Answer 1: {first}
Answer 2: {second}
Write [1] or [2] for the better answer, or [tie] where neither is better. Better answer:"""
"""SIMA's three criteria with two worked examples; the wording is ours."""


class Comparison:
    """A judge that is shown the image, the question, the ground truth and both answers (CRITERIA).

    It is asked in both orders, the sampled answer first and then second (`orders=1`: first alone, as SIMA's
    public code has it always), and both must name the same answer. `verdict=text` reads the greedy reply;
    `likelihood` adds the log-odds of both orders instead, so that a preference for a place cancels out.
    """

    def __init__(self, verdict: str = "text", orders: int = 2) -> None:
        if verdict not in ("text", "likelihood"):
            raise UserError(f"pairing.verdict={verdict}: there is no such choice; take text or likelihood")
        if orders not in (1, 2):
            raise UserError(f"pairing.orders={orders}: take 2 (both) or 1 (the sampled answer first)")
        self.by_likelihood = verdict == "likelihood"
        self.orders = orders

    def requests(self, sample: Sample, greedy: str, sampled: str) -> list[Request]:
        """Return a request for every order.

        Earlier exchanges of the conversation are not shown: SIMA's questions have none.
        """
        both = [(sampled, greedy), (greedy, sampled)][: self.orders]
        return [self._request(sample, f"{sample.id}|judge{n}", *texts) for n, texts in enumerate(both)]

    def _request(self, sample: Sample, name: str, first: str, second: str) -> Request:
        slots = {"question": sample.question, "reference": sample.answer.strip()}
        text = CRITERIA.format(first=first.strip(), second=second.strip(), **slots)
        return Request(
            name,
            sample.image,
            (Turn("prompt", text),),
            decoding=Decoding(max_new_tokens=1 if self.by_likelihood else 16),
            candidates=("[1]", "[2]") if self.by_likelihood else (),
        )

    def decide(self, greedy: str, sampled: str, replies: Sequence[Reply]) -> tuple[str, dict[str, Any]]:
        """Return `greedy`, `sampled` or why there is no pair, and the `verdicts` by place.

        With `verdict=likelihood` beside them the `odds` that the sampled answer is better, in nats.
        """
        said = [self.verdict(reply) for reply in replies]
        if not self.by_likelihood:
            return agreed([winner(verdict, order) for order, verdict in enumerate(said)]), {"verdicts": said}
        odds = sum((1 if order == 0 else -1) * self.odds(reply) for order, reply in enumerate(replies))
        found = "tie" if odds == 0 else "sampled" if odds > 0 else "greedy"
        return found, {"verdicts": said, "odds": round(odds, 4)}

    def verdict(self, reply: Reply) -> Literal["1", "2", "tie", ""]:
        """Return the answer that a reply names (its place), `tie`, or nothing where it names none."""
        if self.by_likelihood:
            odds = self.odds(reply)
            return "tie" if odds == 0 else "1" if odds > 0 else "2"
        found = set(re.findall(r"\[\s*(1|2|tie)\s*\]", reply.text.lower()))
        if found == {"1"}:
            return "1"
        if found == {"2"}:
            return "2"
        return "tie" if found else ""

    def odds(self, reply: Reply) -> float:
        """Return log p(answer 1 is better) - log p(answer 2 is better), in nats.

        Raises UserError for a reply without log-probabilities: not every engine gives them.
        """
        if reply.candidate_logps is None:
            raise UserError(
                "pairing.verdict=likelihood: this engine tells no likelihoods; take vlm.engine=hf or "
                "pairing.verdict=text"
            )
        first, second = reply.candidate_logps
        return first - second


def winner(verdict: str, order: int) -> str:
    """Return `greedy` or `sampled` (order 0 shows the sampled answer first), or why a verdict names none."""
    if verdict in ("1", "2"):
        return "sampled" if (verdict == "1") == (order == 0) else "greedy"
    return verdict or "unparseable"


def agreed(won: Sequence[str]) -> str:
    """Return what the orders name (`greedy` or `sampled`), or why there is no pair."""
    for reason in ("unparseable", "tie"):
        if reason in won:
            return reason
    return won[0] if len(set(won)) == 1 else "disagree"
