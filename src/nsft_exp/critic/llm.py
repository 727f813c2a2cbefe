"""An LLM as critic, behind any server of the OpenAI protocol: GPT-4 class models, or `vllm serve`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from nsft_exp.critic.codebook import Codebook
from nsft_exp.critic.dialogue import uncorrected
from nsft_exp.critic.prompt import VERSION, build_messages, parse_reply, reply_schema
from nsft_exp.critic.soundness import sound
from nsft_exp.keys import digest
from nsft_exp.llm.asking import Call
from nsft_exp.llm.budget import Budget, Spent
from nsft_exp.llm.client import Client
from nsft_exp.llm.envelope import Envelope, read_envelope
from nsft_exp.llm.ledger import Ledger
from nsft_exp.records import Correction, Preference, Sample, UserError

GUIDED = ("json_schema", "json_object", "none")
TEMPLATE_TOKENS = 64
"""What a chat template may add to the words of a prompt."""


class LLM:
    """Asks an LLM for the errors of each rejected answer and for a dialogue that corrects them (prompt.py).

    `model` is the server's name of the LLM. `guided` is how the server is asked for structured output:
    `json_schema` (bounded guided decoding), `json_object`, or `none`; whatever comes is validated. `extra`
    goes into the request's body as it is. `balance` keeps as many turns answered Yes as No. `cache` is the
    folder of the ledger that holds every reply; `budget` limits `requests`, `tokens` and `money` (by `prices`
    per million tokens) of everything ever asked of this model through that ledger. The remaining arguments
    say how the server is called (client.py); they do not change a reply.

    Constructing it sends nothing. Raises UserError for settings that are wrong.
    """

    def __init__(
        self,
        model: str,
        codebook: Codebook,
        cache: str,
        max_turns: int = 5,
        balance: bool = True,
        guided: str = "json_schema",
        max_tokens: int = 2048,
        temperature: float | None = 0.0,
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
        if guided not in GUIDED:
            raise UserError(f"critic.guided={guided}: use one of {', '.join(GUIDED)}")
        if max_turns < (2 if balance else 1):
            raise UserError(
                f"critic.max_turns={max_turns}: too few; 2 are the fewest that balance, 1 without"
            )
        if max_tokens < 1:
            raise UserError(f"critic.max_tokens={max_tokens}: must be at least 1")
        self.model, self.codebook, self.max_turns, self.balance = model, codebook, max_turns, balance
        self.guided, self.max_tokens, self.temperature, self.extra = (
            guided,
            max_tokens,
            temperature,
            extra or {},
        )
        self.budget = Budget(budget, prices)
        self.ledger = Ledger(cache)
        self.client = Client(
            self.ledger, self.budget, base_url, key_env, concurrency, attempts, backoff, timeout
        )

    def corrections(self, pairs: Iterable[tuple[Sample, Preference]]) -> Iterator[Correction]:
        """Yield one Correction for every pair whose reply came, in order.

        Then raises UserError if replies are missing (no server, no key, budget spent ...): one line. What
        came is kept, and asking again for the same pairs goes on from there.
        """
        pairs = list(pairs)
        different = [pair for pair in pairs if pair[1].status == "ok"]
        replies = self.client.answers(self.call(*pair) for pair in different)
        for sample, preference in pairs:
            if preference.status != "ok":
                yield uncorrected(sample.id, "no_error", f"no pair: {preference.status}")
            elif (row := next(replies)) is not None:
                yield self._read(sample, preference, row)
        if different:
            next(replies, None)  # past the last one: raises if any is missing

    def calls(self, pairs: Iterable[tuple[Sample, Preference]]) -> Iterator[tuple[Client, Call]]:
        """Yield what would be asked about these pairs, and who asks; nothing is sent."""
        return ((self.client, self.call(*pair)) for pair in pairs if pair[1].status == "ok")

    def call(self, sample: Sample, preference: Preference) -> Call:
        """Return the request for one pair; its key hashes all that is sent, so the cache goes by content."""
        messages = build_messages(
            sample.question, preference.chosen, preference.rejected, self.codebook, self.max_turns
        )
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{k: _encodable(v) for k, v in message.items()} for message in messages],
            "max_completion_tokens": self.max_tokens,
        }
        if self.temperature is not None:
            body["temperature"] = self.temperature
        form = self._form()
        body |= ({"response_format": form} if form else {}) | (
            {"extra_body": self.extra} if self.extra else {}
        )
        prompt = digest([VERSION, body["messages"][0]["content"], form])[:12]
        bound = Spent(1, len(json.dumps(body).encode()) + TEMPLATE_TOKENS, self.max_tokens)
        return Call(digest(body)[:24], body, prompt, bound)

    def usage(self, records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what the calls behind these correction records have cost (see Client.usage), their prompts,
        and what was counted in their dialogues.
        """
        details = [record["details"] for record in records]
        dropped = sum((Counter(d.get("dropped", {})) for d in details), Counter[str]())
        return {
            **self.client.usage(self.model, [d["request"] for d in details if "request" in d]),
            "prompts": sorted({d["prompt"] for d in details if "prompt" in d}),
            "answers": {kind: sum(d.get(kind, 0) for d in details) for kind in ("yes", "no", "open")},
            "dropped_turns": dict(sorted(dropped.items())),
        }

    def _form(self) -> dict[str, Any] | None:
        """The protocol's `response_format`."""
        if self.guided != "json_schema":
            return {"type": self.guided} if self.guided == "json_object" else None
        schema = reply_schema(self.codebook, self.max_turns)
        return {
            "type": "json_schema",
            "json_schema": {"name": "correction", "strict": True, "schema": schema},
        }

    def _read(self, sample: Sample, preference: Preference, row: Mapping[str, Any]) -> Correction:
        envelope = read_envelope(row["raw"])
        assert envelope is not None, f"{self.ledger.path}: request {row['key']}: not a reply"
        read = sound(
            self._parsed(sample.id, preference, envelope), sample.question, preference.chosen, self.balance
        )
        about = {"request": row["key"], "prompt": row["prompt"], "model": envelope.model}
        return replace(read, details={**read.details, **about})

    def _parsed(self, key: str, preference: Preference, envelope: Envelope) -> Correction:
        if envelope.text is None:
            return uncorrected(key, "empty", "the server sent no choice")
        refusal = envelope.refusal
        if envelope.finish == "content_filter":
            refusal = refusal or "stopped by the server's content filter"
        read = parse_reply(
            key, preference.rejected, envelope.text, self.codebook, self.max_turns, refusal=refusal
        )
        if envelope.finish == "length" and read.status == "unparseable":
            return uncorrected(key, "cut", f"the reply reached critic.max_tokens={self.max_tokens}")
        return read


def _encodable(text: str) -> str:
    """A text without lone surrogates, which cannot be sent."""
    return text.encode("utf-8", "replace").decode()
