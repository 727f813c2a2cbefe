"""A process that has vLLM and a model, asked line by line; the interpreter needs nothing of ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nsft_exp.records import UserError

SHUTDOWN = 30
"""Seconds that vLLM gets to end by itself."""


@dataclass(frozen=True)
class VllmSettings:
    """The model's folder and how vLLM runs it.

    `max_length` is the tokens of the longest prompt with its answer, `batch_size` the requests at once,
    `stops` the token ids that end an answer besides the folder's own, `lora_rank` the largest rank of an
    adapter to come (0: none comes), `memory` the share of the GPU's memory to use (None: vLLM's default).
    """

    model: str
    dtype: str
    max_length: int
    batch_size: int
    stops: tuple[int, ...] = ()
    lora_rank: int = 0
    memory: float | None = None


class VllmProcess:
    """vLLM with the model of `settings` (vllm_child.py), run by `python` in the folder `place`.

    Raises UserError with the end of what it printed where it does not answer. `close` ends it, with every
    process that it started.
    """

    def __init__(self, python: str, place: Path, settings: VllmSettings, where: str) -> None:
        self.where = where
        # as text, not as a file: Python would look for modules in the file's own folder first
        script = Path(__file__).with_name("vllm_child.py").read_text("utf-8")
        self.process = subprocess.Popen(
            [python, "-c", script],
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # vLLM starts processes of its own, which outlive it when it is killed
        )
        self._tail: deque[str] = deque(maxlen=40)
        self._reader = threading.Thread(target=self._listen, args=(self.process.stderr,), daemon=True)
        self._reader.start()
        try:
            self._ask(asdict(settings))
        except BaseException:
            self.close()
            raise

    def answers(self, prompts: Sequence[dict[str, Any]], adapter: list[Any] | None = None) -> list[Any]:
        """vLLM's rows for prompts, with an adapter (number, folder) or without."""
        return self._ask({"prompts": prompts, "adapter": adapter})

    def _ask(self, message: Any) -> Any:
        """Write a line to the process and return its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            self._reader.join(timeout=5)
            words = " ".join("".join(self._tail).split())[-400:]
            raise UserError(f"{self.where}: vLLM does not answer (code {self.process.returncode}: {words})")
        return json.loads(line)

    def close(self) -> None:
        """End the process and all that it started."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=SHUTDOWN)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(timeout=5)

    def _listen(self, lines: Any) -> None:
        self._tail.extend(lines)


def one_image_token(ids: Sequence[int], image_token: int) -> list[int]:
    """The ids with each run of image tokens cut to one, which vLLM multiplies itself."""
    return [token for n, token in enumerate(ids) if token != image_token or n == 0 or ids[n - 1] != token]


def save_picture(picture: Any, file: Path) -> str:
    """Write a PIL image as the process reads it; returns its name."""
    picture.convert("RGB").save(file)
    return str(file)
