"""MME: pairs of yes/no questions about an image (Fu et al. 2023), scored as its eval_tool does.

Files under `root` or `root/MME_Benchmark_release_version`, official: a folder a category, holding

    images/<stem>.jpg and questions_answers_YN/<stem>.txt      (artwork, celebrity, landmark, posters, scene)
    <stem>.jpg (or .png) and <stem>.txt side by side           (the others)

and each txt two lines `<question> Please answer yes or no.<TAB>Yes|No`. Images are read from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.answers import AnswerLine, ScoredAnswers, absent, repeated
from nsft_exp.benchmark.counting import get, percent
from nsft_exp.benchmark.prompts import SHORT_ANSWER
from nsft_exp.benchmark.reading import MakesFiles, ask, prepare, read_text
from nsft_exp.records import Decoding, ItemScore, Metric, Reply, Request, UserError

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
YES_OR_NO = " Please answer yes or no."


@dataclass(frozen=True)
class MmeItem:
    """One question of an image's two."""

    id: str
    """`<category>/<stem>#1` or `#2`."""
    category: str
    stem: str
    question: str
    """As in the file, with its yes-or-no sentence."""
    label: str


class Mme:
    """Accuracy and accuracy+ (both questions of an image right) by category; scores are their sum."""

    def __init__(
        self,
        root: str,
        categories: Sequence[str] = (*PERCEPTION, *COGNITION),
        max_new_tokens: int = 128,
        files_from: MakesFiles | None = None,
        name: str = "mme",
    ) -> None:
        """`categories`: all fourteen make the published sums; fewer are summed as they are."""
        unknown = [c for c in categories if c not in PERCEPTION + COGNITION]
        if unknown or not categories:
            raise UserError(
                f"benchmark.categories: {unknown} is not of MME; use {', '.join(PERCEPTION + COGNITION)}"
            )
        self.name, self.categories, self.max_new_tokens = name, tuple(categories), max_new_tokens
        self.root, self.files_from = Path(root), files_from
        self._items: dict[str, MmeItem] | None = None

    @property
    def protocol(self) -> str:
        """The rule, the prompt and the categories."""
        count = len(self.categories)
        which = "14 categories" if count == 14 else ", ".join(self.categories)
        return f"MME eval_tool (first four characters), LLaVA prompt; {which}, {len(self.items())} questions"

    def files(self) -> list[Path]:
        """The question files."""
        prepare(self.files_from)
        return [path for category in self.categories for path in self._question_files(category)]

    def requests(self) -> list[Request]:
        """Both questions of every image, one after the other, category by category."""
        images: dict[tuple[str, str], str] = {}
        questions = []
        for key, item in self.items().items():
            pair = item.category, item.stem
            if pair not in images:
                images[pair] = self._image(item)
            text = item.question.replace(YES_OR_NO.strip(), "").strip() + SHORT_ANSWER
            questions.append((key, images[pair], text))
        return ask(questions, Decoding(max_new_tokens=self.max_new_tokens))

    def score(self, request: Request, reply: Reply) -> ItemScore:
        """Counts of one answer; `combine` adds those of the image's pair."""
        return score_answer(self.items()[request.id], reply.text)

    def combine(self, scores: Sequence[ItemScore]) -> list[ItemScore]:
        """Return the scores with the pair's counts on the first of each image whose two are there."""
        items = self.items()
        pairs: dict[str, list[int]] = {}
        for k, score in enumerate(scores):
            pairs.setdefault(score.id.rpartition("#")[0], []).append(k)
        result = list(scores)
        for pair in pairs.values():
            if len(pair) == 2:
                category = items[scores[pair[0]].id].category
                result[pair[0]] = _with_pair(scores[pair[0]], scores[pair[1]], category)
        return result

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Each category's score (0-200), acc and acc_plus (percent); perception and cognition are sums."""
        result: dict[str, Any] = {}
        for c in self.categories:
            acc = percent(get(counts, f"{c}/correct"), get(counts, f"{c}/questions"))
            plus = percent(get(counts, f"{c}/both"), get(counts, f"{c}/images"))
            result |= {c: acc + plus, f"{c}_acc": acc, f"{c}_acc_plus": plus}
        for title, group in (("perception", PERCEPTION), ("cognition", COGNITION)):
            if any(c in group for c in self.categories):
                result[title] = sum(result[c] for c in self.categories if c in group)
        return result

    def describe(self) -> list[Metric]:
        """Perception (at most 2000 over all ten) is the headline, else cognition (800)."""
        shown: list[Metric] = []
        for title, group in (("perception", PERCEPTION), ("cognition", COGNITION)):
            if any(c in group for c in self.categories):
                shown.append(Metric(title, f"MME {title}", "up", "points", "yes_no", headline=not shown))
        for c in self.categories:
            shown.append(Metric(c, f"MME {c}", "up", "points", "yes_no"))
            shown.append(Metric(f"{c}_acc", f"MME {c} acc", "up", "percent", "yes_no"))
            shown.append(Metric(f"{c}_acc_plus", f"MME {c} acc+", "up", "percent", "yes_no"))
        return shown

    def score_answers(self, lines: Sequence[AnswerLine]) -> ScoredAnswers:
        """Score LLaVA's answer lines by its converter and the eval_tool.

        A line is found by category, file stem and question. The official program pairs consecutive lines
        of a category and stops at a question that it does not know, an odd number of lines, or a category
        without lines. Tabs and line ends in an answer, which would break its files, count as blanks.
        """
        known = {(item.category, item.stem, item.question): item for item in self.items().values()}
        by_category: dict[str, list[tuple[MmeItem, str]]] = {c: [] for c in self.categories}
        for line in lines:
            item = self._find(line, known)
            by_category[item.category].append((item, line.text))
        scores: list[ItemScore] = []
        mixed = 0
        for category, answered in by_category.items():
            if not answered or len(answered) % 2:
                what = "an odd number of answers" if answered else "no answer"
                raise UserError(f"{self.name}: {what} in {category}, where the official program stops")
            for one, two in zip(answered[::2], answered[1::2], strict=True):
                pair = [score_answer(item, text) for item, text in (one, two)]
                scores += [_with_pair(pair[0], pair[1], category), pair[1]]
                mixed += one[0].stem != two[0].stem
        given = [item.id for answered in by_category.values() for item, _ in answered]
        scored = ScoredAnswers(
            scores, len(known), len(set(given)), absent(self.items(), given), repeated(given)
        )
        if mixed:
            scored.warnings.append(
                f"{mixed} pairs of consecutive lines are of two images, taken for one by the "
                "official accuracy+; put both answers of an image next to each other"
            )
        return scored

    def _find(self, line: AnswerLine, known: Mapping[tuple[str, str, str], MmeItem]) -> MmeItem:
        parts = str(line.id).split("/")
        category, stem = parts[0], parts[-1].split(".")[0]
        question = line.prompt
        if SHORT_ANSWER.strip() in question:
            question = question.replace(SHORT_ANSWER.strip(), "").strip()
        if YES_OR_NO.strip() not in question:
            question += YES_OR_NO
        for asked in (question, question.replace(YES_OR_NO, " " + YES_OR_NO)):
            if (category, stem, asked) in known:
                return known[category, stem, asked]
        raise UserError(
            f"{line.where}: {line.id!r} has no question {question!r} under {self._release()}, where the "
            "official program stops; give answers to these questions, with their `prompt`"
        )

    def items(self) -> dict[str, MmeItem]:
        """All questions by id; read once. UserError for a file that is not two questions."""
        if self._items is None:
            prepare(self.files_from)
            items = [
                item for c in self.categories for path in self._question_files(c) for item in _read(path, c)
            ]
            self._items = {item.id: item for item in items}
        return self._items

    def _release(self) -> Path:
        below = self.root / "MME_Benchmark_release_version"
        return below if below.is_dir() else self.root

    def _question_files(self, category: str) -> list[Path]:
        folder = self._release() / category
        if (folder / "questions_answers_YN").is_dir():
            folder = folder / "questions_answers_YN"
        found = sorted(folder.glob("*.txt"))
        if not found:
            raise UserError(f"{folder}: no question files of MME's category {category}; correct `root`")
        return found

    def _image(self, item: MmeItem) -> str:
        folder = self._release() / item.category
        if (folder / "images").is_dir():
            folder = folder / "images"
        for suffix in (".jpg", ".png", ".jpeg"):
            if (folder / (item.stem + suffix)).exists():
                return str(folder / (item.stem + suffix))
        return str(folder / (item.stem + ".jpg"))


