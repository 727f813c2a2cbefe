"""Calls of LLMs that a sweep still has to make: which are known, how many more there can be, what they use.

A request is known by its content's hash and the ledger that its reply goes to: what two stages both ask is
asked once, and what has a reply is not asked again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from nsft_exp.llm.asking import Call
from nsft_exp.llm.budget import Spent
from nsft_exp.llm.client import Client
from nsft_exp.llm.ledger import Calls


@dataclass
class Asking:
    """What one kind of asker (critic, editor or judge) is to ask one model."""

    who: str
    model: str
    client: Client
    known: dict[tuple[str, str], Calls] = field(default_factory=dict)
    """Requests by ledger and key, with what came of them so far."""
    unknown: int = 0
    """Requests there can be beside them: about pairs and answers that do not exist yet."""
    expected: float | None = 0.0
    """How many of these there will be, by their share among the known ones; None where none is known."""

    def add(self, client: Client, call: Call, needed: bool) -> None:
        """Note a known request; `needed`: there is no record yet that was made from its reply."""
        ledger = client.ledger
        ledger.refresh()
        calls = ledger.calls.get(call.key, Calls())
        if needed or calls.replies:
            self.known[str(ledger.path), call.key] = calls

    def add_unknown(self, number: int, share: float | None) -> None:
        """Note requests that depend on what does not exist yet; `share` of them are expected to come."""
        self.unknown += number
        if number:
            self.expected = None if share is None or self.expected is None else self.expected + number * share

    @property
    def left(self) -> int:
        """Known requests that have no reply."""
        return sum(not calls.replies for calls in self.known.values())

    @property
    def left_expected(self) -> float | None:
        """Requests that are expected to be sent; None where that is not known."""
        return None if self.expected is None else self.left + self.expected

    @property
    def per_call(self) -> tuple[float, float] | None:
        """Mean tokens (input, output) of the replies that told them; None without any."""
        told = [c for c in self.known.values() if c.replies > c.silent]
        number = sum(c.replies - c.silent for c in told)
        sums = [sum(c.usage.input for c in told), sum(c.usage.output for c in told)]
        return (sums[0] / number, sums[1] / number) if number else None

    @property
    def tokens(self) -> tuple[int, int] | None:
        """Tokens (input, output) still to be used; None where they are not known."""
        number, each = self.left_expected, self.per_call
        if number == 0:
            return 0, 0
        return None if number is None or each is None else (round(number * each[0]), round(number * each[1]))

    @property
    def money(self) -> float | None:
        """What these tokens cost; None where they, or the prices, are not known."""
        return None if self.tokens is None else self.client.budget.cost(Spent(0, *self.tokens))


class Askings:
    """All askers of a sweep."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, str, str], Asking] = {}

    def __iter__(self) -> Iterator[Asking]:
        return iter(self._all.values())

    def of(self, who: str, client: Client, call: Call) -> Asking:
        """The entry of whoever would send this call: one for each asker, model and server."""
        model = str(call.body["model"])
        return self._all.setdefault((who, model, client.base_url), Asking(who, model, client))

    def add(self, who: str, calls: Iterable[tuple[Client, Call]], needed: bool = True) -> None:
        """Note known requests."""
        for client, call in calls:
            self.of(who, client, call).add(client, call, needed)
