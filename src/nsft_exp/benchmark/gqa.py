"""GQA: compositional questions with one-word answers (Hudson and Manning 2019), scored as LLaVA does.

File under `root`, official:

    testdev_balanced_questions.json   {question id: {question, imageId, answer, isBalanced,
                                      groups {global, local}, types {structural, semantic, detailed}, ...}}

Questions that are not balanced are passed over. Images are `image_root/<imageId><extension>`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from nsft_exp.benchmark.answers import AnswerLine, ScoredAnswers, absent, repeated
from nsft_exp.benchmark.counting import accuracy
from nsft_exp.benchmark.prompts import short_answer
from nsft_exp.benchmark.reading import MakesFiles, ask, image_path, need, prepare, read_json
from nsft_exp.records import Decoding, ItemScore, Metric, Reply, Request, UserError

TYPES = ("structural", "semantic", "detailed")
MAX_WORDS = 5
"""An answer of more words is flagged: it is not the word or phrase that was asked for (ours)."""


@dataclass(frozen=True)
class GqaItem:
    """One question."""

    id: str
    image: str
    question: str
    answer: str
    types: dict[str, str]
    group: str | None
    """The global answer group, of the distribution score."""


class Gqa:
    """Exact match by question type; only balanced questions count."""

    def __init__(
        self,
        root: str,
        image_root: str | None = None,
        file: str = "testdev_balanced_questions.json",
        extension: str = ".jpg",
        prompt: str = "llava15",
        max_new_tokens: int = 128,
        files_from: MakesFiles | None = None,
        name: str = "gqa",
    ) -> None:
        """`prompt`: `llava15` adds LLaVA's short-answer sentence, `official` asks the bare question."""
        self.name, self.prompt, self.extension = name, prompt, extension
        self.suffix = short_answer(prompt, "GQA")
        self.file, self.image_root, self.files_from = Path(root) / file, image_root, files_from
        self.max_new_tokens = max_new_tokens
        self._items: dict[str, GqaItem] | None = None

    @property
    def protocol(self) -> str:
        """The rule, the prompt and the file with its number of questions."""
        return (
            f"GQA exact match after LLaVA's rstrip('.') and lower case, prompt {self.prompt}; "
            f"{self.file.name}, {len(self.items())} balanced questions"
        )

    def files(self) -> list[Path]:
        """The question file."""
        prepare(self.files_from)
        return [self.file]

    def requests(self) -> list[Request]:
        """Every balanced question, in file order."""
        questions = (
            (key, self._image(item), item.question + self.suffix) for key, item in self.items().items()
        )
        return ask(questions, Decoding(max_new_tokens=self.max_new_tokens))

    def score(self, request: Request, reply: Reply) -> ItemScore:
        """Exact match of the answer in lower case without final full stops."""
        return score_answer(self.items()[request.id], read_answer(reply.text))

    def submission(self, answers: Mapping[str, str]) -> dict[str, str]:
        """The predictions file of GQA's eval.py, converted as LLaVA's; nothing unless all are answered."""
        if absent(self.items(), answers):
            return {}
        rows = [{"questionId": key, "prediction": read_answer(answers[key])} for key in self.items()]
        return {self.file.name.replace("questions", "predictions"): json.dumps(rows)}

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Accuracy in percent: all, open (structural type query) and binary (the rest), and by type."""
        groups = [f"{kind}/{group}" for kind in TYPES for group in self._groups(kind)]
        by_group = {group: accuracy(counts, group) for group in ("open", "binary", *groups)}
        return {"accuracy": accuracy(counts), **by_group}

    def describe(self) -> list[Metric]:
        """Accuracy is the headline; then each question type."""
        title = "VQA" if self.name == "vqa" else "GQA"
        return [
            Metric("accuracy", f"{title} accuracy", "up", "percent", "short_answer", headline=True),
            Metric("open", f"{title} open", "up", "percent", "short_answer"),
            Metric("binary", f"{title} binary", "up", "percent", "short_answer"),
            *(
                Metric(f"{kind}/{group}", f"{title} {group}", "up", "percent", "short_answer")
                for kind in TYPES
                for group in self._groups(kind)
            ),
        ]

    def classes(self) -> dict[str, str]:
        """Question id -> its class, `<structural> <semantic>: <answer>`, of the questions with both types."""
        return {
            key: f"{item.types['structural']} {item.types['semantic']}: {item.answer}"
            for key, item in self.items().items()
            if {"structural", "semantic"} <= item.types.keys()
        }

    def score_answers(self, lines: Sequence[AnswerLine]) -> ScoredAnswers:
        """Score LLaVA's answer lines by its converter, or GQA's predictions, by GQA's eval.py.

        The last line of an id counts, ids that the file lacks are passed over, and a balanced question
        without an answer stops the program. `distribution` is the chi-square of answers by global group.
        """
        items = self.items()
        raw = {line.id: line.text for line in lines if isinstance(line.id, str)}
        said = {
            line.id: line.text if "prediction" in line.row else read_answer(line.text)
            for line in lines
            if isinstance(line.id, str)
        }
        given = [line.id for line in lines]
        missing = absent(items, said)
        if missing:
            raise UserError(
                f"{self.name}: {len(missing)} of {len(items)} balanced questions have no answer (first: "
                f"{missing[0]}), where the official program stops; complete the file"
            )
        scored = ScoredAnswers(
            [score_answer(item, said[item.id]) for item in items.values()],
            expected=len(items),
            answered=len(items),
            duplicate=repeated(given),
            unknown=absent(given, items),
            said=[raw[i] for i in items],
        )
        if any(item.group is not None for item in items.values()):
            scored.extra["distribution"] = distribution(items.values(), said) / 100
        return scored

    def _groups(self, kind: str) -> list[str]:
        return sorted({item.types[kind] for item in self.items().values() if item.types.get(kind)})

    def items(self) -> dict[str, GqaItem]:
        """All balanced questions by id, in file order; read once."""
        if self._items is None:
            prepare(self.files_from)
            data = read_json(self.file)
            if not isinstance(data, dict) or not data:
                raise UserError(
                    f"{self.file}: not a JSON object of questions by id; is this the official file?"
                )
            rows = [self._item(key, row) for key, row in data.items()]
            self._items = {item.id: item for item in rows if item is not None}
        return self._items

    def _image(self, item: GqaItem) -> str:
        return image_path(self.image_root, item.image + self.extension, f"{self.file}: {item.id}")

    def _item(self, key: str, row: Any) -> GqaItem | None:
        where = f"{self.file}: question {key}"
        question, answer = need(row, "question", str, where), need(row, "answer", str, where)
        types = need(row, "types", dict, where)
        grouped = need({"groups": None, **row}, "groups", (dict, NoneType), where) or {}
        if not need(row, "isBalanced", bool, where):
            return None
        image = need(row, "imageId", str, where)
        kept = {kind: need(types, kind, str, f"{where}: types") for kind in TYPES if types.get(kind)}
        group = need({"global": None, **grouped}, "global", (str, NoneType), f"{where}: groups")
        return GqaItem(key, image, question, answer, kept, group)


def read_answer(text: str) -> str:
    """Return an answer as LLaVA's converter writes it: final full stops cut, lower case; blanks stay."""
    return text.rstrip(".").lower()


