"""From a caption to the objects that it names, by CHAIR's rules (Rohrbach et al. 2018, utils/chair.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nsft_exp.benchmark.reading import read_text
from nsft_exp.benchmark.singular import singularize
from nsft_exp.benchmark.word_tokens import tokenize
from nsft_exp.records import UserError

_PAIRS = """motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light,
    fire hydrant, stop sign, parking meter, suit case, sports ball, baseball bat, baseball glove,
    tennis racket, wine glass, hot dog, cell phone, mobile phone, teddy bear, hair drier, potted plant,
    laptop computer, stove top oven, home plate, train track"""
_ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub"
TWO_WORDS: dict[str, str] = {
    **{" ".join(pair.split()): " ".join(pair.split()) for pair in _PAIRS.split(",")},
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS.split()},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
    "bow tie": "tie",
    "toilet seat": "toilet",
    "wine glas": "wine glass",
}
"""Two singular tokens that are one word, and the word (an animal's or vehicle's age or use is dropped)."""


@dataclass(frozen=True)
class ObjectWord:
    """An object named in a caption: the word found, its class, and its characters [start, end)."""

    word: str
    node: str
    start: int
    end: int


def read_synonyms(path: Path) -> dict[str, str]:
    """Return word -> object class from a synonym table: a class a line, its name first, parted by ", ".

    The official split keeps a second blank (" motor bike"), so such entries never match; so it is here.
    """
    nodes: dict[str, str] = {}
    for line in read_text(path).split("\n"):
        words = line.strip().split(", ")
        nodes |= dict.fromkeys(words, words[0])
    nodes.pop("", None)
    if not nodes:
        raise UserError(f"{path}: no words; give CHAIR's synonym table, one object class a line")
    return nodes


def object_words(caption: str, nodes: dict[str, str]) -> list[ObjectWord]:
    """Return every object word of a caption in order, repeats kept, as CHAIR counts them."""
    words = _join_pairs([(singularize(t), a, b) for t, a, b in tokenize(_lower(caption))])
    names = {word for word, _, _ in words}
    if "toilet" in names and "seat" in names:  # "the seat of the toilet" is no chair
        words = [w for w in words if w[0] != "seat"]
    return [ObjectWord(word, nodes[word], a, b) for word, a, b in words if word in nodes]


def _lower(caption: str) -> str:
    """Lower case that keeps every character's place; a letter whose lower case is longer stays one."""
    lower = caption.lower()
    if len(lower) == len(caption):
        return lower
    return "".join(c.lower() if len(c.lower()) == 1 else c.lower()[0] for c in caption)


def _join_pairs(tokens: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    words, i = [], 0
    while i < len(tokens):
        word, start, end = tokens[i]
        pair = f"{word} {tokens[i + 1][0]}" if i + 1 < len(tokens) else ""
        if pair in TWO_WORDS:
            words.append((TWO_WORDS[pair], start, tokens[i + 1][2]))
            i += 2
        else:
            words.append((word, start, end))
            i += 1
    return words
