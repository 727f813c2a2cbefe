"""MME: pairs of yes/no questions about an image (Fu et al. 2023), scored as its eval_tool does.

Files under `root` or `root/MME_Benchmark_release_version`, official: a folder a category, holding

    images/<stem>.jpg and questions_answers_YN/<stem>.txt      (artwork, celebrity, landmark, posters, scene)
    <stem>.jpg (or .png) and <stem>.txt side by side           (the others)

and each txt two lines `<question> Please answer yes or no.<TAB>Yes|No`. Images are read from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.answers import AnswerLine, ScoredAnswers, absent, repeated
from nsft_exp.benchmark.counting import get, percent
from nsft_exp.benchmark.mme_files import COGNITION, PERCEPTION, YES_OR_NO, MmeFiles, MmeItem
from nsft_exp.benchmark.prompts import SHORT_ANSWER
from nsft_exp.benchmark.reading import MakesFiles, ask, prepare
from nsft_exp.records import Decoding, ItemScore, Metric, Reply, Request, UserError


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
        categories = [categories] if isinstance(categories, str) else categories
        unknown = [c for c in categories if c not in PERCEPTION + COGNITION]
        if unknown or not categories:
            raise UserError(
                f"benchmark.categories: {unknown} is not of MME; use {', '.join(PERCEPTION + COGNITION)}"
            )
        self.name, self.categories, self.max_new_tokens = name, tuple(categories), max_new_tokens
        self.source, self.files_from = MmeFiles(Path(root), self.categories), files_from
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
        return [path for category in self.categories for path in self.source.question_files(category)]

    def requests(self) -> list[Request]:
        """Both questions of every image, one after the other, category by category."""
        images: dict[tuple[str, str], str] = {}
        questions = []
        for key, item in self.items().items():
            pair = item.category, item.stem
            if pair not in images:
                images[pair] = self.source.image(item)
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
        without lines. Tabs and line ends in an answer, which would break its files, count as blanks. Lines
        of categories that are not among `categories` are passed over.
        """
        known = {(item.category, item.stem, item.question): item for item in self.items().values()}
        by_category: dict[str, list[tuple[MmeItem, str]]] = {c: [] for c in self.categories}
        left_out = {c for c in (*PERCEPTION, *COGNITION) if c not in self.categories}
        for line in lines:
            if str(line.id).split("/")[0] not in left_out:
                item = self._find(line, known)
                by_category[item.category].append((item, line.text))
        for category, answered in by_category.items():
            if not answered or len(answered) % 2:
                what = "an odd number of answers" if answered else "no answer"
                raise UserError(f"{self.name}: {what} in {category}, where the official program stops")
        flat = [found for answered in by_category.values() for found in answered]
        given = [item.id for item, _ in flat]
        mixed = sum(one.stem != two.stem for (one, _), (two, _) in zip(flat[::2], flat[1::2], strict=True))
        scored = ScoredAnswers(
            _paired(flat), len(known), len(set(given)), absent(self.items(), given), repeated(given)
        )
        scored.said = [text for _, text in flat]
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
        forms = [question]
        if YES_OR_NO.strip() not in question:  # the release has one blank before the sentence, or two
            forms = [question + YES_OR_NO, question + " " + YES_OR_NO]
        for asked in forms:
            if (category, stem, asked) in known:
                return known[category, stem, asked]
        raise UserError(
            f"{line.where}: {line.id!r} has no question {question!r} under {self.source.release()}, where "
            "the official program stops; give answers to these questions, with their `prompt`"
        )

    def items(self) -> dict[str, MmeItem]:
        """All questions by id; read once. UserError for a file that is not two questions."""
        if self._items is None:
            prepare(self.files_from)
            self._items = self.source.items()
        return self._items


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


def _paired(answered: Sequence[tuple[MmeItem, str]]) -> list[ItemScore]:
    """Score answers of which every two in a row are taken for one image's."""
    scores = [score_answer(item, text) for item, text in answered]
    for k in range(0, len(scores), 2):
        scores[k] = _with_pair(scores[k], scores[k + 1], answered[k][0].category)
    return scores


def _with_pair(first: ItemScore, second: ItemScore, category: str) -> ItemScore:
    both = first.counts[f"{category}/correct"] and second.counts[f"{category}/correct"]
    return replace(
        first, counts={**first.counts, f"{category}/images": 1, f"{category}/both": int(bool(both))}
    )
