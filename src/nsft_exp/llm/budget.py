"""What calls of an LLM may cost, and what they have cost: pure arithmetic on counts of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nsft_exp.records import UserError

LIMITS = ("requests", "tokens", "money")
PER_MILLION = 1_000_000


@dataclass(frozen=True)
class Spent:
    """Requests and tokens that are used up; a call whose usage is not known counts at its bound."""

    requests: int = 0
    input: int = 0
    output: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.requests + other.requests, self.input + other.input, self.output + other.output)

    @property
    def tokens(self) -> int:
        """Tokens of prompts and replies together."""
        return self.input + self.output


class Budget:
    """Hard limits: a call starts only if, at its bound, it still fits.

    `limits` holds `requests`, `tokens` (of prompts and replies) and `money`, each a number or None for no
    limit; `prices` holds `input` and `output` per million tokens in the unit of `money`, or is None where
    they are not known. `where` is the config's node, for messages. Raises UserError for unknown names,
    negative numbers, and a limit of money without prices.
    """

    def __init__(
        self,
        limits: Mapping[str, float | None] | None = None,
        prices: Mapping[str, float] | None = None,
        where: str = "critic",
    ) -> None:
        self.where = where
        self.limits = _checked(f"{where}.budget", limits or {}, LIMITS)
        self.prices = _checked(f"{where}.prices", prices or {}, ("input", "output"))
        if self.prices and set(self.prices) != {"input", "output"}:
            raise UserError(f"{where}.prices: give both input and output, per million tokens")
        if "money" in self.limits and not self.prices:
            raise UserError(
                f"{where}.budget.money: needs {where}.prices={{input: ..., output: ...}} per million tokens"
            )

    def refusal(self, spent: Spent, call: Spent) -> str:
        """Why one more call, which costs at most `call`, may not start; empty if it may."""
        after = spent + call
        money, money_after = self.cost(spent) or 0.0, self.cost(after) or 0.0
        if after.requests > self.limits.get("requests", after.requests):
            return self._line("requests", f"{spent.requests}")
        if after.tokens > self.limits.get("tokens", after.tokens):
            return self._line("tokens", f"{spent.tokens} (the next call may use {call.tokens})")
        if money_after > self.limits.get("money", money_after):
            return self._line("money", f"{money:.4g} (the next call may cost {money_after - money:.2g})")
        return ""

    def cost(self, spent: Spent) -> float | None:
        """The price of what was spent; None where no prices are given."""
        if not self.prices:
            return None
        return (spent.input * self.prices["input"] + spent.output * self.prices["output"]) / PER_MILLION

    def _line(self, name: str, used: str) -> str:
        spent = f"the budget is spent: {name} {used} of {self.limits[name]:g}"
        return f"{spent}; raise {self.where}.budget.{name}"


def _checked(where: str, values: Mapping[str, float | None], names: tuple[str, ...]) -> dict[str, float]:
    """The numbers that are given. Raises UserError naming the key that is wrong."""
    for name, value in values.items():
        if name not in names:
            raise UserError(f"{where}.{name}: there is no such key; there are {', '.join(names)}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and value >= 0):
            raise UserError(f"{where}.{name}={value}: must be a number of at least 0, or null")
    return {name: value for name, value in values.items() if value is not None}
