"""`nsft score`: scores a file of answers made elsewhere by a benchmark's official rule, without a model."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nsft_exp import config as configs
from nsft_exp.benchmark.answers import ScoredAnswers, read_answers, summary_of
from nsft_exp.records import UserError
from nsft_exp.store import write_atomically

USAGE = """\
nsft score benchmark=<benchmark> benchmark.root=DIR answers=FILE out=scores.json [strict=true]

  answers   LLaVA's answer lines (question_id, prompt, text), captions (image_id, caption), or a results JSON
  out       every metric, counts, the protocol, `complete`, n of N and the ids of missing, repeated and
            unknown answers; one record an item goes to <out without .json>.items.jsonl. Without out= only
            a summary is printed
  strict    true: an answer file that is not exactly one answer to each question is an error

For mmvet, mmhal, llavabench and shr `answers` can be the file of judgements that the official program has
kept: then no judge is asked. Else benchmark.judge.* says which; its replies are kept in
<out without .json>.judge and paid for once; the key is in the environment (OPENAI_API_KEY).

DIR holds the official files, as conf/benchmark/<benchmark>.yaml says; its other keys can be given too
(benchmark.synonyms=FILE for chair). No images are read. A file that the official program scores although
answers are missing, repeated or unknown gets the same numbers, complete: false and a warning; where that
program stops, no number is written and an earlier `out` is removed."""
OWN = ("answers", "out", "strict")


def score(arguments: list[str]) -> int:
    """`nsft score`: write the scores of an answer file. Returns 0; raises UserError where there are none."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    own, words = split_words(arguments)
    strict = _flag(own.get("strict", "false"))
    answers, out = _answer_file(own), Path(own["out"]) if "out" in own else None
    node = benchmark_node(words)
    benchmark = build_benchmark(node)
    if not hasattr(benchmark, "score_answers") and not hasattr(benchmark, "judge"):
        raise UserError(
            f"benchmark={benchmark.name}: has no rule that scores a file by itself; use nsft evaluate"
        )
    if out:
        remove_earlier(out, answers)
    summary, records = summary_of(benchmark, scored_file(benchmark, answers, out), strict)
    if out:
        about = {"answers": str(answers), "items": items_file(out).name, "config": node}
        write_scores(out, {**summary, **about}, records)
    _show(benchmark, summary, out)
    return 0


def scored_file(benchmark: Any, answers: Path, out: Path | None) -> ScoredAnswers:
    """Return what the official rule makes of a file of answers; a judge keeps its replies beside `out`."""
    if hasattr(benchmark, "judge"):
        from nsft_exp.judging import judge_file

        return judge_file(benchmark, answers, out and out.with_name(f"{out.stem}.judge"))
    scored: ScoredAnswers = benchmark.score_answers(read_answers(answers))
    return scored


def split_words(arguments: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return (the verb's own keys, the words of the config). UserError for an own key without a value."""
    own: dict[str, str] = {}
    words = []
    for word in arguments:
        key, _, value = word.partition("=")
        if key not in OWN:
            words.append(_literal(word))
        elif not value:
            raise UserError(f"{word}: has no value; give {key}=...")
        else:
            own[key] = value
    return own, words


def benchmark_node(words: Sequence[str]) -> dict[str, Any]:
    """Return the benchmark's part of the config that the words describe; it alone must be complete.

    Raises UserError for a word that is no key (with the nearest names) and for a suite.
    """
    chosen = [word.partition("=")[2] for word in words if word.startswith("benchmark=")]
    if not chosen:
        options = ", ".join(configs.all_options()["benchmark"])
        raise UserError(f"benchmark=... is missing; it can be: {options}")
    plain: dict[str, Any] = _plain(_single(_compose(words, chosen[-1]).benchmark, chosen[-1]))
    return plain


def build_benchmark(node: dict[str, Any]) -> Any:
    """Return the benchmark of a node. Raises UserError for arguments that it refuses."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise UserError(" ".join(str(error).split())) from error


def remove_earlier(out: Path, answers: Path) -> None:
    """Remove the results of an earlier run, so that they are never taken for those of a refused file.

    Raises UserError where that would remove the answers, or where `out` cannot be a file.
    """
    for path in (out, items_file(out)):
        if path.exists() and path.samefile(answers):
            raise UserError(f"out={out}: would overwrite the answers; give out another name")
        if path.is_dir():
            raise UserError(f"out={out}: is a folder; name a file in it")
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot write there ({error.strerror}); give another out=") from error


def write_scores(out: Path, summary: dict[str, Any], records: Sequence[dict[str, Any]]) -> None:
    """Write the records, then the summary, each whole or not at all."""
    try:
        write_atomically(items_file(out), "".join(json.dumps(record) + "\n" for record in records))
        write_atomically(out, json.dumps(summary, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{out}: cannot write there ({error.strerror}); give another out=") from error


def items_file(out: Path) -> Path:
    """Where the per-item records of a scores file are."""
    return out.with_name(f"{out.stem}.items.jsonl")


def _answer_file(own: dict[str, str]) -> Path:
    if "answers" not in own:
        raise UserError("answers=FILE is missing: the answers to score")
    path = Path(own["answers"])
    if not path.is_file():
        raise UserError(f"{path}: no such file; give answers=FILE")
    return path


def _literal(word: str) -> str:
    """Quote a word's value for Hydra where it is a place that exists, whatever characters its name has."""
    key, equals, value = word.partition("=")
    if not equals or "." not in key or not os.path.exists(value):
        return word
    return f"{key}={configs.quoted(value)}"


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise UserError(f"strict={text}: is neither true nor false")
    return text.lower() == "true"


def _compose(words: Sequence[str], chosen: str) -> DictConfig:
    try:
        return configs.compose_config(list(words))
    except UserError as error:
        key = str(error).partition(": there is no such key")[0]
        if key == str(error):
            raise
        close = difflib.get_close_matches(key, OWN, n=1)
        if close:
            raise UserError(f"{key}: there is no such key; did you mean {close[0]}?") from error
        if key.startswith("benchmark."):
            node = _single(configs.compose_config([f"benchmark={chosen}"]).benchmark, chosen)
            keys = [f"benchmark.{name!s}" for name in node]
            raise UserError(f"{key}: there is no such key; {configs.nearest(key, keys)}") from error
        raise


def _single(node: DictConfig, chosen: str) -> DictConfig:
    """Return the node of one benchmark; UserError for that of a suite."""
    if "_target_" not in node:
        parts = [name for name, child in node.items() if OmegaConf.is_dict(child) and "_target_" in child]
        members = ", ".join(map(str, parts))
        raise UserError(
            f"benchmark={chosen}: is a suite; an answer file belongs to one benchmark ({members})"
        )
    return node


def _plain(node: DictConfig) -> Any:
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        raise UserError(f"{missing[0]} has no value; give {missing[0]}=...")
    try:
        return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from error


def _show(benchmark: Any, summary: dict[str, Any], out: Path | None) -> None:
    for warning in summary["warnings"]:
        print(f"nsft: warning: {benchmark.name}: {warning}", file=sys.stderr)
    print(f"{summary['protocol']}; {summary['answered']} of {summary['expected']} answered")
    for metric in benchmark.describe():
        if metric.headline:
            value = summary["metrics"].get(metric.name)
            shown = "no score" if value is None else f"{value:.2f} {metric.scale}"
            print(f"{metric.title:<20} {shown}")
    if out:
        print(out)
