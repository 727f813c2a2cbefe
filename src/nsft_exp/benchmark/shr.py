"""SHR (Zhao et al. 2023, HA-DPO): the ratio of hallucinated sentences in detailed descriptions, judged by an
LLM as HA-DPO's shr_eval and json_eval.py do.

Files under `root` are in visual_genome.py; images are `image_root/VG_100K/<id>.jpg` (or `VG_100K_2`). The
judge's prompt is read from the official program. Answers in a file are one object {image id: description},
what json_eval.py takes, or LLaVA's lines whose question_id is the image's; the program's own judgement.json
is scored without a judge.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.answers import ScoredAnswers, absent, read_answers
from nsft_exp.benchmark.counting import get, mean, ratio
from nsft_exp.benchmark.judge import Ask, Judge, prompt_hash
from nsft_exp.benchmark.judged import Given, by_key, read_object, whole
from nsft_exp.benchmark.reading import ask, image_path, need
from nsft_exp.benchmark.sentences import GRAMS, judgements, repetition, scored, sentences
from nsft_exp.benchmark.visual_genome import FACTS, FILES, Picture, read_facts, read_pictures, read_regions
from nsft_exp.records import Decoding, ItemScore, Metric, Reply, Request, UserError

QUESTION = "Describe this image in detail."
SOURCE = "ha_dpo/shr_eval/gpt_utils.py of github.com/opendatalab/HA-DPO"
SHARES = {"sentences": "sentences", "words": "words"}
SHARES |= {"hallucinated_sentences": "hallucinated", "hallucinated_words": "hallucinated_words"}
"""Metric -> the count that it is the mean of over the judged images."""


class Shr:
    """The share of the sentences (and words) of all descriptions that the judge calls hallucinated.

    A reply without the word "Judgement" is asked for again, up to `tries` times in all (officially without
    end). `skip_above`: longer prompts, in characters, are not judged (None: all are).
    """

    def __init__(
        self,
        root: str,
        judge: Judge,
        image_root: str | None = None,
        num_beams: int = 5,
        max_new_tokens: int = 512,
        tries: int = 10,
        skip_above: int | None = 15_000,
        name: str = "shr",
    ) -> None:
        if num_beams < 1 or tries < 1:
            raise UserError(f"benchmark.num_beams={num_beams}, tries={tries}: must be at least 1")
        self.root, self.judge, self.image_root, self.name = Path(root), judge, image_root, name
        self.decoding = Decoding(max_new_tokens=max_new_tokens, num_beams=num_beams)
        self.tries, self.skip_above = tries, skip_above
        self._items: dict[str, Picture] | None = None
        self._told: tuple[dict[str, str], dict[str, str]] | None = None

    @property
    def protocol(self) -> str:
        """How the descriptions were made, the judge and its prompt."""
        skipped = "" if self.skip_above is None else f", prompts above {self.skip_above} characters skipped"
        how = f"{self.decoding.num_beams} beams, {self.judge.about()}, prompt {prompt_hash(self._template())}"
        return f"SHR (HA-DPO), {how}{skipped}"

    def files(self) -> list[Path]:
        """Images, regions, facts and the file with the judge's prompt."""
        self._template()
        return [*(self.root / name for name in (*FILES, *FACTS)), self.judge.prompt_file(SOURCE)]

    def requests(self) -> list[Request]:
        """The one question about every image, in file order."""
        where = f"{self.root / FILES[0]}: image"
        questions = (
            (key, image_path(self.image_root, picture.file, f"{where} {key}"), QUESTION)
            for key, picture in self.items().items()
        )
        return ask(questions, self.decoding)

    def score(self, request: Request, reply: Reply) -> None:
        """None: only the judge's replies can be scored (`judged`)."""

    def ask(self, key: str, answer: str, replies: Sequence[str]) -> Ask | None:
        """Regions, facts and numbered sentences, until a reply has a judgement; None for a long prompt."""
        if len(replies) >= self.tries or any("Judgement" in reply for reply in replies):
            return None
        if self._told is None:
            self._told = read_regions(self.root, self.items()), read_facts(self.root)
        regions, facts = self._told
        listed = "".join(f"{number}. {text}\n" for number, text in enumerate(sentences(answer), 1))
        template = self._template()
        prompt = template.format(regions[key], facts.get(key, ""), listed)
        if self.skip_above is not None and len(prompt) > self.skip_above:
            return None
        return Ask((("user", prompt),), template, again=len(replies))

    def judged(self, key: str, answer: str, runs: Sequence[Sequence[str]]) -> ItemScore:
        """What the judge calls each sentence, by run; a void image has sentences, and none is in a ratio."""
        said = {f"run{number}": replies[-1] for number, replies in enumerate(runs, 1) if replies}
        labels = {run: judgements(reply, answer) for run, reply in said.items()}
        return scored(key, answer, labels)

    def read_graded(self, path: Path) -> ScoredAnswers | None:
        """Score the official program's judgement.json by the classes in it; None for another file."""
        runs = read_object(path)
        if not isinstance(runs, dict) or not all(isinstance(run, dict) for run in runs.values()) or not runs:
            return None
        keys = list(next(iter(runs.values())))
        graded = {key: _graded(runs, key, path) for key in keys}
        known = list(self.items()) if (self.root / FILES[0]).is_file() else keys
        scores = [scored(key, *graded[key]) for key in keys]
        for score in scores if absent(known, keys) else ():
            score.counts["short"] = 1  # n-grams are means over all images, and some are not here
        return ScoredAnswers(
            scores,
            expected=len(known),
            answered=len(keys),
            missing=absent(known, keys),
            unknown=absent(keys, known),
            said=[graded[key][0] for key in keys],
            judged=[{run: runs[run][key].get("raw_judgement") for run in runs} for key in keys],
            protocol="SHR (HA-DPO), judgements of a file, whose judge it does not name",
        )

    def read_answers(self, path: Path) -> Given:
        """Read {image id: description}, or LLaVA's lines. UserError where the official program stops."""
        value = read_object(path)
        if isinstance(value, dict) and "question_id" not in value:
            pairs = [(key, need(value, key, str, str(path))) for key in value]
        else:
            pairs = [(str(line.id), line.text) for line in read_answers(path)]
        given = by_key(pairs, list(self.items()), path)
        for key, text in given.texts.items():
            if repetition(text, max(GRAMS)) is None:
                raise UserError(
                    f"{path}: image {key}: a description of fewer than {max(GRAMS)} words, where the "
                    "official program divides by zero; complete the file"
                )
        return given

    def submission(self, answers: Mapping[str, str]) -> dict[str, str]:
        """The file that json_eval.py takes; nothing unless every image is described."""
        if absent(self.items(), answers):
            return {}
        return {"responses.json": json.dumps({key: answers[key] for key in self.items()}, indent=1)}

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """`shr` and `shr_words` (percent), what an image has on average, `gram1` ... `gram4`: distinct / all.

        Rounded to three decimals as officially, over several runs after their mean. `failed` counts images
        whose judgement could not be read, over all runs, `skipped` those whose prompt was too long.
        """
        runs = sorted({name.partition("/")[0] for name in counts if "/" in name})
        found = {
            "shr": _share(counts, runs, "hallucinated", "labelled"),
            "shr_words": _share(counts, runs, "hallucinated_words", "labelled_words"),
            **{name: _mean(counts, runs, part, "images") for name, part in SHARES.items()},
        }
        images = get(counts, "images") * (get(counts, "short") == 0)
        grams = {f"gram{n}": _rounded(ratio(get(counts, f"gram{n}"), images)) for n in GRAMS}
        failed = sum(get(counts, f"{run}/void") for run in runs)
        return {name: whole(counts, value) for name, value in found.items()} | {
            **grams,
            "failed": failed,
            "skipped": get(counts, "skipped"),
        }

    def describe(self) -> list[Metric]:
        """The sentence ratio is the headline."""
        return [
            Metric("shr", "SHR", "down", "percent", "judged", headline=True),
            Metric("shr_words", "SHR of words", "down", "percent", "judged"),
            Metric("sentences", "SHR sentences an image", "none", "sentences", "judged"),
            Metric("words", "SHR words an image", "none", "words", "judged"),
            Metric("hallucinated_sentences", "SHR hallucinated sentences", "down", "sentences", "judged"),
            Metric("hallucinated_words", "SHR hallucinated words", "down", "words", "judged"),
            *(Metric(f"gram{n}", f"SHR distinct {n}-grams", "up", "ratio", "generation") for n in GRAMS),
            Metric("failed", "SHR unreadable judgements", "none", "replies", "judged"),
            Metric("skipped", "SHR skipped images", "none", "images", "judged"),
        ]

    def items(self) -> dict[str, Picture]:
        """The images by id, in file order; read once."""
        if self._items is None:
            self._items = read_pictures(self.root)
        return self._items

    def _template(self) -> str:
        template = self.judge.template("GPT_JUDGE_PROMPT", SOURCE)
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
        except ValueError:
            fields = []
        if fields != [""] * 3:
            raise UserError(f"{self.judge.path}: has not the three places {{}} of SHR's prompt")
        return template


