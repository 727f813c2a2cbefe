"""Many cells on one machine: started in order, some at once, each on its devices, ended together."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from nsft_exp.cell_process import CellProcess
from nsft_exp.device import Slots

GRACE_SECONDS = 10.0
"""How long a cell may take to end after SIGTERM (a training ends after its step) before it is killed."""


class CellPool:
    """Runs `total` cells, as many at once as there are `devices`: one entry for each slot."""

    def __init__(self, devices: Sequence[str | None], total: int) -> None:
        self.devices, self.total = devices, total
        self.slots = Slots(devices)
        self.running: set[CellProcess] = set()
        self.done = 0
        self._stopping = False
        self._lock = threading.Lock()
        self.console = Console(stderr=True, highlight=False)
        columns = (TextColumn("cells"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
        self.bar = Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        )

    def run(self, cells: Iterable[CellProcess]) -> list[dict[str, Any]]:
        """Start the cells in order and return their outcomes in order.

        KeyboardInterrupt, which SIGTERM raises too, leaves only when every cell has ended.
        """
        task = self.bar.add_task("cells", total=self.total)
        named = sorted({names for names in self.devices if names})
        on = f" on GPUs {' | '.join(named)}" if named else ""
        self.console.print(f"{self.total} cells, {len(self.devices)} at once{on}")
        with terminable(), self.bar, ThreadPoolExecutor(len(self.devices)) as threads:
            try:
                futures = [threads.submit(self._run, cell, self.slots.take(), task) for cell in cells]
                return [future.result() for future in futures]
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """End all cells: SIGTERM, then, after GRACE_SECONDS or a second interrupt, SIGKILL."""
        with self._lock:
            self._stopping = True
        self._signal(signal.SIGTERM)
        end = time.monotonic() + GRACE_SECONDS
        try:
            while self.running and time.monotonic() < end:
                time.sleep(0.05)
        finally:
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for cell in list(self.running):
            cell.signal(number)

    def _run(self, cell: CellProcess, devices: str | None, task: Any) -> dict[str, Any]:
        with self.slots.giving_back(devices):
            outcome = self._finish(cell, devices)
        with self._lock:
            self.done += 1
            self.bar.update(task, completed=self.done)
            self._say(cell, f"{outcome['status']} (cells {self.done}/{self.total})")
        return outcome

    def _finish(self, cell: CellProcess, devices: str | None) -> dict[str, Any]:
        try:
            with self._lock:
                if self._stopping:
                    return cell.lost("was not started")
                cell.start(devices)
                self.running.add(cell)
            return cell.finish(lambda line: self._say(cell, line))
        except OSError as error:
            return cell.lost(f"could not be started ({error})")
        finally:
            self.running.discard(cell)

    def _say(self, cell: CellProcess, line: str) -> None:
        self.console.print(Text.assemble((cell.name, "bold"), " | ", line), soft_wrap=True)


@contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM raise KeyboardInterrupt inside the block, as Ctrl-C does (in the main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
