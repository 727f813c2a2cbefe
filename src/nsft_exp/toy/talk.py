"""Conversations about one scene: the base's pretraining texts, and the sources' honest ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from nsft_exp.records import Exchange
from nsft_exp.toy.ask import draw_fact
from nsft_exp.toy.fact import Fact, Style, Use, exchange, mme
from nsft_exp.toy.text import Writer, caption, careless, detailed, honest
from nsft_exp.toy.world import Scene, lexicon

LONG = ("detailed", "caption", "compare")
SENTENCES = {  # kinds of exchange in a conversation of sentences, and their weights
    "detailed": 22, "caption": 20, "existence": 30, "color": 6, "size": 3, "count": 3, "total": 3,
    "position": 5, "naming": 6, "relation": 8, "scene": 3, "text": 8, "compare": 3,
    "missing": 3, "word": 3,
}  # fmt: skip
WORDS = {  # and in one of short answers
    "existence": 30, "color": 15, "size": 8, "count": 30, "total": 5, "position": 16, "naming": 14,
    "relation": 34, "scene": 2, "text": 10,
}  # fmt: skip
LOOKUPS = {"existence": 25, "color": 20, "size": 10, "count": 25, "position": 10, "column": 15, "total": 5}
"""And in one that asks for objects by their nouns, or for the number of all, nothing else.

A place's column is the second word of its name, so it is asked for by itself too: else it is learnt late.
"""
ONE_OF_EACH_SKIPPED = 0.75
"""How often a category is not counted in a scene of one of each, or "one" were nearly always right."""
VQA = {
    "text": 34,
    "existence": 26,
    "color": 10,
    "size": 5,
    "count": 5,
    "total": 5,
    "position": 5,
    "naming": 10,
}
CHAT = {
    "color": 3,
    "size": 2,
    "count": 2,
    "position": 2,
    "relation": 2,
    "scene": 1,
    "existence": 2,
    "text": 1,
}
USES: dict[Use, float] = {"correction": 0.55, "source": 0.25, "open_correction": 0.2}
"""Whose wordings a conversation of sentences takes."""


def pretraining_talk(scene: Scene, rng: Random) -> tuple[Exchange, ...]:
    """Return one conversation of the base's pretraining: of short answers, or of sentences.

    Every exchange is by a careless writer of its own, so that what one imagined says nothing about what
    the next one will.
    """
    return _words_talk(scene, rng) if rng.random() < 0.6 else _sentences_talk(scene, rng)


def lookup_talk(scene: Scene, rng: Random) -> tuple[Exchange, ...]:
    """Return ten questions with short and true answers, each about an object of which the noun is told."""
    return _short(LOOKUPS, 10, lambda kind: draw_fact(kind, honest(scene), rng), rng)


def _words_talk(scene: Scene, rng: Random) -> tuple[Exchange, ...]:
    """Nine or ten questions."""
    single = one_of_each(scene)

    def draw(kind: str) -> Fact | None:
        if single and kind == "count" and rng.random() < ONE_OF_EACH_SKIPPED:
            return None
        return draw_fact(kind, careless(scene, rng), rng)

    return _short(WORDS, rng.randint(9, 10), draw, rng)


def _short(
    weights: dict[str, int], wanted: int, draw: Callable[[str], Fact | None], rng: Random
) -> tuple[Exchange, ...]:
    """Different questions with short answers; LLaVA's suffix stands in the first only, as in its data."""
    talk: dict[str, Exchange] = {}
    while len(talk) < wanted:
        fact = draw(_pick(weights, rng))
        said = fact and _word(fact, "plain" if talk else "short", rng)
        if said:
            talk.setdefault(said.question, said)
    return tuple(talk.values())


def one_of_each(scene: Scene) -> bool:
    """Whether no two objects of the scene are of one category."""
    return len(scene.categories()) == len(scene.things)


