"""MMBench dev (Liu et al. 2023): every question with its options rotated, scored as VLMEvalKit does.

File under `root`, official: the only *.tsv there (mmbench_dev_20230712.tsv of LLaVA, MMBench_DEV_EN.tsv, the
Chinese ones ...), tab-separated and quoted, columns

    index, question, hint, A, B, C, D, answer, category, image (base64), l2-category, ...

Pass k of a question has index + k * 1,000,000; its `image` may be the base index instead of an image. The
images are written to `image_root/<base index>.jpg` when they are first asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from nsft_exp.benchmark.answers import AnswerLine, ScoredAnswers, absent, repeated
from nsft_exp.benchmark.counting import accuracy, get, percent
from nsft_exp.benchmark.mmbench_file import MmbItem, read_rows, upload_table, write_image
from nsft_exp.benchmark.mmbench_letters import NOTHING, Rules, read_letter
from nsft_exp.benchmark.prompts import OPTION_LETTER
from nsft_exp.benchmark.reading import MakesFiles, ask, prepare
from nsft_exp.benchmark.xlsx import write_xlsx
from nsft_exp.records import Decoding, ItemScore, Metric, Reply, Request, UserError

OPTION_LETTER_CN = "\n请直接回答选项字母。"


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
        self._clusters: dict[int, str] = {}

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
        """The TSV. Makes the image folder: whether it is there must not tell a first run from a second."""
        prepare(self.files_from)
        if self.image_root is not None:
            Path(self.image_root).mkdir(parents=True, exist_ok=True)
        return [self.file()]

    def requests(self) -> list[Request]:
        """Every row in file order; writes the images that `image_root` lacks."""
        sentence = OPTION_LETTER if self.language == "en" else OPTION_LETTER_CN
        questions = ((key, self._image(item), prompt(item) + sentence) for key, item in self.items().items())
        return ask(questions, Decoding(max_new_tokens=self.max_new_tokens))

    def score(self, request: Request, reply: Reply) -> ItemScore | None:
        """One rotation's letter; `combine` adds the counts of the whole question. None on a test split."""
        item = self.items()[request.id]
        return self._score(item, reply.text) if item.answer else None

    def submission(self, answers: Mapping[str, str]) -> dict[str, bytes]:
        """LLaVA's upload file for MMBench's server; nothing unless every row is answered."""
        if absent(self.items(), answers):
            return {}
        return {f"{self.file().stem}.xlsx": write_xlsx(upload_table(self.file(), answers))}

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
        title = "MMBench" if self.language == "en" else "MMB-CN"
        return [
            Metric("circular", title, "up", "percent", "short_answer", headline=True),
            Metric("rows", f"{title} rows", "up", "percent", "short_answer"),
            *(Metric(g, f"{title} {g}", "up", "percent", "short_answer") for g in groups),
        ]

    def score_answers(self, lines: Sequence[AnswerLine]) -> ScoredAnswers:
        """Score LLaVA's answer lines as its upload file by VLMEvalKit.

        The last line of an index counts, unknown ones are passed over, and a row without an answer reads
        "nan" there, which is wrong unless an option's text is in that.
        """
        items = {item.index: item for item in self.items().values()}
        if not all(item.answer for item in items.values()):
            raise UserError(f"{self.file()}: has no answers; MMBench's server scores it")
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
            unknown=absent(given, items),
            said=[said.get(i) for i in items],
        )

    def _score(self, item: MmbItem, text: str) -> ItemScore:
        letter = read_letter("nan" if text in NOTHING else text, item.options, self.rules)
        correct = int(letter == item.answer)
        return ItemScore(
            str(item.index),
            cluster=self._cluster(item),
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

    def _cluster(self, item: MmbItem) -> str:
        """A digest of the image of a question's first pass (several questions may share one)."""
        if item.base not in self._clusters:
            image = self._image_text(item.base)
            digest = hashlib.sha256(image.encode()).hexdigest()[:12]
            self._clusters[item.base] = digest if image else str(item.base)
        return self._clusters[item.base]

    def _image_text(self, index: int) -> str:
        """The image of a row in base64, its own or that of the row that it names; empty without one."""
        text = self._images.get(index, "")
        return self._images.get(int(text), "") if text.isdigit() else text

    def _image(self, item: MmbItem) -> str:
        """The path of an item's image, written on first use."""
        where = f"{self.file()}: index {item.index}"
        if self.image_root is None:
            raise UserError(f"{where}: `image_root` is not set; point it at a folder for the images")
        path = Path(self.image_root) / f"{item.base}.jpg"
        if not path.exists():
            write_image(path, self._image_text(item.index), where)
        return str(path)


def prompt(item: MmbItem) -> str:
    """LLaVA's question: hint, question and lettered options up to the first empty one of A-D."""
    text = f"{item.hint}\n{item.question}" if item.hint else item.question
    for letter in "ABCD":
        if letter not in item.options:
            break
        text += f"\n{letter}. {item.options[letter]}"
    return text


def _circular(item: MmbItem, hit: int) -> dict[str, float]:
    counts: dict[str, float] = {"questions": 1, "correct": hit}
    for group in dict.fromkeys((item.ability, item.category)):
        if group:
            counts |= {f"{group}/questions": 1, f"{group}/correct": hit}
    return counts
