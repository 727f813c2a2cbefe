"""Greedy answer against sampled answer, the model itself telling which is better (SIMA, Wang et al. 2024)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar

from nsft_exp.interfaces import LoadedVLM
from nsft_exp.pairing.comparison import Comparison, winner
from nsft_exp.pairing.gt import calls, question
from nsft_exp.pairing.view import answered_twice, preference
from nsft_exp.records import Decoding, Preference, Reply, Request, Sample, UserError

CHUNK = 256
"""Samples that are answered, and then judged, together."""
MIN_VERDICTS = 20
"""Fewer say nothing about which side a critic prefers."""


class SelfCritic:
    """Chosen and rejected are the VLM's greedy and its sampled answer, in the order that it prefers itself.

    The VLM is shown the image, the question, the ground truth and both answers (`form`, see Comparison) and
    judges them in both orders (`orders=1`: the sampled answer first, as SIMA's public code has it always). A
    pair is kept where both orders name the same answer. With `verdict=likelihood` the two orders' log-odds
    are added instead, so that a preference for a place cancels out: a weak critic's signal is left.

    `check` stops a cell with a share of pairs below `min_yield`, and one whose verdicts name the same side
    (first or second, whatever stands there) in more than `max_one_side` of the cases.
    """

    needs_vlm: ClassVar[bool] = True

    def __init__(
        self,
        max_new_tokens: int = 1024,
        temperature: float = 0.8,
        top_p: float = 0.9,
        seed: int = 0,
        form: str = "criteria",
        lexicon: str | None = None,
        verdict: str = "text",
        orders: int = 2,
        min_yield: float = 0.1,
        max_one_side: float = 0.9,
    ) -> None:
        if temperature <= 0:
            raise UserError(f"pairing.temperature={temperature}: a sampled answer needs one above 0")
        if orders not in (1, 2):
            raise UserError(f"pairing.orders={orders}: take 2 (both) or 1 (the sampled answer first)")
        for name, value in (("min_yield", min_yield), ("max_one_side", max_one_side)):
            if not 0 <= value <= 1:
                raise UserError(f"pairing.{name}={value}: take a share from 0 to 1")
        self.greedy = Decoding(max_new_tokens, seed=seed)
        self.sampled = Decoding(max_new_tokens, temperature, top_p, seed=seed)
        self.comparison = Comparison(form, lexicon, verdict)
        self.orders = orders
        self.min_yield = min_yield
        self.max_one_side = max_one_side

    def pairs(self, samples: Iterable[Sample], vlm: LoadedVLM | None) -> Iterator[Preference]:
        """Yield one Preference for every sample, chunk by chunk.

        Status `ok`; `equal`: both answers are the same text; `empty`: one is no text; `disagree`: the two
        orders name different answers; `tie`: a verdict names both or neither; `unparseable`: a verdict is
        none. The details hold the `verdicts` by place (`1`, `2`, `tie` or empty), with `verdict=likelihood`
        the `odds` that the sampled answer is better (nats), and where the pair is kept which answer is
        `chosen` (`greedy` or `sampled`).
        """
        if vlm is None:
            raise UserError("pairing=self_critic: there is no VLM to answer; choose one with vlm=...")
        left = iter(samples)
        while chunk := {sample.id: sample for sample in islice(left, CHUNK)}:
            answers: dict[str, tuple[Reply, Reply]] = {}
            for name, greedy, sampled in answered_twice(vlm, map(self._answers, chunk.values())):
                found = preference(name, greedy, sampled)
                if found.status == "ok":
                    answers[name] = (greedy, sampled)
                else:
                    yield found
            yield from self._judged(vlm, chunk, answers)

    def _answers(self, sample: Sample) -> tuple[Request, Request]:
        greedy = question(sample, self.greedy)
        return greedy, replace(greedy, id=f"{greedy.id}|sampled", decoding=self.sampled)

    def _judged(
        self, vlm: LoadedVLM, samples: dict[str, Sample], answers: dict[str, tuple[Reply, Reply]]
    ) -> Iterator[Preference]:
        replies: dict[str, dict[int, Reply]] = {name: {} for name in answers}
        asked: dict[str, tuple[str, int]] = {}
        requests = []
        for name, (greedy, sampled) in answers.items():
            for order in range(self.orders):
                texts = (sampled.text, greedy.text) if order == 0 else (greedy.text, sampled.text)
                requests.append(self.comparison.request(samples[name], f"{name}|judge{order}", *texts))
                asked[requests[-1].id] = (name, order)
        for key, (reply, *_) in vlm.generate(requests):
            name, order = asked[key]
            replies[name][order] = reply
            if len(replies[name]) == self.orders:
                yield self._decided(name, *answers[name], [replies[name][n] for n in range(self.orders)])

    def _decided(self, name: str, greedy: Reply, sampled: Reply, replies: Sequence[Reply]) -> Preference:
        """Return the Preference that follows from what was said in one or both orders."""
        said = [self.comparison.verdict(reply) for reply in replies]
        details: dict[str, Any] = {"verdicts": said}
        if self.comparison.by_likelihood:
            odds = sum((1 if n == 0 else -1) * self.comparison.odds(reply) for n, reply in enumerate(replies))
            details["odds"] = round(odds, 4)
            found = "tie" if odds == 0 else "sampled" if odds > 0 else "greedy"
        else:
            found = agreed([winner(verdict, order) for order, verdict in enumerate(said)])
        pair = preference(name, sampled, greedy) if found == "sampled" else preference(name, greedy, sampled)
        kept = found in ("greedy", "sampled")
        details |= pair.details | ({"chosen": found} if kept else {}) | calls(greedy, sampled, *replies)
        return replace(pair, status="ok" if kept else found, details=details)

    def check(self, preferences: Sequence[Preference]) -> None:
        """Raise UserError where the verdicts cannot be trusted or too few pairs are left."""
        said = [v for p in preferences for v in p.details.get("verdicts", ()) if v in ("1", "2")]
        side, number = Counter(said).most_common(1)[0] if said else ("1", 0)
        if len(said) >= MIN_VERDICTS and number > self.max_one_side * len(said):
            raise UserError(
                f"pairing=self_critic: {number} of {len(said)} verdicts name answer {side}, whatever stands "
                f"there (more than pairing.max_one_side={self.max_one_side:g}); this VLM cannot judge, take "
                "another vlm or pairing.form"
            )
        statuses = Counter(p.status for p in preferences)
        if statuses["ok"] < self.min_yield * len(preferences):
            listed = ", ".join(f"{status} {count}" for status, count in sorted(statuses.items()))
            raise UserError(
                f"pairing=self_critic: {statuses['ok']} of {len(preferences)} samples gave a pair ({listed}),"
                f" fewer than pairing.min_yield={self.min_yield:g} of them; sample at a higher "
                "pairing.temperature, or take another vlm or pairing.form"
            )


def agreed(won: Sequence[str]) -> str:
    """Return what the orders name (`greedy` or `sampled`), or why there is no pair."""
    for reason in ("unparseable", "tie"):
        if reason in won:
            return reason
    return won[0] if len(set(won)) == 1 else "disagree"
