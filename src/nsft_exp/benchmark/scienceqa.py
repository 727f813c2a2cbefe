"""ScienceQA (Lu et al. 2022), scored as LLaVA's eval_science_qa.py does; the headline is its IMG part.

Files under `root`, official:

    problems.json     {pid: {question, choices, answer: index, hint, image: "image.png" or null, ...}}
    pid_splits.json   {test: [pid], ...}

Images are `image_root/<pid>/<image>` (`image_root` is images/test).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.answers import AnswerLine, ScoredAnswers, absent, repeated
from nsft_exp.benchmark.counting import accuracy
from nsft_exp.benchmark.prompts import OPTION_LETTER
from nsft_exp.benchmark.reading import MakesFiles, ask, image_path, need, prepare, read_json
from nsft_exp.records import Decoding, ItemScore, Metric, Reply, Request, UserError

LETTERS = "ABCDE"
_SENTENCE = re.compile(r"The answer is ([A-Z]).")


@dataclass(frozen=True)
class ScienceItem:
    """One problem."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str
    image: str | None


class ScienceQa:
    """Accuracy of option letters; `img` is over the problems with an image."""

    def __init__(
        self,
        root: str,
        image_root: str | None = None,
        split: str = "test",
        images_only: bool = True,
        max_new_tokens: int = 1024,
        files_from: MakesFiles | None = None,
        name: str = "scienceqa",
    ) -> None:
        """`images_only`: ask only the problems with an image, which is what the headline needs."""
        self.name, self.split, self.images_only = name, split, images_only
        self.root, self.image_root, self.files_from = Path(root), image_root, files_from
        self.max_new_tokens = max_new_tokens
        self._items: dict[str, ScienceItem] | None = None

    @property
    def protocol(self) -> str:
        """The rule, the split and its size."""
        items = self.items().values()
        with_image = sum(item.image is not None for item in items)
        return (
            f"ScienceQA by LLaVA's eval_science_qa; {self.split}, {len(items)} problems, "
            f"{with_image} with an image"
        )

    def files(self) -> list[Path]:
        """The problems and the splits."""
        prepare(self.files_from)
        return [self._problems, self._splits]

    def requests(self) -> list[Request]:
        """The split's problems in its order."""
        questions = (
            (key, self._image(item), prompt(item))
            for key, item in self.items().items()
            if item.image is not None or not self.images_only
        )
        return ask(questions, Decoding(max_new_tokens=self.max_new_tokens))

    def score(self, request: Request, reply: Reply) -> ItemScore:
        """The letter of one answer; with `images_only` it counts for IMG alone."""
        item = self.items()[request.id]
        score = score_answer(item, reply.text, item.image is not None)
        if not self.images_only:
            return score
        return replace(score, counts={k: v for k, v in score.counts.items() if k.startswith("img/")})

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Accuracy in percent: `img` over the problems with an image, `accuracy` over all."""
        return {"img": accuracy(counts, "img"), "accuracy": accuracy(counts)}

    def describe(self) -> list[Metric]:
        """IMG accuracy is the headline."""
        return [
            Metric("img", "SQA-IMG", "up", "percent", "short_answer", headline=True),
            Metric("accuracy", "SQA", "up", "percent", "short_answer"),
        ]

    def score_answers(self, lines: Sequence[AnswerLine]) -> ScoredAnswers:
        """Score LLaVA's answer lines.

        As in the official program the last line of an id counts, unknown ids are passed over, a problem
        without an answer is wrong, and IMG is over the problems whose line's prompt has an `<image>`: an
        unanswered image problem leaves it. A line without a `prompt` stops it.
        """
        items = self.items()
        said = {line.id: line for line in lines}
        bare = next((x for x in said.values() if x.id in items and "prompt" not in x.row), None)
        if bare is not None:
            raise UserError(f"{bare.where}: has no field `prompt`, where the official program stops")
        scores = []
        for key, item in items.items():
            line = said.get(key)
            text, has_image = (line.text, "<image>" in line.prompt) if line else ("FAILED", False)
            scores.append(score_answer(item, text, has_image))
        given = [line.id for line in lines]
        missing = absent(items, given)
        scored = ScoredAnswers(
            scores,
            expected=len(items),
            answered=len(items) - len(missing),
            missing=missing,
            duplicate=repeated(given),
            unknown=absent(given, items),
            said=[said[i].text if i in said else None for i in items],
        )
        unmarked = [
            k for k, item in items.items() if item.image and k in said and "<image>" not in said[k].prompt
        ]
        if unmarked:
            scored.warnings.append(
                f"{len(unmarked)} image problems have no <image> in their prompt (first: {unmarked[0]}), "
                "so that the official IMG accuracy leaves them out"
            )
        return scored

    def items(self) -> dict[str, ScienceItem]:
        """The split's problems by id; read once."""
        if self._items is None:
            prepare(self.files_from)
            problems, splits = read_json(self._problems), read_json(self._splits)
            ids = need(splits, self.split, list, str(self._splits))
            odd = next((key for key in ids if not isinstance(key, str)), None)
            if odd is not None:
                raise UserError(
                    f"{self._splits}: {self.split}: {str(odd)[:40]} is not a problem's id, a text"
                )
            where = f"{self._problems}: problem"
            self._items = {key: self._item(key, need(problems, key, dict, where)) for key in ids}
        return self._items

    def _image(self, item: ScienceItem) -> str | None:
        if item.image is None:
            return None
        return image_path(self.image_root, f"{item.id}/{item.image}", f"{self._problems}: {item.id}")

    def _item(self, key: str, row: dict[str, Any]) -> ScienceItem:
        where = f"{self._problems}: problem {key}"
        image = row.get("image")
        choices = tuple(need(row, "choices", list, where))
        answer = need(row, "answer", int, where)
        if not 0 <= answer < len(choices):
            raise UserError(f"{where}: answer {answer} is not one of {len(choices)} choices; mend the file")
        return ScienceItem(
            key, need(row, "question", str, where), choices, answer, row.get("hint") or "", image
        )

    @property
    def _problems(self) -> Path:
        return self.root / "problems.json"

    @property
    def _splits(self) -> Path:
        return self.root / "pid_splits.json"


def prompt(item: ScienceItem) -> str:
    """LLaVA's question: context if there is a hint, question, lettered choices, the letter sentence."""
    context = f"Context: {item.hint}\n" if item.hint else ""
    choices = "".join(f"\n{chr(65 + k)}. {choice}" for k, choice in enumerate(item.choices))
    return context + item.question + choices + OPTION_LETTER


def read_letter(text: str) -> str:
    """Return the letter that an answer gives by LLaVA's rule, or FAILED.

    The text itself; its first letter if ". " follows; or the only match of "The answer is X" and one more
    character. Nothing is stripped or put in another case.
    """
    if len(text) == 1 and text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    found = _SENTENCE.findall(text)
    return found[0] if len(found) == 1 else "FAILED"


def score_answer(item: ScienceItem, text: str, has_image: bool) -> ItemScore:
    """Counts of one answer; a letter beyond the choices is wrong."""
    letter = read_letter(text)
    valid = letter in LETTERS[: len(item.choices)]
    correct = int(valid and LETTERS.index(letter) == item.answer)
    counts: dict[str, float] = {"questions": 1, "correct": correct}
    if has_image:
        counts |= {"img/questions": 1, "img/correct": correct}
    return ItemScore(
        item.id,
        cluster=item.id,
        counts=counts,
        parsed=letter,
        truth=f"{chr(65 + item.answer)}. {item.choices[item.answer]}",
        unparseable=not valid,
    )
