"""Ground truth against own answer: chosen is the data's answer, rejected what the VLM says (GT-DPO)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from nsft_exp.interfaces import LoadedVLM
from nsft_exp.records import Decoding, Preference, Reply, Request, Sample, Turn, UserError


class GroundTruth:
    """Chosen = the sample's answer, rejected = the base VLM's answer to the same conversation.

    `max_new_tokens`, `temperature`, `top_p` and `seed` say how the VLM answers; temperature 0 is greedy.
    """

    needs_vlm: ClassVar[bool] = True

    def __init__(
        self, max_new_tokens: int = 512, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> None:
        self.decoding = Decoding(max_new_tokens, temperature, top_p, seed=seed)

    def pairs(self, samples: Iterable[Sample], vlm: LoadedVLM | None) -> Iterator[Preference]:
        """Yield one Preference for every sample, in the order in which the VLM answers.

        Status `ok`; `equal`: the two answers are the same text; `empty`: the VLM said nothing; `refused` or
        `no_choice`: its server gave no answer. `details` tell how the rejected answer ended (`finish`: `stop`
        or `length`) and its number of tokens (None: not told). Raises UserError when an answer is missing.
        """
        if vlm is None:
            raise UserError("pairing=gt: there is no VLM to answer; choose one with vlm=...")
        waiting = {sample.id: sample for sample in samples}
        requests = [question(sample, self.decoding) for sample in waiting.values()]
        for key, replies in vlm.generate(requests):
            yield pair(waiting.pop(key), replies[0])
        if waiting:
            raise UserError(f"pairing=gt: record {next(iter(waiting))}: the VLM gave no answer; run it again")


def question(sample: Sample, decoding: Decoding) -> Request:
    """Return the sample's question to a VLM, the earlier exchanges of its conversation before it."""
    texts = [text for exchange in sample.history for text in (exchange.question, exchange.answer)]
    turns = tuple(Turn("prompt", text) for text in (*texts, sample.question))
    return Request(sample.id, sample.image, turns, decoding=decoding)


def pair(sample: Sample, reply: Reply) -> Preference:
    """Return the Preference of a sample and the VLM's reply to it; texts are compared stripped."""
    chosen, rejected = sample.answer.strip(), reply.text.strip()
    status = "empty" if not rejected else "equal" if chosen == rejected else "ok"
    details = {"finish": reply.finish, "tokens": len(reply.ids) or None, **calls(reply)}
    return Preference(sample.id, status if reply.given else reply.finish, chosen, rejected, details=details)


def calls(*replies: Reply) -> dict[str, list[str]]:
    """Return what a record's details tell of the requests to a server behind it; empty without one."""
    keys = [reply.request for reply in replies if reply.request]
    return {"requests": keys} if keys else {}
