"""MM-Vet (Yu et al. 2023), judged by an LLM as its mm-vet_evaluator.py does.

File under `root`, official:

    mm-vet.json   {"v1_0": {imagename, question, answer ("-1<AND>-5", "a<OR>b"), capability [rec ocr know gen
                  spat math]}}

Images are `image_root/<imagename>`. The judge's few-shot prompt is read from the official program. Answers in
a file are LLaVA's lines (question_id k is v1_k) or {"v1_k": text}; the program's own grade file ({"v1_k":
{model [..], content [..], score [..]}}, one entry a run) is scored without a judge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.answers import ScoredAnswers, absent, read_answers
from nsft_exp.benchmark.counting import get
from nsft_exp.benchmark.judge import Ask, Judge, prompt_hash
from nsft_exp.benchmark.judged import Given, by_key, mean_of, read_object, whole
from nsft_exp.benchmark.reading import ask, image_path, need, need_texts, read_json
from nsft_exp.records import Decoding, ItemScore, Metric, Reply, Request, UserError

TRIES = 5
"""Replies that are read of one run. (The official program asks once more and does not read that.)"""
AGAIN = "\nPredict the correctness of the answer (digit): "
SOURCE = "mm-vet_evaluator.py of github.com/yuweihao/MM-Vet"
CAPABILITIES = {
    "rec": "recognition",
    "ocr": "OCR",
    "know": "knowledge",
    "gen": "generation",
    "spat": "spatial",
    "math": "math",
}


class MmVet:
    """The judge's correctness (0-1) of every answer: total and by capability, in percent."""

    def __init__(
        self,
        root: str,
        judge: Judge,
        image_root: str | None = None,
        max_new_tokens: int = 1024,
        name: str = "mmvet",
    ) -> None:
        self.file, self.judge, self.image_root = Path(root) / "mm-vet.json", judge, image_root
        self.max_new_tokens, self.name = max_new_tokens, name
        self._items: dict[str, dict[str, Any]] | None = None

    @property
    def protocol(self) -> str:
        """The judge, its prompt and how often it was asked."""
        prompt = prompt_hash(self._template())
        return f"MM-Vet, {len(self.items())} questions, {self.judge.about()}, prompt {prompt}"

    def files(self) -> list[Path]:
        """The questions and the file with the judge's prompt."""
        self._template()
        return [self.file, self.judge.prompt_file(SOURCE)]

    def requests(self) -> list[Request]:
        """Every question in file order, as it is."""
        questions = (
            (key, image_path(self.image_root, item["imagename"], f"{self.file}: {key}"), item["question"])
            for key, item in self.items().items()
        )
        return ask(questions, Decoding(max_new_tokens=self.max_new_tokens))

    def score(self, request: Request, reply: Reply) -> None:
        """None: only the judge's replies can be scored (`judged`)."""

    def ask(self, key: str, answer: str, replies: Sequence[str]) -> Ask | None:
        """The few-shot table with this answer; after a reply that is no grade once more, asked for a digit.

        The first time again at the same temperature, then 0.5 warmer each time, as the official program does.
        """
        if replies and (read_grade(replies[-1]) is not None or len(replies) == TRIES):
            return None
        item, template = self.items()[key], self._template()
        truth = item["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        text = f"{template}\n{item['question']} | {truth} | {answer} | {AGAIN if replies else ''}"
        return Ask((("user", text),), template, 0.5 * max(0, len(replies) - 1))

    def judged(self, key: str, answer: str, runs: Sequence[Sequence[str]]) -> ItemScore | None:
        """Read each run's last reply; five that are no grade are 0. None for a grade that is no number."""
        grades = [read_grade(replies[-1]) for replies in runs]
        return self._scored(key, [grade or 0.0 for grade in grades], [grade is None for grade in grades])

    def read_graded(self, path: Path) -> ScoredAnswers | None:
        """Score the official program's grade file, its first `judge.runs` runs; None for another file.

        A question that it lacks was not judged. Raises UserError for ids that mm-vet.json lacks.
        """
        rows = read_object(path)
        if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
            return None
        unknown = absent(rows, self.items())
        if unknown:
            raise UserError(f"{path}: {unknown[0]} is not in {self.file}; the official program stops there")
        scores: list[ItemScore] = []
        models: set[str] = set()
        for key in self.items():
            grades, contents = self._grades(f"{path}: {key}", rows.get(key))
            if len(grades) == self.judge.runs:
                failed = [g == 0 and read_grade(c) != 0 for g, c in zip(grades, contents, strict=True)]
                score = self._scored(key, grades, failed)
                scores += [score] if score else []
                models |= set(map(str, need({"model": [], **rows[key]}, "model", list, f"{path}: {key}")))
        graded = {score.id for score in scores}
        judges = ", ".join(sorted(models)) or "a judge without a name"
        return ScoredAnswers(
            scores,
            expected=len(self.items()),
            answered=len(scores),
            unjudged=[key for key in self.items() if key not in graded],
            judged=[rows[score.id] for score in scores],
            protocol=f"MM-Vet, {len(self.items())} questions, grades of a file by {judges}, "
            f"runs: {self.judge.runs}",
        )

    def read_answers(self, path: Path) -> Given:
        """Read LLaVA's answer lines or {"v1_k": text}. UserError where the official program stops."""
        rows = read_object(path)
        if isinstance(rows, dict) and "question_id" not in rows:
            pairs = [(key, need(rows, key, str, str(path))) for key in rows]
        else:
            pairs = [(_key(line.id), line.text) for line in read_answers(path)]
        return by_key(pairs, list(self.items()), path)

    def submission(self, answers: Mapping[str, str]) -> dict[str, str]:
        """The results file of the official evaluators; nothing unless every question is answered."""
        if absent(self.items(), answers):
            return {}
        return {"mm-vet.json": json.dumps({key: answers[key] for key in self.items()}, indent=1)}

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Percent: total and by capability (an item counts in each of its own), and by set of capabilities.

        `total_parsed` leaves the failed replies out, `failed` counts them, `std` is the runs' (population).
        """
        groups = sorted(key.partition("/")[0] for key in counts if key.endswith("/questions"))
        found = {"total": mean_of(counts, "score", "questions", 100)}
        found |= {g: mean_of(counts, f"{g}/score", f"{g}/questions", 100) for g in groups}
        if self.judge.runs > 1:
            runs = [mean_of(counts, f"run{k}", "questions", 100) for k in range(self.judge.runs)]
            mean = sum(runs) / len(runs)
            found["std"] = (sum((run - mean) ** 2 for run in runs) / len(runs)) ** 0.5
        found = {name: whole(counts, value) for name, value in found.items()}
        parsed = mean_of(counts, "parsed_score", "parsed", 100)
        return found | {"total_parsed": parsed, "failed": get(counts, "failed")}

    def describe(self) -> list[Metric]:
        """The total is the headline."""
        shown = [Metric("total", "MM-Vet", "up", "percent", "judged", headline=True)]
        shown += [Metric(c, f"MM-Vet {word}", "up", "percent", "judged") for c, word in CAPABILITIES.items()]
        shown.append(Metric("total_parsed", "MM-Vet without failed replies", "up", "percent", "judged"))
        return [*shown, Metric("failed", "MM-Vet failed replies", "none", "replies", "judged")]

    def items(self) -> dict[str, dict[str, Any]]:
        """All questions by id, in file order; read once."""
        if self._items is None:
            data = read_json(self.file)
            if not isinstance(data, dict) or not data:
                raise UserError(f"{self.file}: is no object of questions; is this the official file?")
            for key, item in data.items():
                where = f"{self.file}: {key}"
                for name in ("imagename", "question", "answer"):
                    need(item, name, str, where)
                need_texts(item, "capability", where)
            self._items = data
        return self._items

    def _template(self) -> str:
        return self.judge.template("prompt", SOURCE)

    def _grades(self, where: str, row: Mapping[str, Any] | None) -> tuple[list[float], list[str]]:
        """The runs' grades and what the judge said in each; fewer than the runs where some are lacking."""
        if row is None:
            return [], []
        grades = need(row, "score", list, where)[: self.judge.runs]
        contents = [str(c) for c in need(row, "content", list, where)[: self.judge.runs]]
        if not all(isinstance(g, (int, float)) and not isinstance(g, bool) for g in grades):
            raise UserError(f"{where}: `score` holds something else than numbers; mend the file")
        return [float(g) for g in grades], contents + [""] * (len(grades) - len(contents))

    def _scored(self, key: str, grades: Sequence[float], failed: Sequence[bool]) -> ItemScore | None:
        if any(math.isnan(grade) for grade in grades):
            return None
        item, score = self.items()[key], sum(grades) / len(grades)
        caps = sorted(set(item["capability"]))
        counts: dict[str, float] = {"questions": 1, "score": score, "failed": sum(failed)}
        counts |= {
            "parsed": len(failed) - sum(failed),
            "parsed_score": sum(g for g, no in zip(grades, failed, strict=True) if not no),
        }
        for group in (*caps, "set_" + "_".join(caps)):
            counts |= {f"{group}/questions": 1, f"{group}/score": score}
        if len(grades) > 1:
            counts |= {f"run{k}": grade for k, grade in enumerate(grades)}
        read = " ".join("failed" if no else f"{g:g}" for g, no in zip(grades, failed, strict=True))
        return ItemScore(
            key, item["imagename"], counts, parsed=read, truth=item["answer"], unparseable=any(failed)
        )


def read_grade(text: str) -> float | None:
    """Return the grade of a reply: what stands before its first space, a number from 0 to 1; else None.

    Python's `float` decides what a number is; it takes `nan` too, as the official program does.
    """
    try:
        grade = float(text.split(" ")[0].strip())
    except ValueError:
        return None
    return None if grade > 1 or grade < 0 else grade


def _key(key: int | str) -> str:
    return key if isinstance(key, str) and key.startswith("v1_") else f"v1_{key}"
