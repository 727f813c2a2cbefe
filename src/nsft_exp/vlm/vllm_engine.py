"""`vlm.engine=vllm`: the same prompts, answered by vLLM in a process of its own.

Text, ids and images are prepared here as for training; the child (`vlm.python`, by default this interpreter)
has the model alone. It ends with its stage, and when this process is gone, and gives the memory back.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsft_exp.images import open_image
from nsft_exp.records import Reply, Request, UserError
from nsft_exp.vlm.generation import Row, candidate_ids, refuse, reply_of, rows_of

if TYPE_CHECKING:
    from nsft_exp.vlm.hf import HFModel
    from nsft_exp.vlm.loaded import LoadedHF

CHUNK = 256
"""Requests that are handed to vLLM together; it batches them itself."""
MAX_LENGTH = 8192
"""Tokens that vLLM makes room for where `vlm.max_length` does not say."""


class VllmEngine:
    """Answers with a model, and what was trained on it, through vLLM.

    Raises UserError where vLLM is not there.
    """

    def __init__(self, model: HFModel, adapters: Sequence[Path] = ()) -> None:
        self.python = model.python or sys.executable
        if model.python is None and importlib.util.find_spec("vllm") is None:
            raise UserError(
                "vlm.engine=vllm: vLLM is not installed here; name an interpreter that has it with "
                "vlm.python=..., or pip install 'nsft-exp[vllm]'"
            )
        if not Path(self.python).is_file():
            raise UserError(f"vlm.python={self.python}: there is no such interpreter")
        self.model, self.adapters = model, list(adapters)
        self._child: subprocess.Popen[str] | None = None
        self._tail: deque[str] = deque(maxlen=40)

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[str, tuple[Reply, ...]]]:
        """Yield (request id, its n replies). Greedy answers are transformers' up to rounding; the noise of
        sampled ones is vLLM's own. Raises UserError for beams, views and prompts that are too long.
        """
        left = iter(requests)
        while some := list(islice(left, CHUNK)):
            self._start()
            rows = [self._rows(request) for request in some]
            answers = self._ask([self._prompt(those) for those in rows])
            for those, answer in zip(rows, answers, strict=True):
                yield those[0].request.id, self._replies(those, answer)

    def close(self) -> None:
        """End the child and every process that it started; remove the folder that it read."""
        if self._child is not None:
            assert self._child.stdin is not None
            with suppress(BrokenPipeError):
                self._child.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=30)
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
            self._reader.join(timeout=5)
            self._place.cleanup()
            self._child = None

    # --- the child ---------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._child is not None:
            return
        self._place = tempfile.TemporaryDirectory(prefix="nsft-vllm-")
        folder = Path(self._place.name) / "model"
        folder.mkdir()
        self.loaded = written(self.model, self.adapters, folder)
        # as text, not as a file: Python would look for modules in the file's own folder first
        script = Path(__file__).with_name("vllm_child.py").read_text("utf-8")
        self._child = subprocess.Popen(
            [self.python, "-c", script],
            cwd=self._place.name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # vLLM starts processes of its own, which outlive it when it is killed
        )
        self._reader = threading.Thread(target=self._listen, args=(self._child.stderr,), daemon=True)
        self._reader.start()
        settings = {
            "model": str(folder),
            "dtype": self.model.dtype,
            "max_length": self.loaded.max_length,
            "batch_size": self.model.batch_size,
            "stops": sorted(self.loaded.stops),
        }
        self._ask(settings)

    def _listen(self, lines: Any) -> None:
        self._tail.extend(lines)

    def _ask(self, message: Any) -> Any:
        """Write a line to the child and return its answer. UserError with its last words where it is gone."""
        assert self._child is not None
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(message) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._child.wait()
            self._reader.join(timeout=5)
            words = " ".join("".join(self._tail).split())[-400:]
            raise UserError(f"vlm.engine=vllm: vLLM does not answer (code {self._child.returncode}: {words})")
        return json.loads(line)

    # --- requests and replies ----------------------------------------------------------------------

    def _rows(self, request: Request) -> list[Row]:
        refuse(request)
        if request.view != "clean":
            raise UserError(
                f"request {request.id}: vLLM takes pictures, not the tensor of view {request.view}; "
                "take vlm.engine=hf"
            )
        return rows_of(self.loaded, request)

    def _prompt(self, rows: list[Row]) -> dict[str, Any]:
        """A request as the child takes it: the image tokens are one, which vLLM multiplies itself."""
        request, row = rows[0].request, rows[0]
        return {
            "ids": one_image_token(row.prompt, self.loaded.chat.image_token_id),
            "image": self._picture(request.image),
            "n": request.n,
            "temperature": request.decoding.temperature,
            "top_p": request.decoding.top_p,
            "seed": request.decoding.seed,
            "max_tokens": row.limit,
            "candidates": [candidate_ids(self.loaded, row, k) for k in range(len(request.candidates))],
        }

    def _picture(self, image: str | None) -> str | None:
        """The image as a PNG file, turned as the model's `exif` says; written once."""
        if image is None:
            return None
        name = f"{abs(hash(image)):x}-{Path(image).stem[:40]}.png"
        file = Path(self._place.name) / name
        if not file.exists():
            open_image(image, self.loaded.exif).convert("RGB").save(file)
        return str(file)

    def _replies(self, rows: list[Row], answer: dict[str, Any]) -> tuple[Reply, ...]:
        self._check_prompt(rows[0], answer["prompt"])
        for row, sample in zip(rows, answer["samples"], strict=True):
            row.ids, row.logps, row.finish = sample["ids"], sample["logps"], sample["finish"]
        if answer["candidates"]:
            rows[0].candidate_logps = tuple(answer["candidates"])
        return tuple(reply_of(self.loaded, row) for row in rows)

    def _check_prompt(self, row: Row, ids: list[int]) -> None:
        """Refuse to go on where vLLM has read another prompt than training writes."""
        if tuple(ids) != row.prompt:
            raise UserError(
                f"request {row.request.id}: vLLM read a prompt of {len(ids)} tokens where training writes "
                f"{len(row.prompt)}; its image processor is not the model's"
            )


def written(model: HFModel, adapters: Sequence[Path], folder: Path) -> LoadedHF:
    """Write the model for vLLM, what was trained merged in float32; return it without its weights."""
    whole = copy.copy(model)
    whole.dtype = "float32" if adapters else model.dtype
    loaded = whole.load(adapters, device="cpu")
    import torch

    loaded.model.to(getattr(torch, model.dtype))
    loaded.save(folder)
    loaded.max_length = min(loaded.max_length, model.max_length or MAX_LENGTH)
    loaded.model = None
    return loaded


def one_image_token(ids: Sequence[int], image_token: int) -> list[int]:
    """The ids with each run of image tokens cut to one."""
    return [token for n, token in enumerate(ids) if token != image_token or n == 0 or ids[n - 1] != token]
