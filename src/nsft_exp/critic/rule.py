"""A critic of rules for texts of a known vocabulary: the toy world's stand-in for an LLM.

It reads what an LLM would read (the question, the two answers, the codebook) and nothing else. An error is
what the chosen answer contradicts; that the chosen answer does not mention an object contradicts nothing,
unless it says that it named everything ("There is nothing else in the image.") or `closed_world` is set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from nsft_exp.critic.codebook import Codebook
from nsft_exp.critic.contradiction import CATEGORIES, Contradiction, contradictions
from nsft_exp.critic.dialogue import corrected, uncorrected
from nsft_exp.critic.lexicon import Lexicon
from nsft_exp.critic.plan import by_importance, plan
from nsft_exp.critic.reading import Reader, Reading
from nsft_exp.critic.truth import Truth, truth_of
from nsft_exp.critic.weakness import Weakness
from nsft_exp.critic.wording import Ask, counted, worded
from nsft_exp.critic.words import plan_words, word_errors
from nsft_exp.records import Correction, Exchange, FoundError, Preference, Sample, UserError

EVERYTHING = Codebook(
    {name: {"level": "image", "meaning": "", "example": ""} for name in dict.fromkeys(CATEGORIES.values())}
)
"""All categories: what the length of a dialogue is measured by where the codebook is empty."""


@dataclass(frozen=True)
class Judgement:
    """What the critic knows of one pair before it writes: the truth, the claims, the errors, the turns."""

    truth: Truth
    said: Reading
    wrongs: Sequence[Contradiction]
    """Errors of the codebook's categories, the most important first."""
    num_other: int
    """Errors of no category of the codebook."""
    turns: Sequence[Ask]


class Rule:
    """The rule critic.

    `lexicon` is the file of words and wordings, `max_turns` the longest dialogue, and `closed_world` makes
    whatever the chosen answer leaves out an error. Every dialogue has as many answers Yes as No (plan.py);
    with `balance=False` it has only the turns that its errors call for. A worse critic overlooks the share
    `miss` of the errors and takes the share `invent` of the right claims for wrong (weakness.py).
    """

    def __init__(
        self,
        lexicon: str,
        codebook: Codebook,
        max_turns: int = 5,
        closed_world: bool = False,
        balance: bool = True,
        miss: float = 0.0,
        invent: float = 0.0,
    ) -> None:
        if max_turns < 1:
            raise UserError(f"critic.max_turns={max_turns}: a dialogue has at least one turn; use 1 to 5")
        self.weakness = Weakness(miss, invent)
        if self.weakness and not codebook:
            raise UserError("critic.miss, critic.invent: they are of a codebook's errors; use codebook=full")
        self.lexicon = Lexicon(lexicon)
        self.reader = Reader(self.lexicon)
        self.codebook = codebook
        self.max_turns = max_turns
        self.closed_world = closed_world
        self.balance = balance

    def corrections(self, pairs: Iterable[tuple[Sample, Preference]]) -> Iterator[Correction]:
        """Yield one Correction for every pair, in order; each depends on its own pair alone."""
        for sample, preference in pairs:
            if preference.status != "ok":
                yield uncorrected(sample.id, "no_error", f"no pair: {preference.status}")
            else:
                yield self._correct(sample, preference)

    def _correct(self, sample: Sample, preference: Preference) -> Correction:
        codebook = self.codebook or EVERYTHING
        judged = judge(self, sample, preference, codebook)
        errors = found(judged.wrongs, preference.rejected, self.lexicon)
        turns = judged.turns
        if not self.codebook and errors:
            errors = word_errors(preference.chosen, preference.rejected, judged.truth)
            texts = preference.chosen, preference.rejected
            turns = plan_words(*texts, judged.truth, len(turns), Random(f"words/{sample.id}"))
        if not errors:
            return uncorrected(sample.id, "no_error", "nothing that the chosen answer contradicts")
        if not turns:
            return uncorrected(sample.id, "refused", "no question can be asked about the errors", errors)
        return corrected(
            sample.id, errors, write(self.lexicon, turns, sample.id), other_errors=judged.num_other
        )


def judge(critic: Rule, sample: Sample, preference: Preference, codebook: Codebook) -> Judgement:
    """Return the errors of a pair's rejected answer, and the turns that correct them."""
    right = critic.reader.read(sample.question, preference.chosen)
    truth = truth_of(right, critic.lexicon, critic.closed_world)
    said = critic.reader.read(sample.question, preference.rejected)
    everything = critic.weakness.apply(contradictions(truth, said.claims), truth, said, sample.id)
    wrongs = by_importance(everything, codebook)
    turns = plan(wrongs, truth, said, critic.max_turns, Random(f"plan/{sample.id}"), critic.balance)
    return Judgement(truth, said, wrongs, len(everything) - len(wrongs), turns)


def found(wrongs: Iterable[Contradiction], rejected: str, lexicon: Lexicon) -> list[FoundError]:
    """Return contradictions as errors of the rejected text, right numbers in words."""
    errors = []
    for wrong in wrongs:
        start, end, right = wrong.claim.start, wrong.claim.end, wrong.right
        right = counted(lexicon, "", right)["count"] if wrong.category == "count" else right
        errors.append(FoundError(wrong.category, start, end, rejected[start:end], right))
    return errors


def write(lexicon: Lexicon, turns: Iterable[Ask], key: str) -> list[Exchange]:
    """Return the turns in words; a wording depends on the sample's id and the turn's number alone."""
    rng = Random(f"wording/{key}")
    return [worded(lexicon, ask, rng.randrange(1 << 30)) for ask in turns]
