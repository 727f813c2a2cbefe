"""`nsft compare`: two models on the same questions, from their per-item scores, intervals over images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from nsft_exp import config as configs
from nsft_exp.records import ItemScore, Metric, UserError, from_json
from nsft_exp.score import build_benchmark
from nsft_exp.statistics import Bootstrap, Difference, ScoredItems, holm
from nsft_exp.store import write_atomically

USAGE = """\
nsft compare A B [out=compare.json] [replicates=10000]

  A, B        what nsft score wrote (scores.json), what nsft evaluate wrote (its folder), an evaluate stage's
              folder (runs/evaluate/...), or a folder that holds several of them
  out         every metric of both, the difference A - B, intervals and p-values as JSON
  replicates  of the bootstrap

Benchmarks are matched by name and protocol. A difference is that of the items that both have a score for:
images are resampled in pairs (bootstrap, 95 %), p-values of the headline metrics are corrected for their
number (Holm). Two models are two draws: seeds of training are not covered; a study's report covers them."""
OWN = ("out", "replicates")


@dataclass(frozen=True)
class Result:
    """One model's scored items on one benchmark."""

    place: Path
    benchmark: Any
    protocol: str
    complete: bool
    items: ScoredItems

    @property
    def key(self) -> tuple[str, str]:
        """What another result must share to be compared with."""
        return self.benchmark.name, self.protocol


@dataclass(frozen=True)
class Line:
    """One metric of both models. Intervals are over images; `p_holm` is the headline metrics' alone."""

    benchmark: str
    metric: Metric
    a: float
    a_interval: tuple[float, float] | None
    b: float
    b_interval: tuple[float, float] | None
    difference: Difference
    p_holm: float | None


