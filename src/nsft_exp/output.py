"""How a stage writes its folder: rows as they come, under a progress bar, and how its result came about."""

from __future__ import annotations

import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nsft_exp.records import Correction, Preference, to_json
from nsft_exp.store import StageFolder


def append_records(
    folder: StageFolder,
    records: Iterable[Preference | Correction],
    inputs: dict[str, str],
    total: int,
    sums: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
) -> None:
    """Append records as they come, then the manifest with the counts of every status.

    `inputs` are by id, in the samples' order, in which the rows stand at the end: a stage that was killed
    leaves the same file as one that was not. `sums` gives what else the manifest says, from all rows.
    """
    folder.reopen()
    started = time.perf_counter()
    with folder.appending() as append:
        for record in track(records, folder.path.parent.name, total):
            append({"input": inputs[record.id], **to_json(record)})
    rows = list(folder.records())
    places = {key: place for place, key in enumerate(inputs)}
    ordered = sorted(rows, key=lambda row: places.get(row["id"], len(places)))
    if ordered != rows:
        folder.rewrite(ordered)
    statuses = Counter(row["status"] for row in rows)
    more = sums(rows) if sums is not None else {}
    folder.finish(
        {"records": len(rows), "statuses": dict(sorted(statuses.items())), **circumstances(started), **more}
    )


def done_ids(folder: StageFolder, inputs: dict[str, str]) -> set[str]:
    """Return the ids whose record is there and was made from this input."""
    return {row["id"] for row in folder.records() if inputs.get(row["id"]) == row["input"]}


def track(items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
    """Yield the items under a progress bar (on a terminal; silent in a file)."""
    from rich.console import Console
    from rich.progress import track as bar

    console = Console(stderr=True)
    yield from bar(
        items, f"  {title}", total, console=console, transient=True, disable=not console.is_terminal
    )


def circumstances(started: float) -> dict[str, Any]:
    """What a manifest says of how it came about: seconds, versions, git revision."""
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "python": platform.python_version(),
        "versions": {
            name: _version(name) for name in ("nsft-exp", "torch", "transformers", "lightning", "peft")
        },
        "git": git_revision(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """The revision of the source tree, with `+` when it has changes; None outside a repository."""
    here = Path(__file__).parent
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None
