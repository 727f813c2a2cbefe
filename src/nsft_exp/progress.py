"""The progress bar of a training, on a terminal."""

from __future__ import annotations

from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class StepBar(L.Callback):
    """Shows the optimizer steps done and the time left; draws nothing where there is no terminal."""

    def __init__(self, total: int) -> None:
        self.total = total
        console = Console(stderr=True)
        columns = (TextColumn("  train"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task("train", total=total)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start at the step that training starts at."""
        self.bar.update(self.task, completed=trainer.global_step)
        self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """One step further."""
        self.bar.update(self.task, completed=trainer.global_step)

    def teardown(self, *_: Any, **__: Any) -> None:
        """Take the bar away, also after an error."""
        self.bar.stop()
