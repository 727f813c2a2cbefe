"""The files of a training, and how it goes on after a kill: checkpoints that are whole, rows cut to them."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from nsft_exp.child import hearing
from nsft_exp.world import World

log = logging.getLogger(__name__)


class Checkpoints(L.Callback):
    """Writes the checkpoint every `every` optimizer steps and at the last."""

    def __init__(self, path: Path, every: int, last: int) -> None:
        self.path, self.every, self.last = path, every, last

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save: trainable weights, optimizer, loops, the loader's position."""
        if trainer.global_step % self.every == 0 or trainer.global_step == self.last:
            trainer.save_checkpoint(self.path)


class StopSignals(L.Callback):
    """Ends the training at SIGTERM or SLURM's warning, after the step under way, its checkpoint written.

    All processes of a training end at the same step. Lightning's own handler of SIGTERM is taken off: it
    speaks to the other processes from inside the signal.
    """

    def __init__(self, path: Path, world: World) -> None:
        self.path, self.world = path, world
        self.heard: list[int] = []
        self._block: Any = None

    def on_train_start(self, *_: Any) -> None:
        """Listen."""
        self._block = hearing(lambda number: None)
        self.heard = self._block.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Raise KeyboardInterrupt where a process has heard a signal."""
        if any(self.world.gathered(bool(self.heard))):
            trainer.save_checkpoint(self.path)
            log.warning(
                "stopped by a signal after optimizer step %d, checkpoint written", trainer.global_step
            )
            raise KeyboardInterrupt

    def teardown(self, *_: Any, **__: Any) -> None:
        """Listen no more."""
        if self._block is not None:
            self._block.__exit__(None, None, None)
            self._block = None


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are either the old one or the new one, whatever moment the process is killed at."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside the file, then rename."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial_path = target.with_suffix(".partial")
        with partial_path.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial_path, target)


class RunFiles:
    """The files of a training: metrics, times, sample answers, held-out examples, checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = Rows(folder / "metrics.jsonl")
        self.times = Rows(folder / "times.jsonl")
        self.samples = Rows(folder / "samples.jsonl")
        self.held_out = Rows(folder / "held_out.jsonl")
        self.checkpoint = folder / "checkpoint" / "last.ckpt"

    def read_checkpoint(self) -> dict[str, Any]:
        """The checkpoint's content; plain tensors and values only."""
        content: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        return content

    def resume_step(self) -> int:
        """How many optimizer steps the checkpoint has behind it; 0 without one."""
        return int(self.read_checkpoint()["global_step"]) if self.checkpoint.exists() else 0

    def cut_after(self, step: int) -> None:
        """Take off the rows of steps that a resumed run will do again."""
        for rows in (self.metrics, self.times, self.samples, self.held_out):
            rows.cut_after(step if step else -1)  # what a training writes before its first step has step 0


class Rows:
    """A JSON-lines file of rows with a `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Write one row at the end."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole rows (a killed process may have left half of one at the end)."""
        if not self.path.exists():
            return []
        lines = self.path.read_text("utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def cut_after(self, step: int) -> None:
        """Keep the rows up to a step."""
        kept = [row for row in self.read() if row["step"] <= step]
        if not self.path.exists():
            return
        partial_path = self.path.with_suffix(".partial")
        partial_path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), "utf-8")
        os.replace(partial_path, self.path)
