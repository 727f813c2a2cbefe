"""TextVQA validation (Singh et al. 2019), scored as LLaVA's eval_textvqa.py and mmf's m4c evaluator do.

Files under `root`:

    TextVQA_0.5.1_val.json                 {data [{question_id, image_id, question, answers [10]}]}
    llava_textvqa_val_v051_ocr.jsonl       LLaVA's questions, with OCR tokens: JSON lines {question_id: the
                                           *image* id, image, text}; used where present and `ocr` is true
    TextVQA_Rosetta_OCR_v0.2_val.json      else the tokens: {data [{image_id, ocr_tokens}]}

Images are `image_root/<image_id>.jpg`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.answers import AnswerLine, ScoredAnswers
from nsft_exp.benchmark.counting import get, percent
from nsft_exp.benchmark.prompts import SHORT_ANSWER
from nsft_exp.benchmark.reading import (
    MakesFiles,
    ask,
    image_path,
    need,
    numbered_lines,
    numbered_rows,
    prepare,
    read_json,
)
from nsft_exp.benchmark.vqa_text import normalise_m4c, soft_accuracy
from nsft_exp.records import Decoding, ItemScore, Metric, Reply, Request, UserError

ANSWERS = 10
OCR_LINE = "Reference OCR token: "

Key = tuple[str, str]
"""(image id, question in lower case): what answers are joined on."""


@dataclass(frozen=True)
class TextVqaItem:
    """One question with the answers of ten people, in normal form."""

    id: str
    image: str
    question: str
    answers: tuple[str, ...]

    @property
    def key(self) -> Key:
        """What answers are joined on."""
        return self.image, self.question.lower()


class TextVqa:
    """Soft accuracy of short answers about the text in an image, with or without its OCR tokens."""

    def __init__(
        self,
        root: str,
        image_root: str | None = None,
        ocr: bool = True,
        max_new_tokens: int = 128,
        files_from: MakesFiles | None = None,
        name: str = "textvqa",
    ) -> None:
        """`ocr`: ask with LLaVA's line of Rosetta OCR tokens (the published 58.2 is with it)."""
        self.name, self.ocr, self.max_new_tokens = name, ocr, max_new_tokens
        self.root, self.image_root, self.files_from = Path(root), image_root, files_from
        self._items: dict[str, TextVqaItem] | None = None
        self._by_key: dict[Key, TextVqaItem] = {}

    @property
    def protocol(self) -> str:
        """The rule and the data version."""
        return self._protocol("with OCR tokens" if self.ocr else "without OCR tokens")

    def _protocol(self, tokens: str) -> str:
        return f"TextVQA m4c soft accuracy, LLaVA prompt {tokens}; 0.5.1 val, {len(self.items())} questions"

    def files(self) -> list[Path]:
        """The annotations, and where the OCR tokens come from."""
        prepare(self.files_from)
        return [self._annotations, *([self._token_file()] if self.ocr else [])]

    def requests(self) -> list[Request]:
        """Every question in file order; ids are TextVQA's question ids."""
        texts = self._texts()
        questions = ((key, self._image(item), texts[item.key]) for key, item in self.items().items())
        return ask(questions, Decoding(max_new_tokens=self.max_new_tokens))

    def score(self, request: Request, reply: Reply) -> ItemScore:
        """Soft accuracy of one answer."""
        item = self.items()[request.id]
        return score_answer(self._by_key[item.key], reply.text, item.id)

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Accuracy in percent."""
        return {"accuracy": percent(get(counts, "score"), get(counts, "questions"))}

    def describe(self) -> list[Metric]:
        """One number."""
        return [Metric("accuracy", "TextVQA", "up", "percent", "short_answer", headline=True)]

    def score_answers(self, lines: Sequence[AnswerLine]) -> ScoredAnswers:
        """Score LLaVA's answer lines: the question is read back from the line's prompt.

        As in the official program every line counts, a repeated one too, the mean is over the lines, and a
        line whose image and question are not in the annotations stops it.
        """
        items = self.items()
        scores: list[ItemScore] = []
        given: list[Key] = []
        for line in lines:
            key = line.id, question_of(line)
            if key not in self._by_key:
                raise UserError(
                    f"{line.where}: image {line.id!r} has no question {key[1]!r} in {self._annotations}"
                )
            item = self._by_key[key]
            given.append(item.key)
            scores.append(score_answer(item, line.text, item.id))
        asked = Counter(item.key for item in items.values())
        answered = Counter(given)
        ids = {item.key: item.id for item in items.values()}
        return ScoredAnswers(
            scores,
            expected=len(items),
            answered=sum(min(times, answered[key]) for key, times in asked.items()),
            missing=[ids[key] for key, times in asked.items() if answered[key] < times],
            duplicate=[ids[key] for key, times in answered.items() if times > asked[key]],
            said=[line.text for line in lines],
            protocol=self._protocol(_tokens_in(lines)),
        )

    def items(self) -> dict[str, TextVqaItem]:
        """All questions by id, in file order; read once."""
        if self._items is None:
            prepare(self.files_from)
            rows = numbered_rows(read_json(self._annotations), "data", self._annotations, "data")
            items = [self._item(where, row) for where, row in rows]
            self._items = {item.id: item for item in items}
            self._by_key = {item.key: item for item in items}  # of two alike the last one's answers count
        return self._items

    def _item(self, where: str, row: Any) -> TextVqaItem:
        answers = need(row, "answers", list, where)
        if len(answers) != ANSWERS or not all(isinstance(a, str) for a in answers):
            raise UserError(f"{where}: {len(answers)} answers, not {ANSWERS} texts; give the validation file")
        return TextVqaItem(
            str(need(row, "question_id", (int, str), where)),
            need(row, "image_id", str, where),
            need(row, "question", str, where),
            tuple(normalise_m4c(a) for a in answers),
        )

    def _image(self, item: TextVqaItem) -> str:
        return image_path(self.image_root, f"{item.image}.jpg", f"{self._annotations}: {item.id}")

    @property
    def _annotations(self) -> Path:
        return self.root / "TextVQA_0.5.1_val.json"

    def _token_file(self) -> Path:
        llava = self.root / "llava_textvqa_val_v051_ocr.jsonl"
        return llava if llava.exists() else self.root / "TextVQA_Rosetta_OCR_v0.2_val.json"

    def _texts(self) -> dict[Key, str]:
        """Each question's prompt by key."""
        items = self.items().values()
        if not self.ocr:
            return {item.key: _sentence(item.question) + SHORT_ANSWER for item in items}
        path = self._token_file()
        if path.suffix == ".jsonl":
            texts = self._llava_texts(path)
        else:
            tokens = self._rosetta(path)
            texts = {
                item.key: f"{_sentence(item.question)}\n{OCR_LINE}"
                + ", ".join(tokens[item.image])
                + SHORT_ANSWER
                for item in items
            }
        lacking = [item.id for item in items if item.key not in texts]
        if lacking:
            raise UserError(
                f"{path}: has no line for question {lacking[0]} ({len(lacking)} lacking); fetch it again"
            )
        return texts

    def _llava_texts(self, path: Path) -> dict[Key, str]:
        texts = {}
        for where, row in numbered_lines(path):
            text, image = need(row, "text", str, where), need(row, "question_id", str, where)
            texts[image, question_of(AnswerLine(where, image, "", text))] = text
        return texts

    def _rosetta(self, path: Path) -> dict[str, list[str]]:
        tokens: dict[str, list[str]] = defaultdict(list)
        for where, row in numbered_rows(read_json(path), "data", path, "data"):
            tokens[need(row, "image_id", str, where)] = need(row, "ocr_tokens", list, where)
        return tokens


