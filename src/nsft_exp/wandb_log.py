"""Weights & Biases: one run for each cell, written from the cell's own files.

Offline runs of one id do not merge (wandb issues 3841 and 5865), so a cell's offline folder is removed
and written anew. Online, training streams its rows into the run while it goes on, a resumed one into the
same run; the whole run, of the same id, then overwrites it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from nsft_exp.records import UserError
from nsft_exp.report.browser import verdict
from nsft_exp.report.cell import Cell, Evaluation, read_jsonl

ANSWERS = 24  # rows of each benchmark's table of sample answers
SECRET = re.compile(r"(^|_)(api_?key|access_?key|token|secret|password)$", re.IGNORECASE)


class Wandb:
    """Writes cells as W&B runs below `folder/<cell>/`; `mode` is `offline` or `online`."""

    def __init__(
        self,
        folder: str,
        project: str = "nsft_exp",
        mode: str = "offline",
        entity: str | None = None,
        tags: tuple[str, ...] | list[str] = (),
    ) -> None:
        if mode not in ("offline", "online"):
            raise UserError(f"logger.mode={mode}: there is no such choice; take offline or online")
        self.folder, self.project, self.mode = folder, project, mode
        self.entity, self.tags = entity, tuple(tags)

    def log(self, cell: Cell, group: str = "") -> Path:
        """Write one cell's config, training history, sample answers and scores; return its folder.

        The group is the study and the row (what W&B averages over seeds). W&B's service may still be
        writing when this returns; it has finished when the process ends (or after `wandb.teardown()`).
        """
        folder = self._folder(cell.name)
        shutil.rmtree(folder, ignore_errors=True)
        with self._opened(self._description(cell, group)) as run:
            self._write(cell, run)
        return folder

    def live_run(self, cell: Cell, group: str = "") -> dict[str, Any] | None:
        """Return what `stream` needs to know of a cell (plain values); None where it does not stream."""
        return self._description(cell, group) if self.mode == "online" else None

    @contextmanager
    def stream(self, description: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Yield what puts a row of a training's metrics (with its `step`) into the run as it comes."""
        with self._opened(description, resume="allow") as run:
            yield partial(_put, run)

    def _folder(self, name: str) -> Path:
        return Path(self.folder).resolve() / re.sub(r"[^\w.=-]+", "-", name)

    def _description(self, cell: Cell, group: str) -> dict[str, Any]:
        """What W&B is told of a run from the start."""
        return {
            "id": hashlib.sha256(f"{group} {cell.name}".encode()).hexdigest()[:16],
            "name": cell.name,
            "group": ": ".join(part for part in (group, row_name(cell)) if part),
            "job_type": cell.method,
            "tags": tags_of(cell, self.tags),
            "config": without_secrets(cell.config),
        }

    @contextmanager
    def _opened(self, description: dict[str, Any], resume: Literal["allow"] | None = None) -> Iterator[Any]:
        """The run of this description; it is finished at the end of the block, whatever happens in it."""
        import wandb

        folder = self._folder(description["name"])
        folder.mkdir(parents=True, exist_ok=True)
        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True
        )
        with staging_in(folder / "staging"):
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                mode=self.mode,  # type: ignore[arg-type]
                dir=folder,
                resume=resume,
                reinit="create_new",
                settings=quiet,
                **description,
            )
            try:
                yield run
            except BaseException:
                run.finish(exit_code=1)
                raise
            run.finish()

    def _write(self, cell: Cell, run: Any) -> None:
        for row in history(cell):
            _put(run, row)
        looks = look_table(cell)
        if looks is not None:
            run.log({"answers/training": looks})
        if cell.evaluations:
            run.log({f"answers/{e.name}": answer_table(e) for e in cell.evaluations})
        run.summary.update(summary(cell))


def _put(run: Any, row: dict[str, Any]) -> None:
    run.log({name: value for name, value in row.items() if name != "step"}, step=int(row.get("step", 0)))


@contextmanager
def staging_in(folder: Path) -> Iterator[None]:
    """Have W&B stage the tables' files in the run's own folder, not in the user's home."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
        if before is not None:
            os.environ["WANDB_DATA_DIR"] = before


def row_name(cell: Cell) -> str:
    """Return the name of the cell's row: everything but its seed."""
    return "-".join(str(part) for part in (cell.label, cell.source, cell.size, cell.vlm) if part is not None)


def tags_of(cell: Cell, more: tuple[str, ...]) -> list[str]:
    """Return the run's tags (W&B allows 64 characters each)."""
    size = f"size={cell.size}" if cell.size is not None else ""
    seed = f"seed={cell.seed}" if cell.seed is not None else ""
    parts = [cell.method, cell.variant, f"source={cell.source}", size, f"vlm={cell.vlm}", seed]
    return [tag[:64] for tag in dict.fromkeys([*parts, *more]) if tag]


def without_secrets(config: Any) -> Any:
    """Return a config without values whose name says that they are keys, tokens or passwords."""
    if isinstance(config, dict):
        return {
            k: "(left out)" if v is not None and SECRET.search(str(k)) else without_secrets(v)
            for k, v in config.items()
        }
    return [without_secrets(v) for v in config] if isinstance(config, (list, tuple)) else config


def history(cell: Cell) -> list[dict[str, Any]]:
    """Return the training metrics by step, with the speeds of times.jsonl beside them."""
    rows = cell.history()
    times = list(read_jsonl(cell.train_folder / "times.jsonl")) if cell.train_folder else []
    by_step = {row.get("step"): row for row in times}
    return [
        {**{f"time/{k}": v for k, v in by_step.get(r.get("step"), {}).items() if k != "step"}, **r}
        for r in rows
    ]


def answer_table(evaluation: Evaluation) -> Any:
    """Return a W&B table of sample answers (chosen by a hash of their ids) with their images."""
    import wandb

    columns: list[str | int] = ["id", "image", "question", "answer", "truth", "verdict", "reason"]
    rows = sorted(evaluation.rows(), key=lambda row: hashlib.sha256(row.id.encode()).hexdigest())[:ANSWERS]
    images = {request.id: request.image for request in evaluation.benchmark.requests()}
    table = wandb.Table(columns=columns)
    for row in rows:
        path = images.get(row.id)
        image = wandb.Image(path) if path and Path(path).exists() else None
        truth = row.score.truth if row.score else ""
        judged = verdict(row, evaluation.benchmark) or mark_words(row.score.marks if row.score else ())
        table.add_data(row.id, image, row.question, row.answer, truth, judged, row.reason)
    return table


def look_table(cell: Cell) -> Any:
    """Return a W&B table of the answers that the model gave while it was trained; None where it gave none."""
    import wandb

    rows = list(read_jsonl(cell.train_folder / "samples.jsonl")) if cell.train_folder else []
    if not rows:
        return None
    columns: list[str | int] = ["step", "benchmark", "id", "question", "answer"]
    table = wandb.Table(columns=columns)
    for row in rows:
        table.add_data(*(row.get(str(name)) or "" for name in columns))
    return table


def mark_words(marks: tuple[tuple[int, int, str], ...]) -> str:
    """Return `2 right, 1 wrong` for an answer's marks."""
    kinds = [kind for _, _, kind in marks]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def summary(cell: Cell) -> dict[str, Any]:
    """Return scores (`<benchmark>/<metric>`; those without a value left out), counts and costs."""
    scores = {
        f"{e.name}/{name}": value
        for e in cell.evaluations
        for name, value in e.metrics.items()
        if value is not None
    }
    return {**scores, "counts": cell.counts, "costs": cell.costs}
