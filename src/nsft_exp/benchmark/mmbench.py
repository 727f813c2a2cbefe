"""MMBench dev (Liu et al. 2023): every question with its options rotated, scored as VLMEvalKit does.

File under `root`, official: the only *.tsv there (mmbench_dev_20230712.tsv of LLaVA, MMBench_DEV_EN.tsv, the
Chinese ones ...), tab-separated and quoted, columns

    index, question, hint, A, B, C, D, answer, category, image (base64), l2-category, ...

Pass k of a question has index + k * 1,000,000; its `image` may be the base index instead of an image. The
images are written to `image_root/<base index>.jpg` when they are first asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from nsft_exp.benchmark.answers import AnswerLine, ScoredAnswers, absent, repeated
from nsft_exp.benchmark.counting import accuracy, get, percent
from nsft_exp.benchmark.mmbench_file import MmbItem, read_rows, write_image
from nsft_exp.benchmark.prompts import OPTION_LETTER
from nsft_exp.benchmark.reading import MakesFiles, ask, prepare
from nsft_exp.records import Decoding, ItemScore, Metric, Reply, Request, UserError

OPTION_LETTER_CN = "\n请直接回答选项字母。"
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
NOTHING = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A")
) | {"NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
"""Answers that pandas reads back from the upload file as no value; the official rule then reads "nan"."""
Rules = Literal["2024-03", "2025-08"]


class MmBench:
    """Circular accuracy: a question counts as right only if every rotation of its options does."""

    def __init__(
        self,
        root: str,
        image_root: str | None = None,
        language: Literal["en", "cn"] = "en",
        rules: Rules = "2024-03",
        max_new_tokens: int = 1024,
        files_from: MakesFiles | None = None,
        name: str = "mmbench",
    ) -> None:
        """`rules`: since 2025-08 VLMEvalKit reads a letter only near the end and option texts only in short
        answers. Without an LLM an answer that no rule reads is wrong ("exact matching")."""
        if rules not in ("2024-03", "2025-08"):
            raise UserError(f"benchmark.rules: `{rules}` is not known to MMBench; use 2024-03 or 2025-08")
        self.name, self.language, self.rules = name, language, rules
        self.root, self.image_root, self.files_from = Path(root), image_root, files_from
        self.max_new_tokens = max_new_tokens
        self._items: dict[str, MmbItem] | None = None
        self._images: dict[int, str] = {}

    @property
    def protocol(self) -> str:
        """The rule and the file with its numbers of questions and rows."""
        groups = len({item.base for item in self.items().values()})
        return (
            f"MMBench circular, letters by VLMEvalKit's rules of {self.rules} without an LLM; "
            f"{self.file().name}, {groups} questions, {len(self.items())} rows"
        )

    def file(self) -> Path:
        """The only TSV under `root`."""
        found = sorted(self.root.glob("*.tsv"))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise UserError(f"{self.root}: one .tsv file of MMBench is needed, found {names}; keep one")
        return found[0]

    def files(self) -> list[Path]:
        """The TSV."""
        prepare(self.files_from)
        return [self.file()]

    def requests(self) -> list[Request]:
        """Every row in file order; writes the images that `image_root` lacks."""
        sentence = OPTION_LETTER if self.language == "en" else OPTION_LETTER_CN
        questions = ((key, self._image(item), prompt(item) + sentence) for key, item in self.items().items())
        return ask(questions, Decoding(max_new_tokens=self.max_new_tokens))

    def score(self, request: Request, reply: Reply) -> ItemScore:
        """One rotation's letter; `combine` adds the counts of the whole question."""
        return self._score(self.items()[request.id], reply.text)

    def combine(self, scores: Sequence[ItemScore]) -> list[ItemScore]:
        """Return the scores with each question's circular counts on its first row.

        A question counts only if all rows that the file has of it are scored and its first pass is there.
        """
        items = self.items()
        rows: dict[int, set[str]] = {}
        for key, item in items.items():
            rows.setdefault(item.base, set()).add(key)
        by_id = {score.id: score for score in scores}
        combined = []
        for score in scores:
            item = items[score.id]
            if item.index == item.base and rows[item.base] <= set(by_id):
                hit = int(all(by_id[key].counts["rows_correct"] for key in rows[item.base]))
                score = replace(score, counts={**score.counts, **_circular(item, hit)})
            combined.append(score)
        return combined

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Percent: circular accuracy, all and by l2-category and category; `rows`: plain row accuracy."""
        groups = sorted({g for item in self.items().values() for g in (item.ability, item.category) if g})
        return {
            "circular": accuracy(counts),
            "rows": percent(get(counts, "rows_correct"), get(counts, "rows")),
            **{group: accuracy(counts, group) for group in groups},
        }

    def describe(self) -> list[Metric]:
        """Circular accuracy is the headline."""
        groups = sorted({g for item in self.items().values() for g in (item.ability, item.category) if g})
        return [
            Metric("circular", "MMBench", "up", "percent", "short_answer", headline=True),
            Metric("rows", "MMBench rows", "up", "percent", "short_answer"),
            *(Metric(g, f"MMBench {g}", "up", "percent", "short_answer") for g in groups),
        ]

    def score_answers(self, lines: Sequence[AnswerLine]) -> ScoredAnswers:
        """Score LLaVA's answer lines as its upload file by VLMEvalKit.

        The last line of an index counts, unknown ones are passed over, and a row without an answer reads
        "nan" there, which is wrong unless an option's text is in that.
        """
        items = {item.index: item for item in self.items().values()}
        given = [line.id for line in lines]
        said = {line.id: line.text for line in lines}
        scores = [self._score(item, said.get(i, "")) for i, item in items.items()]
        missing = absent(items, given)
        return ScoredAnswers(
            self.combine(scores),
            expected=len(items),
            answered=len(items) - len(missing),
            missing=missing,
            duplicate=repeated(given),
            unknown=list(dict.fromkeys(absent(given, items))),
        )

    def _score(self, item: MmbItem, text: str) -> ItemScore:
        letter = read_letter("nan" if text in NOTHING else text, item.options, self.rules)
        correct = int(letter == item.answer)
        return ItemScore(
            str(item.index),
            cluster=str(item.base),
            counts={"rows": 1, "rows_correct": correct},
            parsed=letter,
            truth=f"{item.answer}. {item.options.get(item.answer, '')}",
            unparseable=letter == "",
        )

    def items(self) -> dict[str, MmbItem]:
        """All rows by index, in file order; read once."""
        if self._items is None:
            prepare(self.files_from)
            rows = list(read_rows(self.file()))
            self._items = {str(item.index): item for item, _ in rows}
            self._images = {item.index: image for item, image in rows}
        return self._items

    def _image(self, item: MmbItem) -> str:
        """The path of an item's image, written on first use."""
        where = f"{self.file()}: index {item.index}"
        if self.image_root is None:
            raise UserError(f"{where}: `image_root` is not set; point it at a folder for the images")
        path = Path(self.image_root) / f"{item.base}.jpg"
        if not path.exists():
            text = self._images[item.index]
            write_image(path, self._images.get(int(text), "") if text.isdigit() else text, where)
        return str(path)


