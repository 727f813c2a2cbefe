"""Splitting a caption into word tokens as CHAIR does, with each token's place in the caption.

CHAIR calls nltk's `word_tokenize`: Punkt sentences, then Penn-Treebank-like tokens. This finds the same
tokens without nltk and its data, by asking of each mark whether it stands alone. Two things differ, and
neither can touch an object word: the dot of an abbreviation that Punkt has learned ("mr.") is split off
here, and a quotation mark keeps its own form (nltk writes `` or '').
"""

from __future__ import annotations

import itertools
import re

Token = tuple[str, int, int]
"""(text, start, end) in the caption."""

# A dot, ! or ? may end a sentence if one of these or white space and more text follows (Punkt).
_MAY_END = re.compile(r"[.?!](?=[)\";}\]*:@'({\[‘’“”«»!?]|\s+\S)")
# Closing marks after the end belong to the sentence that they close (Punkt's realignment).
_CLOSERS = re.compile(r"[\"')\]}‘’“”«»]+?(?:\s+|(?=--)|$)", re.MULTILINE)
_SPACE = re.compile(r"\s+(?=\S)")
# What may stand between a sentence's last dot and its end for the dot to stand alone.
_AFTER_DOT = re.compile(r"(?:[\])}>»”’ ]|(?<![ (\[{<])(?:\"|'')|'(?!'))*\s*")
# Marks that always stand alone, and runs that stand alone together.
_ALONE = re.compile(r"``?|''|--|\.{2,}|[«“‘„»”’\";@#$%&?!*\[\](){}<>\u2012-\u2015]")
# A comma or colon stands alone unless a digit follows; the character after it is not looked at again.
_COMMA = re.compile(r"[:,](?:\D|$)", re.DOTALL)
_SET_APART_EARLY = tuple(" .,:;@#$%&?!`«“‘„\u2012\u2013\u2014\u2015")
_CLITIC = re.compile(r"(?:re|ve|ll|m|t|s|d|n)\b", re.IGNORECASE)
_TWO_WORDS = re.compile(
    r"\b(?:(can)not|(d)'ye|(gim)me|(gon)na|(got)ta|(lem)me|(more)'n|(wan)na\Z)\b", re.IGNORECASE
)


def tokenize(text: str) -> list[Token]:
    """Return the word tokens of a caption in order."""
    text, tokens = text.rstrip(), []
    for start, end, alone in _pieces(text):
        if alone:
            tokens.append((text[start:end], start, end))
        else:
            tokens += [(text[a:b], a, b) for a, b in _between(start, _cuts(text, start, end), end)]
    return tokens


def lone_dots(text: str) -> set[int]:
    """Return the places of single dots that end a sentence and so stand alone (`text` ends in no blank)."""
    dots = set()
    last_in_word: dict[int, int] = {}
    starts = [m.end() for m in re.finditer(r"\s+", text)]
    word = 0
    for match in _MAY_END.finditer(text):
        while word < len(starts) and starts[word] <= match.start():
            word += 1
        last_in_word[word] = match.start()  # of several marks in one word only the last one counts
    for place in last_in_word.values():
        if _is_single_dot(text, place) and _AFTER_DOT.fullmatch(text, place + 1, _sentence_end(text, place)):
            dots.add(place)
    place = text.rfind(".")
    if place >= 0 and _is_single_dot(text, place) and _AFTER_DOT.fullmatch(text, place + 1):
        dots.add(place)
    return dots


def _is_single_dot(text: str, place: int) -> bool:
    return text[place] == "." and place > 0 and text[place - 1] != "."


def _sentence_end(text: str, place: int) -> int:
    """Where the sentence ends whose last mark is at `place`: after the closers that follow it."""
    following = _SPACE.match(text, place + 1)
    start = following.end() if following else place + 1
    closers = _CLOSERS.match(text, start)
    return start + len(closers.group().rstrip()) if closers else place + 1


def _pieces(text: str) -> list[tuple[int, int, bool]]:
    """Cut at white space and around marks that stand alone: (start, end, stands alone)."""
    alone = [m.span() for m in _ALONE.finditer(text)]
    alone += [(m.start(), m.start() + 1) for m in _COMMA.finditer(text)]
    alone += [(p, p + 1) for p in lone_dots(text)]
    pieces, at = [], 0
    for start, end in [*sorted(alone), (len(text), len(text))]:
        pieces += [(at + m.start(), at + m.end(), False) for m in re.finditer(r"\S+", text[at:start])]
        if end > start:
            pieces.append((start, end, True))
        at = max(at, end)
    return pieces


def _cuts(text: str, start: int, end: int) -> set[int]:
    """Places inside a piece where apostrophes and two-word contractions part it."""
    cuts = {i + 1 for i in range(start, end - 1) if _opens_quote(text, i)}
    for a, b in _between(start, cuts, end):
        cuts |= _clitic_cuts(text, a, b)
    for a, b in _between(start, cuts, end):
        for match in _TWO_WORDS.finditer(text, a, b):
            cuts |= {match.start(), match.end(match.lastindex or 0), match.end()}
    return cuts - {start, end}


def _between(start: int, cuts: set[int], end: int) -> list[tuple[int, int]]:
    edges = [start, *sorted(cuts), end]
    return list(itertools.pairwise(edges))


def _opens_quote(text: str, i: int) -> bool:
    """An apostrophe before a word that is not a clitic is a quotation mark."""
    before_word = text[i] == "'" and _is_word(text[i + 1]) and not (i and _is_word(text[i - 1]))
    return before_word and not _CLITIC.match(text, i + 1)


def _is_word(char: str) -> bool:
    return char == "_" or char.isalnum()


def _clitic_cuts(text: str, start: int, end: int) -> set[int]:
    """Cuts before a final ' 's 'm 'd, and before 'll 're 've n't at the end of what is left.

    nltk looks for 's once, so it misses one before a final apostrophe, unless a mark that it set apart
    earlier (or a blank) follows that.
    """
    cuts = set()
    last = end
    for endings in (("'",), ("'s", "'m", "'d"), ("'ll", "'re", "'ve", "n't")):
        if endings[0] == "'s" and end < last and text[last : last + 1] not in _SET_APART_EARLY:
            continue
        piece = text[start:end].lower()
        ending = next((e for e in endings if piece.endswith(e)), None)
        if ending and len(piece) > len(ending) and piece[-len(ending) - 1] != "'":
            end -= len(ending)
            cuts.add(end)
    return cuts
