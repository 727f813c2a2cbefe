"""MMHal-Bench (Sun et al. 2023), judged by an LLM as LLaVA-RLHF's eval_gpt_mmhal.py does.

File under `root`, official (`file`, from the dataset's page):

    response_template.json   [{question_type, question_topic, image_id, image_src, image_content [..],
                             question, gt_answer, model_answer}], 96 records, their types in turn

Images are `image_root/<last part of image_src>` or `image_root/<image_id>.jpg`. The judge's prompt is read
from the official program. Answers in a file are such records with `model_answer`, or LLaVA's lines whose
question_id counts the records from 0; the program's own evaluation file (a list of the judge's 96 responses)
is scored without a judge.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from nsft_exp.benchmark.answers import ScoredAnswers, absent, read_answers
from nsft_exp.benchmark.counting import get
from nsft_exp.benchmark.judge import Ask, Judge, prompt_hash
from nsft_exp.benchmark.judged import Given, by_key, mean_of, read_object, whole
from nsft_exp.benchmark.reading import ask, image_path, need, need_texts, read_json
from nsft_exp.records import Decoding, ItemScore, Metric, Reply, Request, UserError

NUMBER = 96
"""Records; the official program stops at any other number."""
TYPES = (
    *("attribute", "adversarial", "comparison", "counting"),
    *("relation", "environment", "holistic", "other"),
)
"""Kinds of question: record k is of kind k modulo 8, whatever it says itself."""
HALLUCINATES_BELOW = 3
SOURCE = "Eval/eval_gpt_mmhal.py of github.com/llava-rlhf/LLaVA-RLHF"


class MmHal:
    """The judge's rating (0-6) of every answer, and the share of answers rated below 3."""

    def __init__(
        self,
        root: str,
        judge: Judge,
        image_root: str | None = None,
        file: str = "response_template.json",
        max_new_tokens: int = 1024,
        name: str = "mmhal",
    ) -> None:
        self.file, self.judge, self.image_root = Path(root) / file, judge, image_root
        self.max_new_tokens, self.name = max_new_tokens, name
        self._items: dict[str, dict[str, Any]] | None = None

    @property
    def protocol(self) -> str:
        """The judge and its prompt."""
        return f"MMHal-Bench, {self.judge.about()}, prompt {prompt_hash(self._template())}"

    def files(self) -> list[Path]:
        """The records and the file with the judge's prompt."""
        self._template()
        return [self.file, self.judge.prompt_file(SOURCE)]

    def requests(self) -> list[Request]:
        """Every question in file order, as it is."""
        questions = ((key, self._image(key, item), item["question"]) for key, item in self.items().items())
        return ask(questions, Decoding(max_new_tokens=self.max_new_tokens))

    def score(self, request: Request, reply: Reply) -> None:
        """None: only the judge's replies can be scored (`judged`)."""

    def ask(self, key: str, answer: str, replies: Sequence[str]) -> Ask | None:
        """The official prompt, filled with image content, question, human answer and this answer; once."""
        if replies:
            return None
        item, template = self.items()[key], self._template()
        content = ", ".join(item["image_content"])
        text = template.format(content, item["question"], item["gt_answer"], answer)
        return Ask((("user", text),), template)

    def judged(self, key: str, answer: str, runs: Sequence[Sequence[str]]) -> ItemScore:
        """The mean of the runs' ratings; a reply without one rating, or with several, is 0."""
        return self._scored(key, [read_rating(replies[-1]) for replies in runs])

    def read_graded(self, path: Path) -> ScoredAnswers | None:
        """Score the official program's evaluation file; None for another file.

        Raises UserError unless it holds 96 responses of the protocol.
        """
        rows = read_object(path)
        if not isinstance(rows, list) or not all(isinstance(r, dict) and "choices" in r for r in rows):
            return None
        _check_number(path, rows)
        said = [_content(row, f"{path}: record {k}") for k, row in enumerate(rows)]
        keys = list(map(str, range(NUMBER)))
        judges = ", ".join(sorted({str(row.get("model", "a judge without a name")) for row in rows}))
        return ScoredAnswers(
            [self._scored(key, [read_rating(text)]) for key, text in zip(keys, said, strict=True)],
            expected=NUMBER,
            answered=NUMBER,
            judged=[{"replies": [text]} for text in said],
            protocol=f"MMHal-Bench, replies of a file by {judges}",
        )

    def read_answers(self, path: Path) -> Given:
        """Read records with `model_answer`, or LLaVA's answer lines. UserError where the program stops."""
        rows = read_object(path)
        if not (isinstance(rows, list) and rows and "model_answer" in rows[0]):
            lines = [(str(line.id), line.text) for line in read_answers(path)]
            return by_key(lines, list(self.items()), path)
        _check_number(path, rows)
        texts = {}
        for (key, item), row in zip(self.items().items(), rows, strict=True):
            where = f"{path}: record {key}"
            texts[key] = need(row, "model_answer", str, where)
            if need(row, "question", str, where) != item["question"]:
                raise UserError(f"{where}: asks another question than {self.file}; take one version of both")
        return Given(texts, NUMBER)

    def submission(self, answers: Mapping[str, str]) -> dict[str, str]:
        """The response file that the official program takes; nothing unless every question is answered."""
        if absent(self.items(), answers):
            return {}
        rows = [{**item, "model_answer": answers[key]} for key, item in self.items().items()]
        return {"response.json": json.dumps(rows, indent=2)}

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """`score` (0-6), `hallucination` (percent), the score by type of question.

        `score_parsed` and `hallucination_parsed` leave the failed replies out, `failed` counts them.
        """
        found = {
            "score": mean_of(counts, "score", "questions"),
            "hallucination": mean_of(counts, "hallucinated", "questions", 100),
            **{kind: mean_of(counts, f"{kind}/score", f"{kind}/questions") for kind in TYPES},
        }
        return {name: whole(counts, value) for name, value in found.items()} | {
            "score_parsed": mean_of(counts, "score", "parsed"),  # a failed reply adds nothing to the sum
            "hallucination_parsed": mean_of(counts, "parsed_hallucinated", "parsed", 100),
            "failed": get(counts, "failed"),
        }

    def describe(self) -> list[Metric]:
        """Score and hallucination rate are the headlines."""
        return [
            Metric("score", "MMHal score", "up", "points", "judged", headline=True),
            Metric("hallucination", "MMHal hallucination rate", "down", "percent", "judged", headline=True),
            *(Metric(kind, f"MMHal {kind}", "up", "points", "judged") for kind in TYPES),
            Metric("score_parsed", "MMHal score without failed replies", "up", "points", "judged"),
            Metric("hallucination_parsed", "MMHal rate without failed replies", "down", "percent", "judged"),
            Metric("failed", "MMHal failed replies", "none", "replies", "judged"),
        ]

    def items(self) -> dict[str, dict[str, Any]]:
        """All records by their number from 0, in file order; read once. UserError unless they are 96."""
        if self._items is None:
            rows = read_json(self.file)
            if not isinstance(rows, list):
                raise UserError(f"{self.file}: is no list of records; is this the official file?")
            _check_number(self.file, rows)
            for number, row in enumerate(rows):
                where = f"{self.file}: record {number}"
                for name in ("question", "gt_answer", "image_id", "image_src"):
                    need(row, name, str, where)
                need_texts(row, "image_content", where)
            self._items = {str(number): row for number, row in enumerate(rows)}
        return self._items

    def _image(self, key: str, item: Mapping[str, Any]) -> str:
        where = f"{self.file}: record {key}"
        names = [PurePosixPath(item["image_src"]).name, f"{item['image_id']}.jpg"]
        paths = [image_path(self.image_root, name, where) for name in names if name]
        return next((path for path in paths if Path(path).is_file()), paths[0])

    def _template(self) -> str:
        template = self.judge.template("template", SOURCE)
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
        except ValueError:
            fields = []
        if fields != [""] * 4:
            raise UserError(f"{self.judge.path}: has not the four places {{}} of MMHal-Bench's prompt")
        return template

    def _scored(self, key: str, ratings: Sequence[int | None]) -> ItemScore:
        """The counts of one item, each the mean over its runs."""
        runs, read = len(ratings), [rating for rating in ratings if rating is not None]
        low = sum(rating < HALLUCINATES_BELOW for rating in read)
        failed, score = runs - len(read), sum(read) / runs
        kind = TYPES[int(key) % len(TYPES)]
        counts = {
            "questions": 1,
            "score": score,
            "hallucinated": (low + failed) / runs,
            "parsed": len(read) / runs,
            "parsed_hallucinated": low / runs,
            "failed": failed,
            f"{kind}/questions": 1,
            f"{kind}/score": score,
        }
        shown = " ".join("failed" if rating is None else str(rating) for rating in ratings)
        return ItemScore(key, self._cluster(key), counts, parsed=shown, unparseable=failed > 0)

    def _cluster(self, key: str) -> str:
        """The image's name; without the official file, the record's number."""
        return str(self.items()[key]["image_id"]) if self.file.is_file() else key


def read_rating(text: str) -> int | None:
    """Return the only rating of a reply: the one s from 0 to 6 with "rating: s" in it in any case; else None.

    So "Rating: 10" reads as 1, "Rating:5" and "Rating: 5 ... rating: 3" as nothing, as officially.
    """
    found = [rating for rating in range(7) if f"rating: {rating}" in text.lower()]
    return found[0] if len(found) == 1 else None


def _content(row: Mapping[str, Any], where: str) -> str:
    choices = need(row, "choices", list, where)
    message = need(choices[0] if choices else None, "message", dict, where)
    return str(need(message, "content", str, where))


def _check_number(path: Path, rows: Sequence[Any]) -> None:
    if len(rows) != NUMBER:
        raise UserError(
            f"{path}: {len(rows)} records, not {NUMBER}; the official program stops: complete the file"
        )