def score_answer(item: GqaItem, said: str) -> ItemScore:
    """Counts of one converted answer."""
    correct = int(said == item.answer)
    parts = ["open" if item.types.get("structural") == "query" else "binary"]
    parts += [f"{kind}/{group}" for kind, group in item.types.items()]
    counts: dict[str, float] = {"questions": 1, "correct": correct}
    for part in parts:
        counts |= {f"{part}/questions": 1, f"{part}/correct": correct}
    words = len(said.split())
    return ItemScore(
        item.id,
        cluster=item.image,
        counts=counts,
        parsed=said,
        truth=item.answer,
        unparseable=words == 0 or words > MAX_WORDS,
    )


def distribution(items: Iterable[GqaItem], said: Mapping[str, str]) -> float:
    """Chi-square of answer counts, averaged over global groups by their size (GQA's eval.py).

    Questions without a group are left out; lower is better.
    """
    gold: dict[Any, Counter[str]] = defaultdict(Counter)
    predicted: dict[Any, Counter[str]] = defaultdict(Counter)
    for item in items:
        if item.group is not None:
            gold[item.group][item.answer] += 1
            predicted[item.group][said[item.id]] += 1
    total = weight = 0.0
    for group, answers in gold.items():
        size = sum(answers.values())
        total += size * sum((predicted[group][a] - n) ** 2 / n for a, n in answers.items())
        weight += size
    return total / weight
