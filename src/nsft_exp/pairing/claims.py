"""What an answer claims, asked of the VLM itself as questions with yes or no."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nsft_exp.records import Decoding, Reply, Request, Sample, Turn, UserError

ASK = 'Does this image show the following? "{text}" Answer yes or no.'


class Claims:
    """The yes/no questions that a text's claims are asked by.

    Without a `lexicon` the one claim is the text itself. With one (the toy world's words) it is each object
    that the text names, with its color, in the wording of the lexicon's questions; a text may then have none.
    """

    def __init__(self, lexicon: str | None = None) -> None:
        self.lexicon = lexicon
        self._words: dict[str, Any] = {}

    def questions(self, text: str) -> list[str]:
        """Return a question for every claim of the text, in its order."""
        if self.lexicon is None:
            return [ASK.format(text=text)]
        if not self._words:
            self._words = yaml.safe_load(Path(self.lexicon).read_text("utf-8"))
        words = self._words
        sizes, colors, nouns = ("|".join(words[name]) for name in ("sizes", "colors", "categories"))
        things = re.findall(rf"\b[Aa]n? (?:(?:{sizes}) )?((?:(?:{colors}) )?(?:{nouns}))\b", text)
        wording = words["questions"]["existence"]["test"][0] + words["short"]
        return [wording.format(a=("an " if thing[0] in "aeiou" else "a ") + thing) for thing in things]


def yes_or_no(name: str, sample: Sample, text: str) -> Request:
    """Return the request for the log-probabilities of Yes and No after a question about the image."""
    decoding = Decoding(max_new_tokens=1)
    return Request(name, sample.image, (Turn("prompt", text),), decoding=decoding, candidates=("Yes", "No"))


def odds(reply: Reply) -> float:
    """Return log p(Yes) - log p(No), in nats. Raises UserError for an engine that tells no likelihoods."""
    if reply.candidate_logps is None:
        raise UserError("pairing: this engine tells no likelihoods of Yes and No; take vlm.engine=hf")
    yes, no = reply.candidate_logps
    return yes - no


class ClaimByClaim:
    """A judge of two answers that asks about their claims one at a time: for a VLM that cannot compare texts.

    The better answer is the one of whose claims the VLM denies fewer; sentences are claims where there is no
    lexicon. Neither the ground truth nor an answer's place plays a part.
    """

    def __init__(self, lexicon: str | None = None) -> None:
        self.claims = Claims(lexicon)

    def requests(self, sample: Sample, greedy: str, sampled: str) -> list[Request]:
        """Return a question for every claim that one answer makes and the other does not."""
        asked = enumerate(self._own(greedy, sampled) + self._own(sampled, greedy))
        return [yes_or_no(f"{sample.id}|judge{number}", sample, text) for number, text in asked]

    def decide(self, greedy: str, sampled: str, replies: Sequence[Reply]) -> tuple[str, dict[str, Any]]:
        """Return `greedy`, `sampled` or `tie`, and how many claims of both are `denied`."""
        said = [odds(reply) < 0 for reply in replies]
        number = len(self._own(greedy, sampled))
        denied = {"greedy": sum(said[:number]), "sampled": sum(said[number:])}
        better = min(denied, key=lambda name: denied[name])
        return "tie" if denied["greedy"] == denied["sampled"] else better, {"denied": denied}

    def _own(self, text: str, other: str) -> list[str]:
        theirs = set(self._questions(other))
        return [question for question in dict.fromkeys(self._questions(text)) if question not in theirs]

    def _questions(self, text: str) -> list[str]:
        parts = re.split(r"(?<=[.!?])\s+", text.strip())
        return [question for part in parts if part for question in self.claims.questions(part)]
