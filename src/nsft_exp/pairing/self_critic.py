"""Greedy answer against sampled answer, the model itself telling which is better (SIMA, Wang et al. 2024)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar, Protocol

from nsft_exp.interfaces import LoadedVLM
from nsft_exp.pairing.claims import ClaimByClaim
from nsft_exp.pairing.comparison import Comparison
from nsft_exp.pairing.gt import calls, question
from nsft_exp.pairing.view import answered_twice, preference
from nsft_exp.records import Decoding, Preference, Reply, Request, Sample, UserError

MIN_VERDICTS = 20
"""Fewer say nothing about which side a critic prefers."""


class Judge(Protocol):
    """What says which of two answers is better, by asking the VLM."""

    def requests(self, sample: Sample, greedy: str, sampled: str) -> list[Request]:
        """Return what is asked, with ids of the sample's own."""

    def decide(self, greedy: str, sampled: str, replies: Sequence[Reply]) -> tuple[str, dict[str, Any]]:
        """Return `greedy`, `sampled` or why neither, and what is kept with the pair."""


class SelfCritic:
    """Chosen and rejected are the VLM's greedy and its sampled answer, in the order that it prefers itself.

    `form` says how it is asked: by SIMA's `criteria`, which compare the two answers in both orders (`verdict`
    and `orders`, see Comparison), or by the answers' `claims`, one at a time (`lexicon`, see ClaimByClaim).

    `check` stops a cell with a share of pairs below `min_yield`, and one whose verdicts name the same side
    (first or second, whatever stands there) in more than `max_one_side` of the cases.
    """

    needs_vlm: ClassVar[bool] = True
    chunk: ClassVar[int] = 256
    """Samples that are answered, and then judged, together."""

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
        if form not in ("criteria", "claims"):
            raise UserError(f"pairing.form={form}: there is no such choice; take criteria or claims")
        for name, value in (("min_yield", min_yield), ("max_one_side", max_one_side)):
            if not 0 <= value <= 1:
                raise UserError(f"pairing.{name}={value}: take a share from 0 to 1")
        self.greedy = Decoding(max_new_tokens, seed=seed)
        self.sampled = Decoding(max_new_tokens, temperature, top_p, seed=seed)
        comparison = Comparison(verdict, orders)
        self.judge: Judge = comparison if form == "criteria" else ClaimByClaim(lexicon)
        self.min_yield = min_yield
        self.max_one_side = max_one_side

    def pairs(self, samples: Iterable[Sample], vlm: LoadedVLM | None) -> Iterator[Preference]:
        """Yield one Preference for every sample, chunk by chunk.

        Status `ok`; `equal`: both answers are the same text; `empty`: one is no text; `tie`: neither is
        better; by criteria also `disagree`: the two orders name different answers, and `unparseable`: a
        verdict is none. The details hold what the judge tells, and where the pair is kept which answer is
        `chosen` (`greedy` or `sampled`).
        """
        if vlm is None:
            raise UserError("pairing=self_critic: there is no VLM to answer; choose one with vlm=...")
        left = iter(samples)
        while chunk := {sample.id: sample for sample in islice(left, self.chunk)}:
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
        asked = {
            name: self.judge.requests(samples[name], *(reply.text for reply in both))
            for name, both in answers.items()
        }
        owner = {request.id: name for name, requests in asked.items() for request in requests}
        replies: dict[str, Reply] = {}
        left = {name: len(requests) for name, requests in asked.items()}
        yield from (self._decided(name, *answers[name], []) for name in answers if not left[name])
        for key, (reply, *_) in vlm.generate([r for requests in asked.values() for r in requests]):
            replies[key] = reply
            left[owner[key]] -= 1
            if not left[name := owner[key]]:
                yield self._decided(name, *answers[name], [replies.pop(r.id) for r in asked[name]])

    def _decided(self, name: str, greedy: Reply, sampled: Reply, replies: Sequence[Reply]) -> Preference:
        """Return the Preference that follows from what the judge was told."""
        found, details = self.judge.decide(greedy.text, sampled.text, replies)
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