def prompt(item: MmbItem) -> str:
    """LLaVA's question: hint, question and lettered options up to the first empty one of A-D."""
    text = f"{item.hint}\n{item.question}" if item.hint else item.question
    for letter in "ABCD":
        if letter not in item.options:
            break
        text += f"\n{letter}. {item.options[letter]}"
    return text


def read_letter(text: str, options: Mapping[str, str], rules: Rules = "2024-03") -> str:
    """Return the option letter of an answer by VLMEvalKit's rules, Z for a refusal, "" if none reads it."""
    if "Failed to obtain answer via API" not in text:
        letter = _option_letter(text, options, rules)
        if letter:
            return letter
    lower = text.lower()
    if rules != "2024-03" and len(lower) > 2 * sum(map(len, options.values())):
        return ""
    named = [letter for letter, option in options.items() if option.lower() in lower]
    return named[0] if len(named) == 1 else ""


def _option_letter(text: str, options: Mapping[str, str], rules: Rules) -> str:
    if any(refusal in text for refusal in REFUSALS):
        return "Z"
    words = "".join(" " if c in ".()[],:;!*#{}" else c for c in text).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and (rules == "2024-03" or words.index(letters[0]) > len(words) - 5):
        return letters[0]
    return "Z" if not letters and "Z" in words else ""


def _circular(item: MmbItem, hit: int) -> dict[str, float]:
    counts: dict[str, float] = {"questions": 1, "correct": hit}
    for group in dict.fromkeys((item.ability, item.category)):
        if group:
            counts |= {f"{group}/questions": 1, f"{group}/correct": hit}
    return counts
