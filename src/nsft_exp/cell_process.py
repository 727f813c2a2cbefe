"""One cell in a process of its own: started from a composed job, ended with all that it started."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from hydra._internal.callbacks import Callbacks
from hydra.core.utils import JobRuntime, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig

from nsft_exp import config as configs
from nsft_exp.cell import new_outcome, run_cell
from nsft_exp.child import TAIL, end_with_parent
from nsft_exp.plan import row_label
from nsft_exp.records import UserError
from nsft_exp.store import write_atomically


class CellProcess:
    """A cell that runs as a child. `config` is its whole config, with the `hydra` node of its job."""

    def __init__(self, config: DictConfig, folder: str) -> None:
        self.config = config
        self.folder = folder
        """The job's own folder, where its log is."""
        self.choices = configs.choices_of(config.hydra)
        self.name = f"#{config.hydra.job.num} {row_label(self.choices)} seed {config.get('seed')}"

    def start(self, devices: str | None) -> None:
        """Start the child, in a process group of its own; `devices` are the GPUs that it sees (None: all)."""
        self._letters = tempfile.TemporaryDirectory(prefix="nsft-")
        order, self._reply = (Path(self._letters.name) / name for name in ("order.pickle", "reply.json"))
        order.write_bytes(pickle.dumps(self.config))
        self._child = subprocess.Popen(
            [sys.executable, "-m", "nsft_exp.cell_process", str(order), str(self._reply)],
            stdin=subprocess.PIPE,  # open as long as this process lives: see end_with_parent
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment(dict(os.environ), devices),
            start_new_session=True,
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child and all that it started; where they have ended nothing happens."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, number)

    def finish(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Pass the child's lines to `say` until it ends, and return its outcome.

        A child that ended without one (killed, out of memory) gives a failed outcome that says how it
        ended; its last lines are in the log. What it left running is killed.
        """
        tail: deque[str] = deque(maxlen=TAIL)
        with self._letters, self._child as child:
            reader = threading.Thread(target=_pass_lines, args=(child.stdout, say, tail))
            reader.start()
            child.wait()
            self.signal(signal.SIGKILL)
            reader.join()
            if self._reply.exists():
                return json.loads(self._reply.read_text("utf-8"))
        return self.lost(how_it_ended(child.returncode), list(tail))

    def lost(self, end: str, tail: Sequence[str] = ()) -> dict[str, Any]:
        """Return the outcome of a cell that told none itself; its last lines go to its log."""
        outcome = new_outcome(self.choices, self.folder)
        last = f"; its last line: {tail[-1].strip()}" if tail else ""
        outcome["error"] = f"the cell's process {end}{last}"
        with suppress(UserError):
            plain = configs.resolved(self.config)
            outcome |= {"config": plain, "seed": plain["seed"]}
        log = Path(outcome["log"])
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write("\n".join([f"the cell's process {end}", *tail, ""]))
        return outcome


def _pass_lines(lines: TextIO, say: Callable[[str], None], tail: deque[str]) -> None:
    for line in lines:
        if line.strip():
            tail.append(line.rstrip())
            say(line.rstrip())


def environment(variables: dict[str, str], devices: str | None) -> dict[str, str]:
    """Return a cell's environment: this process's, with the cell's devices (None: as they are)."""
    variables = {**variables, "PYTHONUNBUFFERED": "1"}
    return variables if devices is None else {**variables, "CUDA_VISIBLE_DEVICES": devices}


def how_it_ended(code: int) -> str:
    """Put a child's return code into words."""
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


# --- the child's side ------------------------------------------------------------------------------


def run_order(order: Path, reply: Path) -> None:
    """Run the job whose config is in the order file as Hydra's basic launcher would; write its outcome."""
    end_with_parent()
    setup_globals()
    configs.register_resolvers()
    config = pickle.loads(order.read_bytes())
    JobRuntime.instance().set("name", config.hydra.job.name)
    returned = run_job(
        hydra_context=HydraContext(config_loader=None, callbacks=Callbacks(config)),  # type: ignore[arg-type]
        task_function=run_cell,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    write_atomically(reply, json.dumps(returned.return_value))


if __name__ == "__main__":
    run_order(Path(sys.argv[1]), Path(sys.argv[2]))