def compare(arguments: list[str]) -> int:
    """`nsft compare`: print, and write to `out`, how two models differ. Returns the exit code 0."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    own, places = split(arguments)
    pairs, notes = matched(read_results(places[0]), read_results(places[1]))
    if not pairs:
        raise UserError(f"{places[0]} and {places[1]}: no benchmark in common ({'; '.join(notes)})")
    lines = compared(pairs, int(own.get("replicates", 10_000)))
    if "out" in own:
        document: dict[str, Any] = {"a": str(places[0]), "b": str(places[1]), "notes": notes}
        document["metrics"] = [_without_nan(asdict(line)) for line in lines]
        write_atomically(Path(own["out"]), json.dumps(document, indent=1, allow_nan=False) + "\n")
    show(lines, notes)
    return 0


def split(arguments: Sequence[str]) -> tuple[dict[str, str], list[Path]]:
    """Return (the verb's keys, the two places). Raises UserError for anything else."""
    own = dict(word.split("=", 1) for word in arguments if word.partition("=")[0] in OWN and "=" in word)
    places = [Path(word) for word in arguments if not ("=" in word and word.partition("=")[0] in OWN)]
    if len(places) != 2:
        raise UserError(f"nsft compare takes two places, not {len(places)}: nsft compare A B")
    if not own.get("replicates", "1").isdigit() or int(own.get("replicates", 1)) < 1:
        raise UserError(f"replicates={own['replicates']}: must be a number of at least 1")
    return own, places


# --- reading ---------------------------------------------------------------------------------------


def read_results(place: Path) -> list[Result]:
    """Return the results in a scores file, a stage's folder, or a folder of such.

    Raises UserError where there are none.
    """
    if not place.exists():
        raise UserError(f"{place}: there is no such file or folder")
    found = list(_results(place))
    if not found and place.is_dir():
        found = [result for child in sorted(place.iterdir()) for result in _results(child)]
    if not found:
        raise UserError(f"{place}: holds no scores of nsft score, nsft evaluate or an evaluate stage")
    twice = {result.key for result in found if sum(r.key == result.key for r in found) > 1}
    if twice:
        names = ", ".join(name for name, _ in sorted(twice))
        raise UserError(f"{place}: holds several results of {names}; name one model's alone")
    return found


def _results(place: Path) -> Iterator[Result]:
    if place.is_dir() and (place / "manifest.json").is_file():
        yield from _of_stage(place)
    elif place.is_file() and place.suffix == ".json":
        yield from _of_scores(place)


def _of_stage(folder: Path) -> Iterator[Result]:
    manifest = _json(folder / "manifest.json")
    if "benchmark" in manifest:
        config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
        node, rows = config["nodes"]["benchmark"], folder / "records.jsonl"
        yield Result(folder, _built(node, folder), manifest["protocol"], manifest["complete"], _items(rows))


def _of_scores(file: Path) -> Iterator[Result]:
    summary = _json(file)
    if not isinstance(summary, dict) or not {"benchmark", "protocol", "items"} <= summary.keys():
        return
    if "config" not in summary:
        raise UserError(f"{file}: does not say how it was scored; score the answers again with nsft score")
    items = _items(file.with_name(summary["items"]))
    yield Result(file, _built(summary["config"], file), summary["protocol"], summary["complete"], items)


def _built(node: dict[str, Any], where: Path) -> Any:
    """The benchmark of a node that a file holds: only classes that `conf/benchmark` names are made."""
    files = (configs.folder("conf") / "benchmark").glob("*.yaml")
    known = {yaml.safe_load(file.read_text("utf-8")).get("_target_") for file in files}
    if node.get("_target_") not in known:
        raise UserError(f"{where}: {node.get('_target_')} is no benchmark of conf/benchmark")
    return build_benchmark(node)


def _items(file: Path) -> ScoredItems:
    try:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        return ScoredItems(tuple(from_json(ItemScore, row["score"]) for row in rows if row["score"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is not a file of per-item scores ({error}); score again") from error


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}); score again") from error


# --- comparing -------------------------------------------------------------------------------------


def matched(a: Sequence[Result], b: Sequence[Result]) -> tuple[list[tuple[Result, Result]], list[str]]:
    """Return the pairs of one benchmark and protocol, and what is to be known of the rest."""
    others = {result.key: result for result in b}
    pairs = [(result, others[result.key]) for result in a if result.key in others]
    notes = []
    for result in [*a, *b]:
        if not any(result in pair for pair in pairs):
            notes.append(f"{result.place}: {result.benchmark.name} under {result.protocol} stands alone")
        elif not result.complete:
            notes.append(f"{result.place}: {result.benchmark.name} is not complete")
    return pairs, notes


def compared(pairs: Sequence[tuple[Result, Result]], replicates: int) -> list[Line]:
    """Return a line for every described metric that both results of a pair have."""
    lines = [line for pair in pairs for line in _lines(*pair, replicates)]
    tested = [
        x.difference.p_bootstrap if x.metric.headline and x.metric.better != "none" else None for x in lines
    ]
    return [Line(**{**vars(x), "p_holm": p}) for x, p in zip(lines, holm(tested), strict=True)]


def _lines(a: Result, b: Result, replicates: int) -> Iterator[Line]:
    _check_same(a, b)
    bootstrap = Bootstrap(a.benchmark.metrics, replicates)
    differences = bootstrap.compare({None: a.items}, {None: b.items})
    mine, theirs = bootstrap.intervals(a.items), bootstrap.intervals(b.items)
    for metric in a.benchmark.describe():
        name = metric.name
        if name in differences and name in mine and name in theirs:
            yield Line(a.benchmark.name, metric, *mine[name], *theirs[name], differences[name], None)


def _check_same(a: Result, b: Result) -> None:
    """Refuse results of one benchmark whose items of one id are about different images."""
    images = {score.id: score.cluster for score in a.items.scores}
    for score in b.items.scores:
        if images.get(score.id, score.cluster) != score.cluster:
            raise UserError(
                f"{a.place} and {b.place}: item {score.id} is about {images[score.id]} in one and "
                f"{score.cluster} in the other; score both on the same files"
            )


def _without_nan(value: Any) -> Any:
    """The value with None for what is undefined, which JSON has no number for."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and value != value else value


def show(lines: Sequence[Line], notes: Sequence[str]) -> None:
    """Print the headline metrics and what stands in the way of a plain reading."""
    table = Table("", "", "A", "B", "A - B", "p (Holm)", "items", "images")
    for line in (line for line in lines if line.metric.headline):
        gap = line.difference
        difference = _with_interval(gap.value, gap.bootstrap, sign="+")
        p = "" if line.p_holm is None else f"{line.p_holm:.3g}"
        values = (_with_interval(line.a, line.a_interval), _with_interval(line.b, line.b_interval))
        table.add_row(
            line.benchmark, line.metric.title, *values, difference, p, str(gap.items), str(gap.clusters)
        )
    console = Console()
    console.print(table)
    unpaired = sum(line.difference.unpaired for line in lines if line.metric.headline)
    for note in [
        *notes,
        *([f"{unpaired} scored items that the other model has no score for"] * bool(unpaired)),
    ]:
        console.print(f"note: {note}", markup=False)


def _with_interval(value: float, interval: tuple[float, float] | None, sign: str = "") -> str:
    """The value and its interval; a dash where it is not defined (too few items, say)."""
    if value != value:
        return "–"
    ends = f" [{interval[0]:{sign}.2f}, {interval[1]:{sign}.2f}]" if interval else ""
    return f"{value:{sign}.2f}{ends}"
