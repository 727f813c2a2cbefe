"""VQAv2 (Goyal et al. 2017), scored as vqaEval.py does after LLaVA's conversion of answers.

Files under `root`, official:

    v2_OpenEnded_mscoco_<split>_questions.json   {questions [{question_id, image_id, question}]}
    v2_mscoco_<split>_annotations.json           {annotations [{question_id, question_type, answer_type,
                                                 answers [{answer}] x 10}]}

The test splits have no annotations: they give requests (and an upload file), no scores. Images are
`image_root/COCO_<split>_<image_id, 12 digits>.jpg`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.answers import AnswerLine, ScoredAnswers, absent, repeated
from nsft_exp.benchmark.counting import get, percent
from nsft_exp.benchmark.prompts import SHORT_ANSWER
from nsft_exp.benchmark.reading import (
    MakesFiles,
    ask,
    image_path,
    need,
    numbered_rows,
    prepare,
    read_json,
)
from nsft_exp.benchmark.vqa_text import normalise_m4c, vqa_accuracy
from nsft_exp.records import Decoding, ItemScore, Metric, Reply, Request, UserError

CONVERTED = " after LLaVA's m4c conversion"


@dataclass(frozen=True)
class VqaItem:
    """One question; without answers on a test split."""

    id: int
    image: int
    question: str
    answers: tuple[str, ...] = ()
    answer_type: str = ""
    question_type: str = ""
    """The question's first words, as the annotations have them (`what color is the`)."""


