"""LLaVA-Bench (in the wild; Liu et al. 2023), judged as LLaVA's eval_gpt_review_bench.py and
summarize_gpt_review.py do: the judge scores GPT-4's answer and the model's side by side.

Files under `root`, official:

    questions.jsonl      {question_id, image, category: conv|detail|complex, text}
    context.jsonl        {id, image, caption}
    answers_gpt4.jsonl   {question_id, text}, in the questions' order

Images are `image_root/<image>`. The judge's rules are LLaVA's table/rule.json. Answers in a file are LLaVA's
lines in the questions' order; the program's own review file ({category, content, tuple [gpt4, model]} a line)
is scored without a judge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.answers import ScoredAnswers, absent, repeated
from nsft_exp.benchmark.counting import get, percent, ratio
from nsft_exp.benchmark.judge import Ask, Judge, prompt_hash
from nsft_exp.benchmark.judged import Given, lines_in_order, whole
from nsft_exp.benchmark.reading import ask, image_path, need, numbered_lines, read_json, read_json_lines
from nsft_exp.records import Decoding, ItemScore, Metric, Reply, Request, UserError

CATEGORIES = ("conv", "detail", "complex")
PREFIX = "llava_bench_"
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
SOURCE = "llava/eval/table/rule.json of github.com/haotian-liu/LLaVA"
FAILED = (-1.0, -1.0)
"""What the official program takes for the scores of a reply that it cannot read; its means include it."""


@dataclass(frozen=True)
class Question:
    """One question with what the judge is told of it."""

    id: int | str
    image: str
    category: str
    text: str
    context: str
    gpt4: str


class LlavaBench:
    """The model's mean score relative to GPT-4's, in percent, all in one and by category."""

    def __init__(
        self,
        root: str,
        judge: Judge,
        image_root: str | None = None,
        max_new_tokens: int = 1024,
        name: str = "llavabench",
    ) -> None:
        self.root, self.judge, self.image_root = Path(root), judge, image_root
        self.max_new_tokens, self.name = max_new_tokens, name
        self._items: dict[str, Question] | None = None

    @property
    def protocol(self) -> str:
        """The judge and its rules."""
        rules = prompt_hash("".join(self._rule(category)["prompt"] for category in CATEGORIES))
        about = self.judge.about()
        return f"LLaVA-Bench (in the wild), {len(self.items())} questions, {about}, rules {rules}"

    def files(self) -> list[Path]:
        """Questions, contexts, GPT-4's answers and the judge's rules."""
        self._rules()
        names = ("questions.jsonl", "context.jsonl", "answers_gpt4.jsonl")
        return [*(self.root / name for name in names), self.judge.prompt_file(SOURCE)]

    def requests(self) -> list[Request]:
        """Every question in file order, as it is."""
        where = f"{self.root / 'questions.jsonl'}: question"
        questions = (
            (key, image_path(self.image_root, item.image, f"{where} {key}"), item.text)
            for key, item in self.items().items()
        )
        return ask(questions, Decoding(max_new_tokens=self.max_new_tokens))

    def score(self, request: Request, reply: Reply) -> None:
        """None: only the judge's replies can be scored (`judged`)."""

    def ask(self, key: str, answer: str, replies: Sequence[str]) -> Ask | None:
        """Context, question, both answers and the category's rule; once."""
        if replies:
            return None
        item = self.items()[key]
        rule = self._rule(item.category)
        text = f"[Context]\n{item.context}\n\n[Question]\n{item.text}\n\n"
        for number, said in enumerate((item.gpt4, answer), 1):
            who = f"{rule['role']} {number}"
            text += f"[{who}]\n{said}\n\n[End of {who}]\n\n"
        text += f"[System]\n{rule['prompt']}\n\n"
        return Ask((("system", SYSTEM), ("user", text)), rule["prompt"])

    def judged(self, key: str, answer: str, runs: Sequence[Sequence[str]]) -> ItemScore | None:
        """The mean of the runs' scores; a reply that cannot be read is (-1, -1). None: no finite number."""
        item = self.items()[key]
        pairs = [read_scores(replies[-1]) for replies in runs]
        return _scored(key, item.image, item.category, pairs)

    def read_graded(self, path: Path) -> ScoredAnswers | None:
        """Score the official program's review file by what it has read from the replies; None for another."""
        rows = read_json_lines(path)
        if not rows or not {"tuple", "score"} & set(rows[0]):
            return None
        scores = [s for k, row in enumerate(rows, 1) if (s := _reviewed(row, f"{path}: line {k}", str(k)))]
        known = (self.root / "questions.jsonl").is_file()
        expected: list[Any] = [item.id for item in self.items().values()] if known else []
        named = [{"question_id": "", **row} for row in rows]
        given = [need(row, "question_id", (int, str), f"{path}: line {k}") for k, row in enumerate(named, 1)]
        by_id = {score.id: rows[int(score.id) - 1] for score in scores}
        return ScoredAnswers(
            scores,
            expected=len(expected) or len(rows),
            answered=len(rows),
            missing=absent(expected, given),
            duplicate=repeated(given),
            unknown=absent(given, expected) if known else [],
            unjudged=[str(k) for k in range(1, len(rows) + 1) if str(k) not in by_id],
            judged=[{"replies": [by_id[s.id].get("content")]} for s in scores],
            protocol="LLaVA-Bench (in the wild), reviews of a file, whose judge it does not name",
        )

    def read_answers(self, path: Path) -> Given:
        """Read LLaVA's answer lines. A file that ends early is scored as far as it goes, as officially."""
        items = self.items()
        lines = lines_in_order(path, [item.id for item in items.values()], "questions.jsonl")
        texts = {str(line.id): line.text for line in lines}
        return Given(texts, len(items), missing=[key for key in items if key not in texts])

    def submission(self, answers: Mapping[str, str]) -> dict[str, str]:
        """The answers in LLaVA's lines; nothing unless every question is answered."""
        if absent(self.items(), answers):
            return {}
        rows = [
            {"question_id": item.id, "prompt": item.text, "text": answers[key], "answer_id": key}
            for key, item in self.items().items()
        ]
        return {"answers.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Percent: `relative` (model / GPT-4) over all and by category; `gpt4`, `model`: mean scores x 10.

        Means are rounded to three digits before they are divided, as officially. `*_parsed` leave the failed
        replies out, `failed` counts them.
        """
        found = {"relative": _relative(counts, "")}
        found |= {category: _relative(counts, f"{category}/") for category in CATEGORIES}
        found |= {who: ratio(get(counts, who), get(counts, "questions"), 10) for who in ("gpt4", "model")}
        return {name: whole(counts, value) for name, value in found.items()} | {
            "relative_parsed": _relative(counts, "parsed/"),
            "failed": get(counts, "failed"),
        }

    def describe(self) -> list[Metric]:
        """The relative score over all questions is the headline."""
        shown = [Metric("relative", "LLaVA-Bench", "up", "percent", "judged", headline=True)]
        shown += [Metric(c, f"LLaVA-Bench {c}", "up", "percent", "judged") for c in CATEGORIES]
        shown.append(Metric("gpt4", "LLaVA-Bench score of GPT-4", "none", "points", "judged"))
        shown.append(Metric("model", "LLaVA-Bench score of the model", "up", "points", "judged"))
        title = "LLaVA-Bench without failed replies"
        shown.append(Metric("relative_parsed", title, "up", "percent", "judged"))
        return [*shown, Metric("failed", "LLaVA-Bench failed replies", "none", "replies", "judged")]

    def items(self) -> dict[str, Question]:
        """All questions by id, in file order; read once.

        Raises UserError where GPT-4's answers stand in another order, or an image has no context.
        """
        if self._items is None:
            contexts = {need(r, "image", str, w): r for w, r in numbered_lines(self.root / "context.jsonl")}
            rows = list(numbered_lines(self.root / "questions.jsonl"))
            ids = [need(row, "question_id", (int, str), where) for where, row in rows]
            answers = lines_in_order(self.root / "answers_gpt4.jsonl", ids, "questions.jsonl")
            if len(answers) != len(rows):
                raise UserError(f"{self.root / 'answers_gpt4.jsonl'}: ends early; fetch it again")
            items = [_question(*row, contexts, a.text) for row, a in zip(rows, answers, strict=True)]
            self._items = {str(item.id): item for item in items}
        return self._items

    def _rules(self) -> dict[str, dict[str, str]]:
        path = self.judge.prompt_file(SOURCE)
        rules = read_json(path)
        for category in CATEGORIES:
            rule = need(rules, PREFIX + category, dict, str(path))
            for name in ("role", "prompt"):
                need(rule, name, str, f"{path}: {PREFIX}{category}")
        return {category: rules[PREFIX + category] for category in CATEGORIES}

    def _rule(self, category: str) -> dict[str, str]:
        return self._rules()[category]


def read_scores(text: str) -> tuple[float, float]:
    """Return (GPT-4's, the model's) score: the reply's first line, commas as blanks, exactly two numbers.

    FAILED for anything else: "8, 9" has three parts.
    """
    parts = text.split("\n")[0].replace(",", " ").split(" ")
    try:
        first, second = map(float, parts)
    except ValueError:
        return FAILED
    return first, second


def _question(where: str, row: Any, contexts: Mapping[Any, Any], gpt4: str) -> Question:
    image, category = need(row, "image", str, where), need(row, "category", str, where)
    if category not in CATEGORIES:
        raise UserError(f"{where}: category {category} is none of {', '.join(CATEGORIES)}; mend the file")
    if image not in contexts:
        raise UserError(f"{where}: context.jsonl has nothing on {image}; fetch it again")
    caption = need(contexts[image], "caption", (str, list), f"context.jsonl: {image}")
    # Joined as officially: where the caption is one text, a line for each of its characters.
    context = "\n".join(map(str, caption))
    return Question(row["question_id"], image, category, need(row, "text", str, where), context, gpt4)


def _reviewed(row: Mapping[str, Any], where: str, key: str) -> ItemScore | None:
    pair = row["tuple"] if "tuple" in row else need(row, "score", list, where)
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(x, (int, float)) for x in pair):
        raise UserError(f"{where}: its scores are not two numbers; mend the file")
    category = str(row.get("category", "")).removeprefix(PREFIX)
    return _scored(key, str(row.get("question_id", key)), category, [(float(pair[0]), float(pair[1]))])


def _scored(key: str, cluster: str, category: str, pairs: Sequence[tuple[float, float]]) -> ItemScore | None:
    """The counts of one item, each the mean over its runs."""
    if not all(math.isfinite(score) for pair in pairs for score in pair):
        return None
    runs, read = len(pairs), [pair for pair in pairs if pair != FAILED]
    counts: dict[str, float] = {"failed": runs - len(read)}
    groups = {"": pairs, "parsed/": read} | ({f"{category}/": pairs} if category else {})
    for group, found in groups.items():
        counts |= {
            f"{group}questions": len(found) / runs,
            f"{group}gpt4": sum(first for first, _ in found) / runs,
            f"{group}model": sum(second for _, second in found) / runs,
        }
    shown = "; ".join("failed" if pair == FAILED else f"{pair[0]:g} {pair[1]:g}" for pair in pairs)
    return ItemScore(key, cluster, counts, parsed=shown, unparseable=len(read) < runs)


def _relative(counts: Mapping[str, Any], group: str) -> Any:
    number = get(counts, f"{group}questions")
    gpt4, model = (_rounded(ratio(get(counts, f"{group}{who}"), number)) for who in ("gpt4", "model"))
    return percent(model, gpt4)


def _rounded(value: Any) -> Any:
    """To three digits, elementwise."""
    return value.round(3) if hasattr(value, "round") else round(value, 3)
