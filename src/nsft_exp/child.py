"""A child process that ends with its parent, hears the parent's signals, and leaves its last lines behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

TAIL = 40
"""Last lines of a child that are kept for the message about its end."""
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What ends a job: SIGTERM, and SLURM's warning that its time is up (`--signal=USR1@120`; submitit: USR2)."""


def run_child(
    command: Sequence[str], env: dict[str, str] | None = None, merged: bool = False
) -> tuple[int, list[str]]:
    """Run a command; its stderr is passed on. Returns (return code, last lines of its stderr).

    `merged`: its stdout too, as stderr, so that ours has our own words only. It has a session of its own, so
    that its end is no one else's. A stopping signal goes on to it as SIGTERM, it is waited for, who listened
    before hears it too, and KeyboardInterrupt is raised.
    """
    tail: deque[str] = deque(maxlen=TAIL)
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if merged else {}
    with subprocess.Popen(command, env=env, errors="replace", start_new_session=True, **options) as child:
        said = child.stdout if merged else child.stderr
        assert said is not None
        try:
            with hearing(lambda number: child.terminate()) as heard:
                for line in said:
                    sys.stderr.write(line)
                    tail.append(line)
                child.wait()
        except BaseException:  # Ctrl-C, which a session of its own does not hear
            child.terminate()
            raise
    if heard:
        pass_on(heard)
        raise KeyboardInterrupt
    return child.returncode, list(tail)


@contextmanager
def hearing(tell: Callable[[int], Any]) -> Iterator[list[int]]:
    """Call `tell` with every stopping signal inside the block, and give the list of those heard.

    Outside the main thread, where Python lets nobody listen, nothing is heard.
    """
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def hear(number: int, frame: Any) -> None:
        heard.append(number)
        tell(number)

    before = {number: signal.signal(number, hear) for number in STOPPING}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pass_on(heard: Sequence[int]) -> None:
    """Give a signal that was heard to who listens now: submitit then queues the job again and ends it."""
    if heard and callable(signal.getsignal(heard[0])):
        signal.raise_signal(heard[0])


def end_with_parent() -> None:
    """End this process's group when the parent is gone, however it went: its end of our stdin closes then."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