class Vqav2:
    """Soft accuracy of short answers, by answer type."""

    def __init__(
        self,
        root: str,
        image_root: str | None = None,
        split: str = "val2014",
        max_new_tokens: int = 128,
        files_from: MakesFiles | None = None,
        name: str = "vqav2",
    ) -> None:
        """`split`: val2014, or test2015 or test-dev2015 (no scores)."""
        self.name, self.split, self.max_new_tokens = name, split, max_new_tokens
        self.root, self.image_root, self.files_from = Path(root), image_root, files_from
        self._items: dict[str, VqaItem] | None = None

    @property
    def protocol(self) -> str:
        """The rule and the split."""
        return f"VQAv2 vqaEval.py{CONVERTED}; {self.split}, {len(self.items())} questions"

    def files(self) -> list[Path]:
        """The questions, and the annotations where there are any."""
        prepare(self.files_from)
        return [self._questions, *([self._annotations] if self._annotations.exists() else [])]

    def requests(self) -> list[Request]:
        """Every question in file order."""
        questions = (
            (key, self._image(item), item.question + SHORT_ANSWER) for key, item in self.items().items()
        )
        return ask(questions, Decoding(max_new_tokens=self.max_new_tokens))

    def score(self, request: Request, reply: Reply) -> ItemScore | None:
        """Soft accuracy of one answer, converted as for LLaVA's upload; None on a test split."""
        item = self.items()[request.id]
        return score_answer(item, normalise_m4c(reply.text)) if item.answers else None

    def submission(self, answers: Mapping[str, str]) -> dict[str, str]:
        """The results file of VQA's server, converted as LLaVA's; nothing unless every question is answered.

        On test-dev2015 its server wants all of test2015: where that question file is there too, its other
        questions are answered with nothing, as in LLaVA's upload.
        """
        if absent(self.items(), answers):
            return {}
        said = {item.id: normalise_m4c(answers[key]) for key, item in self.items().items()}
        whole = self.root / "v2_OpenEnded_mscoco_test2015_questions.json"
        if self.split == "test-dev2015" and whole.exists():
            rows = numbered_rows(read_json(whole), "questions", whole, "question")
            said = {need(row, "question_id", int, where): "" for where, row in rows} | said
        results = [{"question_id": key, "answer": text} for key, text in said.items()]
        return {f"v2_OpenEnded_mscoco_{self.split}_results.json": json.dumps(results)}

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Accuracy in percent, all and by answer type."""
        result = {"accuracy": percent(get(counts, "score"), get(counts, "questions"))}
        for kind in ("yes/no", "number", "other"):
            result[kind] = percent(get(counts, f"{kind}/score"), get(counts, f"{kind}/questions"))
        return result

    def classes(self) -> dict[str, str]:
        """Question id -> its class, `<question type>: <most frequent answer>`; empty on a test split."""
        return {
            key: f"{item.question_type}: {Counter(item.answers).most_common(1)[0][0]}"
            for key, item in self.items().items()
            if item.answers and item.question_type
        }

    def describe(self) -> list[Metric]:
        """Accuracy is the headline."""
        return [
            Metric("accuracy", "VQAv2", "up", "percent", "short_answer", headline=True),
            *(
                Metric(kind, f"VQAv2 {kind}", "up", "percent", "short_answer")
                for kind in ("yes/no", "number", "other")
            ),
        ]

    def score_answers(self, lines: Sequence[AnswerLine]) -> ScoredAnswers:
        """Score a results JSON ({question_id, answer}) by vqaEval.py, or LLaVA's lines after its converter.

        The last answer of an id counts. In a results file an unknown or a missing id stops the official
        program; LLaVA's converter passes unknown ids over and answers a missing one with nothing.
        """
        items = {item.id: item for item in self.items().values()}
        if not all(item.answers for item in items.values()):
            raise UserError(f"{self._annotations}: no annotations of {self.split}; its server scores it")
        given = [line.id for line in lines]
        from_llava = any("text" in line.row for line in lines)
        missing, unknown = absent(items, given), absent(given, items)
        if not from_llava and (missing or unknown):
            which = (
                f"question {unknown[0]} is not in {self._questions}"
                if unknown
                else f"{missing[0]} is missing"
            )
            raise UserError(
                f"{lines[0].where}: {which}, where the official program stops; correct the results"
            )
        said = dict.fromkeys(missing, "") | {line.id: line.text for line in lines if line.id in items}
        scores = [
            score_answer(item, normalise_m4c(said[i]) if from_llava else said[i]) for i, item in items.items()
        ]
        return ScoredAnswers(
            scores,
            expected=len(items),
            answered=len(items) - len(missing),
            missing=missing,
            duplicate=repeated(given),
            unknown=unknown,
            said=[said[i] for i in items],
            protocol="" if from_llava else self.protocol.replace(CONVERTED, ""),
        )

    def items(self) -> dict[str, VqaItem]:
        """All questions by id, in file order; read once."""
        if self._items is None:
            prepare(self.files_from)
            marked = self._read_annotations() if self._annotations.exists() else {}
            items = {}
            data = read_json(self._questions)
            for where, row in numbered_rows(data, "questions", self._questions, "question"):
                key = need(row, "question_id", int, where)
                image, text = need(row, "image_id", int, where), need(row, "question", str, where)
                if marked and key not in marked:
                    raise UserError(f"{where}: {key} is not in {self._annotations}; give files of one split")
                items[str(key)] = VqaItem(key, image, text, *marked.get(key, ()))
            lacking = absent(marked, [item.id for item in items.values()])
            if lacking:
                raise UserError(
                    f"{self._annotations}: {lacking[0]} is not in {self._questions}; give files of one split"
                )
            self._items = items
        return self._items

    def _read_annotations(self) -> dict[int, tuple[tuple[str, ...], str, str]]:
        marked = {}
        data = read_json(self._annotations)
        for where, row in numbered_rows(data, "annotations", self._annotations, "annotation"):
            answers = tuple(need(a, "answer", str, where) for a in need(row, "answers", list, where))
            if not answers:
                raise UserError(f"{where}: no answers; fetch the file again")
            kind = need({"question_type": "", **row}, "question_type", str, where)
            marked[need(row, "question_id", int, where)] = answers, need(row, "answer_type", str, where), kind
        return marked

    def _image(self, item: VqaItem) -> str:
        images = "test2015" if self.split.startswith("test") else self.split
        name = f"COCO_{images}_{item.image:012d}.jpg"
        return image_path(self.image_root, name, f"{self.name}: {item.id}")

    @property
    def _questions(self) -> Path:
        return self.root / f"v2_OpenEnded_mscoco_{self.split}_questions.json"

    @property
    def _annotations(self) -> Path:
        return self.root / f"v2_mscoco_{self.split}_annotations.json"


def score_answer(item: VqaItem, said: str) -> ItemScore:
    """Counts of one converted answer."""
    score, kind = vqa_accuracy(said, item.answers), item.answer_type
    return ItemScore(
        str(item.id),
        cluster=str(item.image),
        counts={"questions": 1, "score": score, f"{kind}/questions": 1, f"{kind}/score": score},
        parsed=said,
        truth=", ".join(dict.fromkeys(item.answers)),
        unparseable=not said.strip(),
    )
