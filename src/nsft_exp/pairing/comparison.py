"""Asking a VLM which of two answers is better, and reading what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import yaml

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
    """One way to ask for a comparison.

    `form` is `criteria` (CRITERIA, answered by a number in brackets) or `lexicon` (the question of the toy
    base's own comparisons, `compare` in the file `lexicon`, answered by 1 or 2). `verdict=text` reads the
    greedy answer; `likelihood` takes the likelier of the two verdicts, so that there always is one, and its
    log-odds.
    """

    def __init__(self, form: str, lexicon: str | None, verdict: str) -> None:
        if form not in ("criteria", "lexicon"):
            raise UserError(f"pairing.form={form}: there is no such choice; take criteria or lexicon")
        if verdict not in ("text", "likelihood"):
            raise UserError(f"pairing.verdict={verdict}: there is no such choice; take text or likelihood")
        if form == "lexicon" and lexicon is None:
            raise UserError(
                "pairing.form=lexicon: there is no file; give pairing.lexicon=<file with `compare`>"
            )
        self.form, self.lexicon = form, lexicon
        self.by_likelihood = verdict == "likelihood"
        self._template = CRITERIA if form == "criteria" else None

    @property
    def template(self) -> str:
        """The text with the slots question, reference, first and second."""
        if self._template is None:
            words = yaml.safe_load(Path(str(self.lexicon)).read_text("utf-8"))
            if not isinstance(words.get("compare"), dict) or "question" not in words["compare"]:
                raise UserError(f"{self.lexicon}: has no compare.question; take pairing.form=criteria")
            self._template = str(words["compare"]["question"])
        return self._template

    def request(self, sample: Sample, name: str, first: str, second: str) -> Request:
        """Return the request that shows the image, the question, the ground truth and both answers.

        Earlier exchanges of the conversation are not shown: SIMA's questions have none.
        """
        slots = {"question": sample.question, "reference": sample.answer.strip()}
        text = self.template.format(first=first.strip(), second=second.strip(), **slots)
        verdicts = ("[1]", "[2]") if self.form == "criteria" else ("1", "2")
        return Request(
            name,
            sample.image,
            (Turn("prompt", text),),
            decoding=Decoding(max_new_tokens=1 if self.by_likelihood else 16),
            candidates=verdicts if self.by_likelihood else (),
        )

    def verdict(self, reply: Reply) -> Literal["1", "2", "tie", ""]:
        """Return the answer that a reply names (its place), `tie`, or nothing where it names none."""
        if self.by_likelihood:
            odds = self.odds(reply)
            return "tie" if odds == 0 else "1" if odds > 0 else "2"
        pattern = r"\[\s*(1|2|tie)\s*\]" if self.form == "criteria" else r"\b(1|2)\b"
        found = set(re.findall(pattern, reply.text.lower()))
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
