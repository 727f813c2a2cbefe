"""The estimate as a table on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

NOUNS = {
    "respond": "answer passes",
    "critique": "critic passes",
    "train": "trainings",
    "evaluate": "evaluations",
}
UNKNOWN = "unknown"
WIDTH = 160
"""Columns; a narrower terminal breaks the lines, so that nothing is cut."""


def show(found: dict[str, Any]) -> None:
    """Print what `verb.summary` returned."""
    table = Table("", "left", "", box=None, pad_edge=False, show_header=False)
    for column in table.columns:
        column.no_wrap = True
    cells = found["cells"]
    table.add_row("cells", _count(cells["total"] - cells["finished"]), _of(cells))
    for kind, stages in found["stages"].items():
        table.add_row(NOUNS[kind], _count(stages["distinct"] - stages["finished"]), _stage(stages))
    vlm = found["vlm"]
    table.add_row("samples the VLM answers", _count(vlm["records"]), _tokens(vlm["tokens_of_records"]))
    table.add_row("benchmark questions", _count(vlm["questions"]), "")
    for calls in found["calls"]:
        table.add_row(f"calls of {calls['model']} ({calls['who']})", _bounded(calls), _used(calls))
    steps = found["steps"]
    table.add_row("optimizer steps", ("" if steps["exact"] else "at most ") + _count(steps["left"]), "")
    table.add_row("hours", _hours(found["hours"]["total"]), _parts(found["hours"], _hours))
    needed = found["disk"]["needed"]
    free = f"{_size(found['disk']['free'])} free"
    table.add_row("disk", _size(needed["total"]), "; ".join(filter(None, [free, _parts(needed, _size)])))
    Console(highlight=False, width=WIDTH).print(table)
    if found["pilot"] is None and any(
        c["expected"] is None or c["input_tokens"] is None for c in found["calls"]
    ):
        print("tokens and money: pilot=32 makes the first 32 records of every pass, keeps them, and tells")


def _count(number: int) -> str:
    return f"{number:,}"


def _of(cells: dict[str, int]) -> str:
    return f"of {cells['total']}"


def _stage(stages: dict[str, Any]) -> str:
    later = f"; {stages['later']} start from a training that is still to come" if stages["later"] else ""
    return f"of {stages['distinct']} after sharing{later}"


def _bounded(calls: dict[str, Any]) -> str:
    if calls["exact"]:
        return _count(calls["known"])
    about = f", about {_count(calls['expected'])}" if calls["expected"] is not None else ""
    return f"at most {_count(calls['at_most'])}{about}"


def _used(calls: dict[str, Any]) -> str:
    if calls["input_tokens"] is None:
        return "tokens and money unknown"
    tokens = f"{_count(calls['input_tokens'])} tokens in, {_count(calls['output_tokens'])} out"
    money = "money unknown (no prices)" if calls["money"] is None else f"money {calls['money']:.4g}"
    return f"{tokens}, {money}"


def _tokens(number: int | None) -> str:
    return "tokens unknown" if number is None else f"{_count(number)} tokens generated"


def _parts(parts: dict[str, Any], form: Any) -> str:
    """Each kind of stage's share; those with nothing left are left out, those never measured come last."""
    kinds = {kind: part for kind, part in parts.items() if kind != "total"}
    known = [f"{kind} {form(part)}" for kind, part in kinds.items() if part]
    unknown = [kind for kind, part in kinds.items() if part is None]
    return ", ".join(known + [f"never measured: {', '.join(unknown)}"] * bool(unknown))


def _hours(hours: float | None) -> str:
    if hours is None:
        return UNKNOWN
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def _size(number: int | None) -> str:
    if number is None:
        return UNKNOWN
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} B"