def _read(path: Path, category: str) -> list[MmeItem]:
    rows = read_text(path).removesuffix("\n").split("\n")
    items = []
    for number, row in enumerate(rows, 1):
        question, tab, label = row.strip().partition("\t")
        if not tab or label.lower() not in ("yes", "no"):
            raise UserError(f"{path}: line {number}: not `question<TAB>Yes|No`; fetch the file again")
        items.append(
            MmeItem(f"{category}/{path.stem}#{number}", category, path.stem, question, label.lower())
        )
    if len(items) != 2:
        raise UserError(f"{path}: {len(items)} questions, not 2; fetch the file again")
    return items


def read_yes_no(text: str) -> str:
    """Return how MME reads an answer: yes, no or other, by its first four characters in lower case."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score_answer(item: MmeItem, text: str) -> ItemScore:
    """Counts of one answer; `other` is wrong."""
    said = read_yes_no(text.replace("\t", " ").replace("\n", " "))
    counts = {f"{item.category}/questions": 1, f"{item.category}/correct": int(said == item.label)}
    return ItemScore(
        item.id,
        cluster=f"{item.category}/{item.stem}",
        counts={**counts, f"{item.category}/other": int(said == "other")},
        parsed=said,
        truth=item.label,
        unparseable=said == "other",
    )


def _with_pair(first: ItemScore, second: ItemScore, category: str) -> ItemScore:
    both = first.counts[f"{category}/correct"] and second.counts[f"{category}/correct"]
    return replace(
        first, counts={**first.counts, f"{category}/images": 1, f"{category}/both": int(bool(both))}
    )
