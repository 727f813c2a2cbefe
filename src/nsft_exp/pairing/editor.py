"""Texts with errors written into them: by rules for a known vocabulary, or by someone else, from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

import yaml

from nsft_exp.records import Sample, UserError

VOWELS = "aeiou"


class Editor(Protocol):
    """Writes errors into right answers."""

    def edits(self, samples: Sequence[Sample]) -> Iterator[tuple[str, str | None]]:
        """Yield (id, answer with errors in it) for every sample; None: there is nothing to get wrong."""


class WordEditor:
    """Exchanges words of a known vocabulary: one object, one color or size, one relation, where there are
    any.

    `lexicon` is a file with `categories`, `colors`, `sizes`, `relations`, `inverse` and `scenes`; `world`
    says what each scene usually holds (`scenes.<name>.usual`): the new object is a usual one that the answer
    does not name, where its scene has one (POVID's co-occurring objects), else any. What is drawn comes from
    (`seed`, the sample's id).
    """

    def __init__(self, lexicon: str, world: str | None = None, seed: int = 0) -> None:
        self.lexicon, self.world, self.seed = lexicon, world, seed
        self._words: dict[str, Any] = {}
        self._usual: dict[str, Any] = {}

    def edits(self, samples: Sequence[Sample]) -> Iterator[tuple[str, str | None]]:
        """Yield (id, answer with up to one error of each kind); None where no word of it is known."""
        yield from ((sample.id, self.edit(sample)) for sample in samples)

    def edit(self, sample: Sample) -> str | None:
        """Return one sample's edited answer."""
        if not self._words:
            self._words = yaml.safe_load(Path(self.lexicon).read_text("utf-8"))
            self._usual = yaml.safe_load(Path(self.world).read_text("utf-8"))["scenes"] if self.world else {}
        text, draw = sample.answer.strip(), Random(f"{self.seed}/{sample.id}")
        edited = text
        for change in (self._object, self._attribute, self._relation):
            edited = change(edited, draw)
        return None if edited == text else with_articles(edited)

    def _object(self, text: str, draw: Random) -> str:
        """One noun becomes another wherever it stands."""
        named = found_words(text, self._words["categories"])
        if not named:
            return text
        scene = next(iter(found_words(text, self._words["scenes"])), None)
        usual = [w for w in self._usual.get(scene or "", {}).get("usual", ()) if w not in named]
        others = [w for w in self._words["categories"] if w not in named]
        old, new = draw.choice(named), draw.choice(usual or others)
        return re.sub(rf"\b{old}(?=s?\b)", new, text)

    def _attribute(self, text: str, draw: Random) -> str:
        """One color or size becomes another in one place."""
        kinds = (self._words["colors"], self._words["sizes"])
        return _one_place(
            text, [w for kind in kinds for w in kind], draw, lambda old: _others(old, kinds, draw)
        )

    def _relation(self, text: str, draw: Random) -> str:
        """One relation becomes its inverse in one place."""
        return _one_place(text, self._words["relations"], draw, lambda old: str(self._words["inverse"][old]))


def found_words(text: str, words: Sequence[str]) -> list[str]:
    """Return the words (in singular or plural) that a text holds, in the order of `words`."""
    return [word for word in words if re.search(rf"\b{re.escape(word)}s?\b", text)]


def _one_place(text: str, words: Sequence[str], draw: Random, other: Callable[[str], str]) -> str:
    pattern = "|".join(re.escape(word) for word in words)
    places = list(re.finditer(rf"\b(?:{pattern})\b", text))
    if not places:
        return text
    place = draw.choice(places)
    return text[: place.start()] + other(place.group()) + text[place.end() :]


def _others(old: str, kinds: Sequence[Sequence[str]], draw: Random) -> str:
    (kind,) = [kind for kind in kinds if old in kind]
    return draw.choice([word for word in kind if word != old])


def with_articles(text: str) -> str:
    """Return the text with `a` before consonants and `an` before vowels."""
    return re.sub(
        r"\b([Aa])n? (?=([a-z]))", lambda m: m.group(1) + ("n " if m.group(2) in VOWELS else " "), text
    )


class FileEditor:
    """Answers that someone else (an LLM, say) has spoiled: JSON lines {"id": ..., "answer": ...}.

    Raises UserError for a line that is not such an object. A sample that the file does not have gets None.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._texts: dict[str, str] | None = None

    def edits(self, samples: Sequence[Sample]) -> Iterator[tuple[str, str | None]]:
        """Yield (id, the file's answer of this id)."""
        if self._texts is None:
            self._texts = dict(self._read())
        yield from ((sample.id, self._texts.get(sample.id)) for sample in samples)

    def _read(self) -> Iterator[tuple[str, str]]:
        if not Path(self.file).is_file():
            raise UserError(f"{self.file}: there is no such file; pairing.editor.file must name one")
        for number, line in enumerate(Path(self.file).read_text("utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                yield str(row["id"]), str(row["answer"])
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f'{self.file}: line {number} is not {{"id": ..., "answer": ...}}; mend or delete it'
                ) from None