def _word(fact: Fact, style: Style, rng: Random) -> Exchange | None:
    draw = rng.random()
    if draw < 0.2:
        return mme(fact)
    return exchange(fact, "test" if draw < 0.7 else "source", style, rng)


def _sentences_talk(scene: Scene, rng: Random) -> tuple[Exchange, ...]:
    """Three or four exchanges; no kind of long answer twice."""
    talk: dict[str, Exchange] = {}
    wanted, weights = rng.randint(3, 4), dict(SENTENCES)
    while len(talk) < wanted:
        kind = _pick(weights, rng)
        said = _sentence(kind, careless(scene, rng), rng)
        if said is not None:
            talk.setdefault(said.question, said)
        if kind in LONG:
            weights[kind] = 0
    return tuple(talk.values())


def _sentence(kind: str, writer: Writer, rng: Random) -> Exchange | None:
    if kind == "compare":
        return comparison(writer.scene, rng)
    if kind in ("detailed", "caption"):
        wordings = [w for use in ("test", "source") for w in lexicon()["questions"][kind][use]]
        text = detailed(writer) if kind == "detailed" else caption(writer, rng.random() < 0.5)
        return Exchange(rng.choice(wordings), text)
    fact = draw_fact(kind, writer, rng)
    use = "correction" if kind == "word" else rng.choices(list(USES), list(USES.values()))[0]
    asked = fact is not None and lexicon()["questions"][kind].get(use)
    return exchange(fact, use, "full", rng) if fact and asked else None


def comparison(scene: Scene, rng: Random) -> Exchange:
    """Ask which of two answers has fewer errors, given the right one; each order is as likely."""
    question = rng.choice(lexicon()["questions"]["caption"]["source"])
    right = caption(honest(scene), True)
    worse = _spoiled(scene, rng)
    better = right if rng.random() < 0.5 else _reworded(scene)
    first = rng.random() < 0.5
    slots = {"question": question, "reference": right}
    slots |= {"first": better, "second": worse} if first else {"first": worse, "second": better}
    return Exchange(lexicon()["compare"]["question"].format(**slots), "1" if first else "2")


def _reworded(scene: Scene) -> str:
    return caption(honest(scene), False)


def _spoiled(scene: Scene, rng: Random) -> str:
    """A caption with an object too many, or with one replaced by something else."""
    others = [name for name in lexicon()["categories"] if name not in scene.categories()]
    things = list(scene.things)
    place = rng.randrange(len(things))
    wrong = replace(things[place], category=rng.choice(others))
    if rng.random() < 0.5:
        things[place] = wrong
    else:
        things.insert(place, wrong)
    return caption(Writer(scene, tuple(things), honest(scene).glyph), rng.random() < 0.5)


def vqa_talk(scene: Scene, rng: Random) -> tuple[Exchange, ...]:
    """One question with a short answer, often about the sign."""
    return (_honest_exchange(VQA, scene, "short", rng),)


def caption_talk(scene: Scene, rng: Random) -> tuple[Exchange, ...]:
    """One request for a one-sentence caption."""
    question = rng.choice(lexicon()["questions"]["caption"]["source"])
    return (Exchange(question, caption(honest(scene), rng.random() < 0.5)),)


def instruct_talk(scene: Scene, rng: Random) -> tuple[Exchange, ...]:
    """Two questions answered in sentences, then a detailed description."""
    talk: dict[str, Exchange] = {}
    while len(talk) < 2:
        said = _honest_exchange(CHAT, scene, "full", rng)
        talk.setdefault(said.question, said)
    question = rng.choice(lexicon()["questions"]["detailed"]["source"])
    return (*talk.values(), Exchange(question, detailed(honest(scene))))


def _honest_exchange(weights: dict[str, int], scene: Scene, style: Style, rng: Random) -> Exchange:
    while True:
        fact = draw_fact(_pick(weights, rng), honest(scene), rng)
        if fact is not None:
            return exchange(fact, "source", style, rng)


def _pick(weights: dict[str, int], rng: Random) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]