def _graded(
    runs: Mapping[str, Mapping[str, Any]], key: str, path: Path
) -> tuple[str, dict[str, list[str] | None]]:
    """An image's description and its sentences' classes by run; None: a void image."""
    labels: dict[str, list[str] | None] = {}
    answer = ""
    for run, images in runs.items():
        where = f"{path}: {run}: image {key}"
        row = need(images, key, dict, where)
        answer = need(row, "model_response" if "model_response" in row else "mode_response", str, where)
        rows = need(row, "judgement", list, where)
        found = [need(sentence, "classification", (str, type(None)), where) for sentence in rows]
        if len(found) != len(sentences(answer)):
            raise UserError(
                f"{where}: {len(found)} judgements of {len(sentences(answer))} sentences; mend it"
            )
        labels[run] = None if None in found else found
    return answer, labels


def _share(counts: Mapping[str, Any], runs: Sequence[str], part: str, of: str) -> Any:
    """Percent: the mean over the runs of part / of."""
    return _rounded(100 * _mean(counts, runs, part, of), 1)


def _mean(counts: Mapping[str, Any], runs: Sequence[str], part: str, of: str) -> Any:
    return _rounded(
        mean(_rounded(ratio(get(counts, f"{run}/{part}"), get(counts, f"{run}/{of}"))) for run in runs)
    )


def _rounded(value: Any, digits: int = 3) -> Any:
    """To some decimals, elementwise."""
    return value.round(digits) if hasattr(value, "round") else round(value, digits)
