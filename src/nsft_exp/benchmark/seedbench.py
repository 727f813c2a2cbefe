"""SEED-Bench (Li et al. 2023), scored as LLaVA's convert_seed_for_submission.py does; images are asked.

File under `root`, official:

    SEED-Bench.json   {question_type: {name: id}, questions [{question_id, question_type_id, data_type:
                      image|video, data_id, question, choice_a .. choice_d, answer: A-D}]}

Images are `image_root/<data_id>` (`image_root` is SEED-Bench-image).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.answers import AnswerLine, ScoredAnswers, absent, repeated
from nsft_exp.benchmark.counting import accuracy
from nsft_exp.benchmark.prompts import OPTION_LETTER
from nsft_exp.benchmark.reading import (
    MakesFiles,
    ask,
    image_path,
    need,
    numbered_rows,
    prepare,
    read_json,
)
from nsft_exp.records import Decoding, ItemScore, Metric, Reply, Request

CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


@dataclass(frozen=True)
class SeedItem:
    """One question; its id is a number wherever the file's text is one."""

    id: int | str
    dimension: str
    kind: str
    data_id: str
    text: str
    answer: str


class SeedBench:
    """Accuracy of option letters by dimension, for images and videos."""

    def __init__(
        self,
        root: str,
        image_root: str | None = None,
        max_new_tokens: int = 128,
        files_from: MakesFiles | None = None,
        name: str = "seedbench",
    ) -> None:
        """Only image questions are asked of a model; files of answers may hold the video ones too."""
        self.name, self.max_new_tokens = name, max_new_tokens
        self.file, self.image_root, self.files_from = Path(root) / "SEED-Bench.json", image_root, files_from
        self._items: dict[str, SeedItem] | None = None

    @property
    def protocol(self) -> str:
        """The rule and the numbers of questions."""
        images = sum(item.kind == "image" for item in self.items().values())
        return f"SEED-Bench letters by LLaVA's converter (text == answer); {images} image questions"

    def files(self) -> list[Path]:
        """The question file."""
        prepare(self.files_from)
        return [self.file]

    def requests(self) -> list[Request]:
        """Every image question in file order."""
        questions = (
            (key, self._image(item), item.text + OPTION_LETTER)
            for key, item in self.items().items()
            if item.kind == "image"
        )
        return ask(questions, Decoding(max_new_tokens=self.max_new_tokens))

    def score(self, request: Request, reply: Reply) -> ItemScore:
        """The answer must be the letter and nothing else."""
        return score_answer(self.items()[request.id], reply.text)

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Accuracy in percent: image, video, total, and each dimension."""
        groups = ("image", "video", "total", *self._dimensions())
        return {group: accuracy(counts, group) for group in groups}

    def describe(self) -> list[Metric]:
        """Image accuracy is the headline."""
        shown = [Metric("image", "SEED image", "up", "percent", "short_answer", headline=True)]
        for group in ("video", "total", *self._dimensions()):
            shown.append(Metric(group, f"SEED {group}", "up", "percent", "short_answer"))
        return shown

    def score_answers(self, lines: Sequence[AnswerLine]) -> ScoredAnswers:
        """Score LLaVA's answer lines.

        The last line of an id counts, a question without an answer is wrong, and unknown ids are passed
        over. Ids must be numbers where the file's are.
        """
        items = {item.id: item for item in self.items().values()}
        given = [line.id for line in lines]
        said = {line.id: line.text for line in lines}
        missing = absent(items, given)
        return ScoredAnswers(
            [score_answer(item, said.get(i)) for i, item in items.items()],
            expected=len(items),
            answered=len(items) - len(missing),
            missing=missing,
            duplicate=repeated(given),
            unknown=absent(given, items),
            said=[said.get(i) for i in items],
        )

    def items(self) -> dict[str, SeedItem]:
        """All questions by id, in file order; read once."""
        if self._items is None:
            prepare(self.files_from)
            data = read_json(self.file)
            kinds = need(data, "question_type", dict, str(self.file))
            names = {need(kinds, name, int, f"{self.file}: question_type"): name for name in kinds}
            rows = numbered_rows(data, "questions", self.file, "question")
            items = [self._item(where, row, names) for where, row in rows]
            self._items = {str(item.id): item for item in items}
        return self._items

    def _image(self, item: SeedItem) -> str:
        return image_path(self.image_root, item.data_id, f"{self.file}: question {item.id}")

    def _item(self, where: str, row: Any, names: Mapping[Any, str]) -> SeedItem:
        key = need(row, "question_id", (str, int), where)
        dimension = need(row, "question_type_id", int, where)
        options = [need(row, choice, (str, int, float), where) for choice in CHOICES]
        lettered = "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
        return SeedItem(
            _as_number(key),
            names.get(dimension, str(dimension)),
            need(row, "data_type", str, where),
            str(need(row, "data_id", (str, int), where)),
            need(row, "question", str, where) + lettered,
            need(row, "answer", str, where),
        )

    def _dimensions(self) -> list[str]:
        return list(dict.fromkeys(item.dimension for item in self.items().values()))


def _as_number(key: int | str) -> int | str:
    """The id as the official program looks it up: a number wherever Python reads its text as one."""
    try:
        return int(key)
    except ValueError:
        return key


def score_answer(item: SeedItem, text: str | None) -> ItemScore:
    """Counts of one answer; None (not answered) is wrong."""
    correct = int(text == item.answer)
    counts: dict[str, float] = {}
    for group in (item.kind, "total", item.dimension):
        counts |= {f"{group}/questions": 1, f"{group}/correct": correct}
    return ItemScore(
        str(item.id),
        cluster=item.data_id,
        counts=counts,
        parsed=text or "",
        truth=item.answer,
        unparseable=text not in ("A", "B", "C", "D"),
    )
