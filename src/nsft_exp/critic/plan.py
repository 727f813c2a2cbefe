"""Which turns correct which errors: as many answered Yes as No in every dialogue, unless switched off.

Every error gives a question whose answer is No (what the rejected answer claims) and one whose answer is
Yes (what the chosen answer says of the same thing). Where a dialogue has room for one turn more, it is an
open question about the error, so that the balance needs no other dialogue.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random

from nsft_exp.critic.codebook import Codebook
from nsft_exp.critic.contradiction import Contradiction
from nsft_exp.critic.lexicon import Lexicon
from nsft_exp.critic.reading import Reading
from nsft_exp.critic.truth import Truth
from nsft_exp.critic.wording import Ask, can_ask

Half = Ask | None
UNSAYABLE = ("", "0")
"""Right values that no wording can state: unknown, or that there are no objects at all."""


def plan(
    wrongs: Sequence[Contradiction],
    truth: Truth,
    said: Reading,
    max_turns: int,
    rng: Random,
    balance: bool = True,
) -> list[Ask]:
    """Return at most `max_turns` turns about the errors, in random order; the first errors go first.

    With `max_turns` of 1 the only turn is Yes or No at random. An error about which the lexicon has no way to
    ask gets no turn. Without `balance` an error gets one turn, which denies what was claimed or affirms what
    was denied, and the open question.
    """
    lexicon = truth.lexicon
    turns: list[Ask] = []
    more: list[Ask] = []
    for wrong in wrongs:
        pair = _balanced(wrong, truth, said, turns, rng) if balance else _plain(wrong, truth, turns, rng)
        if max_turns == 1 and len(pair) == 2 and not turns:
            pair = [rng.choice(pair)]
        if pair and len(turns) + len(pair) <= max_turns:
            turns += pair
            more += _askable(lexicon, [_open(wrong, truth)])
    turns += list(dict.fromkeys(more))[: max_turns - len(turns)]
    rng.shuffle(turns)
    return turns


def by_importance(wrongs: Iterable[Contradiction], codebook: Codebook) -> list[Contradiction]:
    """Return the errors of the codebook's categories in its order, those of one category as they stand."""
    kept = [wrong for wrong in wrongs if wrong.category in codebook.names]
    return sorted(kept, key=lambda wrong: codebook.names.index(wrong.category))


def _balanced(
    wrong: Contradiction, truth: Truth, said: Reading, turns: Sequence[Ask], rng: Random
) -> list[Ask]:
    """The turns of one error: one No and one Yes, or one alone; none if one of them is asked already."""
    lexicon = truth.lexicon
    no, yes = (next(iter(_askable(lexicon, [half])), None) for half in _halves(wrong, truth, rng))
    if no and not yes:
        yes = _affirmed(no, truth, said, turns, rng)
    elif yes and not no:
        no = next(iter(_askable(lexicon, [replace(yes, kind="missing", answer="no")])), None)
    pair = [ask for ask in (no, yes) if ask is not None]
    return [] if any(ask in turns for ask in pair) else pair


def _plain(wrong: Contradiction, truth: Truth, turns: Sequence[Ask], rng: Random) -> list[Ask]:
    """The one turn that an error calls for by itself; none where it is asked already or cannot be."""
    found = _askable(truth.lexicon, _halves(wrong, truth, rng))[:1]
    return [ask for ask in found if ask not in turns]


def _halves(wrong: Contradiction, truth: Truth, rng: Random) -> tuple[Half, Half]:
    """The question answered No and the one answered Yes that an error calls for by itself."""
    claim, kind, right = wrong.claim, wrong.kind, wrong.right
    if kind == "existence":
        ask = Ask(kind, "yes" if right else "no", claim.noun, claim.value, claim.value)
        return (None, ask) if right else (ask, None)
    if kind == "naming":
        place = wrong.place
        return Ask(kind, "no", "", claim.noun, right, place), Ask(kind, "yes", "", right, right, place)
    if wrong.twin:
        return _twin_halves(wrong, truth)
    if right in UNSAYABLE:
        return None, None
    value = (
        claim.value if claim.holds and claim.value != "0" else other_value(truth.lexicon, kind, right, rng)
    )
    ask = Ask(kind, "no", claim.noun, value, right, claim.other)
    return ask, replace(ask, answer="yes", value=right)


def _twin_halves(wrong: Contradiction, truth: Truth) -> tuple[Half, Half]:
    """Of several cups `the cup` names none, but `a blue cup` can be denied and `a red cup` affirmed."""
    noun, value = wrong.claim.noun, wrong.claim.value
    if wrong.kind != "color" or truth.seen(noun, value) is not False:
        return None, None
    return (
        Ask("existence", "no", noun, value, value),
        Ask("existence", "yes", noun, wrong.right, wrong.right),
    )


def _affirmed(no: Ask, truth: Truth, said: Reading, turns: Sequence[Ask], rng: Random) -> Half:
    """Beside a denied object, one that the chosen answer names: best one that the rejected left out."""
    named = {claim.noun for claim in said.claims}
    present = list(dict.fromkeys(thing["noun"] for thing in truth.things))
    rng.shuffle(present)
    choices = [Ask("existence", "yes", noun) for noun in sorted(present, key=lambda noun: noun in named)]
    fresh = [ask for ask in choices if ask not in turns]
    return next(iter(_askable(truth.lexicon, [*fresh, replace(no, kind="missing", answer="yes")])), None)


def _open(wrong: Contradiction, truth: Truth) -> Half:
    """The open question about an error, where there is one."""
    claim, kind = wrong.claim, wrong.kind
    occupant = truth.at(wrong.place) if wrong.place else None
    if kind in ("existence", "naming"):
        if occupant is None:
            return None
        named = " ".join(filter(None, (occupant.get("color"), occupant["noun"])))
        return Ask("naming", "open", "", "", named, wrong.place)
    if wrong.twin or wrong.right in UNSAYABLE:
        return None
    return Ask(kind, "open", claim.noun, "", wrong.right, claim.other)


def other_value(lexicon: Lexicon, kind: str, right: str, rng: Random) -> str:
    """Return a value that is not the right one: of numbers one to three, of relations the inverse."""
    if kind == "relation":
        return str(lexicon.data["inverse"][right])
    values = ("1", "2", "3") if kind in ("count", "total") else lexicon.choices(kind)
    return rng.choice([value for value in values if value != right])


def _askable(lexicon: Lexicon, asks: Iterable[Half]) -> list[Ask]:
    return [ask for ask in asks if ask is not None and can_ask(lexicon, ask)]
