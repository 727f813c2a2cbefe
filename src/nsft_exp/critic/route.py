"""One critic for short answers and another for long ones, as the nSFT paper treats its sources."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from nsft_exp.critic.template import is_short
from nsft_exp.interfaces import Critic
from nsft_exp.llm.asking import Call
from nsft_exp.llm.client import Client
from nsft_exp.records import Correction, Preference, Sample, UserError

ROUTES = ("short", "long")


class Route:
    """Gives every pair to the critic `short` or `long`, and notes which in `details["route"]`.

    A sample of a mixture goes where `sources` sends its part (the name before the first `/` of its id). Any
    other is short if its question ends with `instruction` (LLaVA's data ask for short answers so), or if both
    its answers are one line of at most `max_words` words. Raises UserError for an unknown route.
    """

    def __init__(
        self,
        short: Critic,
        long: Critic,
        sources: Mapping[str, str] | None = None,
        instruction: str = "",
        max_words: int = 4,
    ) -> None:
        for name, route in (sources or {}).items():
            if route not in ROUTES:
                raise UserError(f"critic.sources.{name}={route}: use one of {', '.join(ROUTES)}")
        self.critics = {"short": short, "long": long}
        self.sources, self.instruction, self.max_words = dict(sources or {}), instruction.strip(), max_words

    def corrections(self, pairs: Iterable[tuple[Sample, Preference]]) -> Iterator[Correction]:
        """Yield one Correction for every pair: those of the short route first, each route's in order."""
        pairs = list(pairs)
        for route in ROUTES:
            mine = [pair for pair in pairs if self.route(*pair) == route]
            for correction in self.critics[route].corrections(mine) if mine else ():
                yield replace(correction, details={**correction.details, "route": route})

    def calls(self, pairs: Iterable[tuple[Sample, Preference]]) -> Iterator[tuple[Client, Call]]:
        """Yield what the routes' critics would ask about these pairs, and who asks; nothing is sent."""
        for sample, preference in pairs:
            critic = self.critics[self.route(sample, preference)]
            if hasattr(critic, "calls"):
                yield from critic.calls([(sample, preference)])

    def route(self, sample: Sample, preference: Preference) -> str:
        """Return `short` or `long` for one pair."""
        part = sample.id.partition("/")[0]
        if "/" in sample.id and part in self.sources:
            return self.sources[part]
        asked = bool(self.instruction) and sample.question.rstrip().endswith(self.instruction)
        brief = all(is_short(text, self.max_words) for text in (preference.chosen, preference.rejected))
        return "short" if asked or brief else "long"

    def usage(self, records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the sums of the routes whose critics have any (`usage`), by the route's name."""
        rows = list(records)
        sums = {}
        for route, critic in self.critics.items():
            if hasattr(critic, "usage"):
                sums[route] = critic.usage([r for r in rows if r["details"].get("route") == route])
        return sums
