"""Tokens, hours and disk of what a sweep has left, from what was measured; None is what is not known."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsft_exp.estimate.pilot import timing_of
from nsft_exp.estimate.survey import PER_SAMPLE, Pass, Survey, likeness
from nsft_exp.store import StageFolder, Store

KINDS = ("respond", "critique", "train", "evaluate")


@dataclass(frozen=True)
class Measured:
    """One finished stage: seconds and bytes, and the number of steps (training) that they are for."""

    seconds: float
    bytes: int
    num: int


class Past:
    """The finished trainings and evaluations in a store, by likeness. Read when first asked for."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._found: dict[str, dict[str, list[Measured]]] = {}

    def of(self, entry: Pass) -> list[Measured]:
        """The finished stages that are like this one."""
        kind = entry.step.kind
        if kind not in self._found:
            found = self._found[kind] = {}
            for like, measured in _finished(self.store.root / kind, kind):
                found.setdefault(like, []).append(measured)
        return self._found[kind].get(entry.like, [])


def _finished(folder: Path, kind: str) -> Iterator[tuple[str, Measured]]:
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        stage = StageFolder(place)
        manifest = stage.manifest()
        if manifest and "seconds" in manifest and (place / "config.yaml").exists():
            measured = Measured(manifest["seconds"], bytes_of(place), manifest.get("steps", 1) or 1)
            yield likeness(kind, stage.read_config()["nodes"]), measured


def seconds(survey: Survey, past: Past) -> dict[str, float | None]:
    """Seconds of each kind of stage that is left, one after the other; None where some are not known."""
    made = {kind: [_seconds_of_records(e, survey.of(kind)) for e in survey.of(kind)] for kind in PER_SAMPLE}
    made |= {kind: [_seconds_of_run(e, past) for e in survey.of(kind)] for kind in ("train", "evaluate")}
    return {kind: total(made[kind]) for kind in KINDS}


def _seconds_of_records(entry: Pass, others: list[Pass]) -> float | None:
    if not entry.left:
        return 0.0
    timings = [timing_of(entry.folder), *(timing_of(e.folder) for e in others if e.like == entry.like)]
    timing = next((t for t in timings if t), None)
    if timing is None:
        return None
    each: float = timing["seconds"] / timing["records"]
    return timing["setup"] + each * len(entry.left)


def _seconds_of_run(entry: Pass, past: Past) -> float | None:
    if entry.finished:
        return 0.0
    found = past.of(entry)
    if not found:
        return None
    each = sum(m.seconds for m in found) / sum(m.num for m in found)
    return each * (entry.num_left if entry.step.kind == "train" else 1)


def vlm_tokens(survey: Survey) -> int | None:
    """Tokens that the VLM still has to generate for pairs, by the mean of the answers there are."""
    return _rounded(total(_tokens_of(e, survey.of("respond")) for e in survey.of("respond")))


def _tokens_of(entry: Pass, others: list[Pass]) -> float | None:
    if not entry.left:
        return 0.0
    alike = [entry] if entry.rows else [e for e in others if e.like == entry.like]
    details = [row["details"] for e in alike for row in e.rows.values()]
    told = [d["tokens"] + d.get("chosen_tokens", 0) for d in details if "tokens" in d]
    return sum(told) / len(details) * len(entry.left) if told else None


def disk(survey: Survey, past: Past) -> dict[str, int | None]:
    """Bytes of each kind of stage that is left; None where some are not known."""
    made = {kind: [_bytes_of_records(e, survey.of(kind)) for e in survey.of(kind)] for kind in PER_SAMPLE}
    made |= {kind: [_bytes_of_run(e, past) for e in survey.of(kind)] for kind in ("train", "evaluate")}
    return {kind: _rounded(total(made[kind])) for kind in KINDS}


def _bytes_of_records(entry: Pass, others: list[Pass]) -> float | None:
    if not entry.left:
        return 0.0
    alike = [e for e in (entry, *others) if e.rows and e.like == entry.like]
    if not alike:
        return None
    return (alike[0].folder.path / "records.jsonl").stat().st_size / len(alike[0].rows) * len(entry.left)


def _bytes_of_run(entry: Pass, past: Past) -> float | None:
    found = past.of(entry) if not entry.finished else []
    return 0.0 if entry.finished else sum(m.bytes for m in found) / len(found) if found else None


def free(store: Store) -> int:
    """Bytes that are free where the store is."""
    return shutil.disk_usage(store.root).free


def bytes_of(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def total(values: Iterable[Any]) -> Any:
    """The sum; None where a part is not known."""
    values = list(values)
    return None if any(value is None for value in values) else sum(values)


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)