def question_of(line: AnswerLine) -> str:
    """Return the question, in lower case, that a line's prompt asks (with or without an OCR line)."""
    rows = line.prompt.split("\n")
    if line.prompt.startswith("OCR tokens: "):
        match = re.search(r"Question: (.*?) Short answer:", line.prompt, re.DOTALL)
        if match:
            return match.group(1).lower()
    elif OCR_LINE in line.prompt and len(rows) == 3:
        return rows[1 if line.prompt.startswith(OCR_LINE.strip()) else 0].lower()
    elif len(rows) == 2:
        return rows[0].lower()
    raise UserError(
        f"{line.where}: its `prompt` is in none of LLaVA's TextVQA forms; the official program stops"
    )


def _tokens_in(lines: Sequence[AnswerLine]) -> str:
    """Whether the prompts that were answered had OCR tokens."""
    forms = {"OCR token" in line.prompt for line in lines}
    if len(forms) > 1:
        return "with OCR tokens in some lines"
    return "with OCR tokens" if forms == {True} else "without OCR tokens"


def score_answer(item: TextVqaItem, text: str, key: str) -> ItemScore:
    """Counts of one answer."""
    said = normalise_m4c(text)
    return ItemScore(
        key,
        cluster=item.image,
        counts={"questions": 1, "score": soft_accuracy(said, item.answers)},
        parsed=said,
        truth=", ".join(dict.fromkeys(item.answers)),
        unparseable=not text.strip(),
    )


def _sentence(question: str) -> str:
    return question[:1].upper() + question[1:]
