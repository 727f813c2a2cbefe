"""Texts with errors that an LLM writes into them, behind any server of the OpenAI protocol."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from nsft_exp.keys import digest
from nsft_exp.llm.asking import Call
from nsft_exp.llm.budget import Budget, Spent
from nsft_exp.llm.client import Client
from nsft_exp.llm.envelope import clean, read_envelope
from nsft_exp.llm.ledger import Ledger
from nsft_exp.records import Sample

TEMPLATE_TOKENS = 64
"""What a chat template may add to the words of a prompt."""

INSTRUCTION = """\
You are given a question about an image and the right answer. Rewrite the answer so that it contains errors
that a careless observer would make, and is otherwise the same in style, length and order:
- add or exchange an object, for one that often occurs together with those that are named;
- give an object a wrong color, number, size or other attribute;
- change how objects are placed or what they do to one another.
Make each kind of error once where the answer allows it. Reply with the rewritten answer alone."""
"""What POVID and BPO ask an LLM for (objects, attributes, relations); the wording is ours."""


class LLMEditor:
    """Asks an LLM for each answer with errors in it; it sees the texts, not the image.

    `model` is the server's name of the LLM; `extra` goes into the request's body as it is; `cache` is the
    folder of the ledger that holds every reply. `budget` and `prices`, and how the server is called, are as
    for `critic=llm`. Constructing it sends nothing.
    """

    def __init__(
        self,
        model: str,
        cache: str,
        max_tokens: int = 1024,
        temperature: float | None = 0.8,
        top_p: float | None = 0.95,
        extra: Mapping[str, Any] | None = None,
        base_url: str | None = None,
        key_env: str | None = "OPENAI_API_KEY",
        concurrency: int = 16,
        attempts: int = 8,
        backoff: float = 1.0,
        timeout: float = 120.0,
        budget: Mapping[str, float | None] | None = None,
        prices: Mapping[str, float] | None = None,
    ) -> None:
        where = "pairing.editor"
        self.model, self.max_tokens, self.extra = model, max_tokens, extra
        self.sampling = {"temperature": temperature, "top_p": top_p}
        ledger = Ledger(cache, f"{where}.cache")
        limits = Budget(budget, prices, where)
        self.client = Client(
            ledger, limits, base_url, key_env, concurrency, attempts, backoff, timeout, where
        )

    def edits(self, samples: Sequence[Sample]) -> Iterator[tuple[str, str | None]]:
        """Yield (id, text) for every sample whose reply came; None: it was refused, cut or empty.

        Then raises UserError if replies are missing. What came is kept; the same command goes on from there.
        """
        replies = self.client.answers(self.call(sample) for sample in samples)
        for sample in samples:
            if (row := next(replies)) is not None:
                yield sample.id, _text(row["raw"])
        next(replies, None)  # past the last one: raises if any is missing

    def calls(self, samples: Iterable[Sample]) -> Iterator[tuple[Client, Call]]:
        """Yield what would be asked about these samples, and who asks; nothing is sent."""
        return ((self.client, self.call(sample)) for sample in samples)

    def call(self, sample: Sample) -> Call:
        """Return the request for one sample; its key hashes all that is sent."""
        asked = json.dumps({"question": sample.question, "answer": sample.answer.strip()}, ensure_ascii=False)
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": asked}]
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        body |= {name: value for name, value in self.sampling.items() if value is not None}
        body |= {"max_completion_tokens": self.max_tokens}
        body |= {"extra_body": dict(self.extra)} if self.extra else {}
        bound = Spent(1, len(json.dumps(body).encode()) + TEMPLATE_TOKENS, self.max_tokens)
        return Call(digest(body)[:24], body, digest(INSTRUCTION)[:12], bound)


def _text(raw: str) -> str | None:
    envelope = read_envelope(raw)
    if envelope is None or envelope.refusal or envelope.finish in ("length", "content_filter"):
        return None
    return clean(envelope.text or "") or None
