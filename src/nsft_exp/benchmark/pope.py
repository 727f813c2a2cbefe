"""POPE: is this object in the image? (Li et al. 2023; files and rule of POPE and LLaVA's eval_pope.py)

Files under `root`, both official:

    coco/coco_pope_{random,popular,adversarial}.json   JSON lines {question_id: 1.., image: file name,
                                                       text: "Is there a dog in the image?", label: yes|no}
    llava_pope_test.jsonl                              JSON lines {question_id, image, text: the same question
                                                       + "\\nAnswer the question using a single word or
                                                       phrase.", category: random|popular|adversarial}

LLaVA numbers adversarial questions 1.., random 10000001.., popular 20000001..; without its file the same
numbers and texts are made from POPE's. Images are `image_root/<image>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.answers import AnswerLine, ScoredAnswers, absent, repeated, sum_counts
from nsft_exp.benchmark.counting import get, mean, percent, ratio
from nsft_exp.benchmark.pope_files import FIRST_ID, RELEASE, PopeFiles, PopeItem, named_object
from nsft_exp.benchmark.prompts import short_answer
from nsft_exp.benchmark.reading import MakesFiles, ask, image_path, prepare
from nsft_exp.records import Decoding, ItemScore, Metric, Reply, Request, UserError

SPLITS = ("random", "popular", "adversarial")
PER_SPLIT = ("accuracy", "precision", "recall", "f1", "yes_ratio")


class Pope:
    """POPE on COCO images. `likelihood` also asks for log p(Yes) - log p(No), whose AUC is shown by split."""

    def __init__(
        self,
        root: str,
        image_root: str | None = None,
        splits: Sequence[str] = SPLITS,
        prompt: str = "llava15",
        likelihood: bool = True,
        max_new_tokens: int = 128,
        files_from: MakesFiles | None = None,
        name: str = "pope",
    ) -> None:
        """`prompt`: `llava15` adds LLaVA's short-answer sentence, `official` asks POPE's bare question."""
        self.suffix = short_answer(prompt, "POPE")
        splits = [splits] if isinstance(splits, str) else splits
        unknown = [s for s in splits if s not in FIRST_ID]
        if unknown or not splits:
            raise UserError(f"benchmark.splits: {unknown} is not a POPE split; use {', '.join(SPLITS)}")
        self.name, self.prompt, self.splits = name, prompt, tuple(splits)
        self.source = PopeFiles(Path(root), self.splits)
        self.image_root, self.files_from = image_root, files_from
        self.likelihood, self.max_new_tokens = likelihood, max_new_tokens
        self._items: dict[str, PopeItem] | None = None

    @property
    def protocol(self) -> str:
        """The rule, the prompt and the release, told by its numbers of questions."""
        sizes = ", ".join(f"{s} {len(self._of(s))}" for s in self.splits)
        return f"POPE by LLaVA's eval_pope rule, prompt {self.prompt}; {sizes}"

    def files(self) -> list[Path]:
        """The label files and, if present, LLaVA's question file."""
        prepare(self.files_from)
        return self.source.present()

    def requests(self) -> list[Request]:
        """Every question of every split; ids are LLaVA's."""
        candidates = ("Yes", "No") if self.likelihood else ()
        questions = (
            (key, image_path(self.image_root, item.image, f"{self.name}: question {key}"), item.text)
            for key, item in self.items().items()
        )
        return ask(questions, Decoding(max_new_tokens=self.max_new_tokens), candidates)

    def score(self, request: Request, reply: Reply) -> ItemScore:
        """The official rule on one answer."""
        item = self.items()[request.id]
        score = score_answer(item, reply.text)
        if reply.candidate_logps is None:
            return score
        yes, no = reply.candidate_logps
        ranks = {item.split: (int(item.label == "yes"), yes - no)}
        return ItemScore(**{**vars(score), "ranks": ranks})

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Percent. Without a prefix: the plain mean over the splits, as published."""
        by_split = {split: split_metrics(counts, split) for split in self.splits}
        result = {m: mean(by_split[s][m] for s in self.splits) for m in PER_SPLIT}
        for split in self.splits:
            result |= {f"{split}_{m}": by_split[split][m] for m in PER_SPLIT}
        return result

    def describe(self) -> list[Metric]:
        """F1 averaged over the splits is the headline; AUC does not move with the yes rate."""
        titles = {"f1": "F1", "accuracy": "accuracy", "precision": "precision", "recall": "recall"}
        shown = [Metric("f1", "POPE F1", "up", "percent", "yes_no", headline=True)]
        for metric in ("accuracy", "precision", "recall"):
            shown.append(Metric(metric, f"POPE {titles[metric]}", "up", "percent", "yes_no"))
        shown.append(Metric("yes_ratio", "POPE yes", "none", "percent", "yes_no"))
        for split in self.splits:
            for metric, title in titles.items():
                shown.append(Metric(f"{split}_{metric}", f"POPE {split} {title}", "up", "percent", "yes_no"))
            shown.append(Metric(f"{split}_yes_ratio", f"POPE {split} yes", "none", "percent", "yes_no"))
            if self.likelihood:
                shown.append(Metric(f"{split}_auc", f"POPE {split} AUC", "up", "ratio", "yes_no"))
        return shown

    def score_answers(self, lines: Sequence[AnswerLine]) -> ScoredAnswers:
        """Score LLaVA's answer lines as eval_pope.py does: the k-th line of a split meets its k-th label.

        It stops at an id that the question file lacks and at a split without an answer. Where lines are
        missing, repeated or in another order it goes on with shifted labels; then a warning says so and
        gives the mean F1 of the lines joined by id. Prompts that ask for other objects than the question
        file are answers to another release: refused where only POPE's own files are there.
        """
        items = {item.id: item for item in self.items().values()}
        others = self.source.other_ids()
        lines = [line for line in lines if line.id not in others]
        for line in lines:
            if line.id not in items or isinstance(line.id, str):
                raise UserError(f"{line.where}: question_id {line.id!r} is not in {self._questions()}")
        given = [line.id for line in lines]
        by_split = {split: _of_split(lines, items, split) for split in self.splits}
        scored = ScoredAnswers(
            [s for split, mine in by_split.items() for s in self._by_position(split, mine, items)],
            expected=len(items),
            answered=len(set(given)),
            missing=absent(items, given),
            duplicate=repeated(given),
            warnings=self._other_questions(lines, items),
            said=[line.text for mine in by_split.values() for line in mine],
        )
        if any(
            line.id != item.id
            for split in self.splits
            for line, item in zip(by_split[split], self._of(split), strict=False)
        ):
            joined = sum_counts_by_id(lines, items)
            scored.warnings.append(
                "the official program pairs answers and labels by position, and here the order differs from "
                f"the question file's; joined by id the mean F1 is {self.metrics(joined)['f1']:.2f}"
            )
        return scored

    def _by_position(
        self, split: str, mine: Sequence[AnswerLine], items: Mapping[int, PopeItem]
    ) -> list[ItemScore]:
        if not mine:
            raise UserError(f"{self.name}: no answer to the {split} split, where the official program stops")
        labelled = self._of(split)
        scores = [
            score_answer(items[line.id], line.text, item.label)
            for line, item in zip(mine, labelled, strict=False)
        ]
        for line in mine[len(labelled) :]:  # more answers than labels: they count in the yes ratio only
            scores.append(score_answer(items[line.id], line.text, None))
        return scores

    def _other_questions(self, lines: Sequence[AnswerLine], items: Mapping[int, PopeItem]) -> list[str]:
        """Warn of (or refuse) lines whose prompt asks for another object than the question of their id."""
        other = []
        for line in lines:
            asked, known = named_object(line.prompt), named_object(items[line.id].text)
            if asked is not None and known is not None and asked != known:
                other.append(line)
        if not other:
            return []
        what = f"{other[0].where}: its prompt is another question than {other[0].id} of {self._questions()}"
        if not self.source.questions.exists():
            raise UserError(f"{what} ({len(other)} such lines): {RELEASE}")
        return [f"{what} ({len(other)} such lines), to whose label the official program holds it"]

    def _questions(self) -> Path:
        files = self.source
        return files.questions if files.questions.exists() else files.label_files[self.splits[0]].parent

    def items(self) -> dict[str, PopeItem]:
        """All questions by id, in file order; read once. UserError for files of two releases."""
        if self._items is None:
            prepare(self.files_from)
            self._items = self.source.items(self.suffix)
        return self._items

    def _of(self, split: str) -> list[PopeItem]:
        return [item for item in self.items().values() if item.split == split]


def read_yes_no(text: str) -> str:
    """Return how POPE's official rule reads an answer: `no` or `yes`.

    The text before the first full stop, without commas, split at single blanks, is `no` if a word is
    exactly `No`, `not` or `no`; everything else is `yes` (empty, "NO", "Nope", "No\\n...").
    """
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if any(word in ("No", "not", "no") for word in words) else "yes"


def says_neither(text: str) -> bool:
    """Return whether neither yes nor no (nor not) occurs as a word, so that no rule could read it."""
    return not re.search(r"\b(?:yes|no|not)\b|n't\b", text.lower())


def score_answer(item: PopeItem, text: str, label: str | None = "") -> ItemScore:
    """Counts of one answer against `label` (the item's own if empty; None: the yes ratio only)."""
    said, label = read_yes_no(text), item.label if label == "" else label
    counts: dict[str, float] = {f"{item.split}/answers": 1, f"{item.split}/yes": int(said == "yes")}
    if label is not None:
        outcome = ("t" if said == label else "f") + ("p" if said == "yes" else "n")
        counts[f"{item.split}/{outcome}"] = 1
    return ItemScore(
        str(item.id),
        cluster=item.image,
        counts=counts,
        parsed=said,
        truth=item.label,
        unparseable=says_neither(text),
    )


def split_metrics(counts: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Accuracy, precision, recall, F1 of yes, and yes ratio of one split, in percent."""
    tp, fp, tn, fn = (get(counts, f"{split}/{k}") for k in ("tp", "fp", "tn", "fn"))
    precision, recall = ratio(tp, tp + fp), ratio(tp, tp + fn)
    return {
        "accuracy": percent(tp + tn, tp + fp + tn + fn),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "f1": percent(2 * precision * recall, precision + recall),
        "yes_ratio": percent(get(counts, f"{split}/yes"), get(counts, f"{split}/answers")),
    }


def sum_counts_by_id(lines: Sequence[AnswerLine], items: Mapping[int, PopeItem]) -> dict[str, float]:
    """Summed counts of the last answer to each id against that id's own label."""
    last = {line.id: line.text for line in lines}
    return sum_counts(score_answer(items[i], text) for i, text in last.items())


def _of_split(lines: Sequence[AnswerLine], items: Mapping[int, PopeItem], split: str) -> list[AnswerLine]:
    return [line for line in lines if items[line.id].split == split]
