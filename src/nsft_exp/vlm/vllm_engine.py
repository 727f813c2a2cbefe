"""`vlm.engine=vllm`: the same prompts, answered by vLLM in a process of its own.

Text, ids and images are prepared here as for training; the child (`vlm.python`, by default this interpreter)
has the model alone. It ends with its stage, and when this process is gone, and gives the memory back.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsft_exp.images import open_image
from nsft_exp.records import Reply, Request, UserError
from nsft_exp.vlm.row import Row, candidate_ids, refuse, reply_of, rows_of
from nsft_exp.vlm.vllm_process import VllmProcess, VllmSettings, one_image_token, save_picture

if TYPE_CHECKING:
    from nsft_exp.vlm.hf import HFModel
    from nsft_exp.vlm.loaded import LoadedHF

CHUNK = 256
"""Requests that are handed to vLLM together; it batches them itself."""
LORA_RANKS = (0, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM makes room for."""
MAX_LENGTH = 8192
"""Tokens that vLLM makes room for where `vlm.max_length` does not say."""


class VllmEngine:
    """Answers with a model, and what was trained on it, through vLLM.

    With a `lora_rank` it also takes one more adapter, another each time (`take`). `memory` is the share of
    the GPU's memory that vLLM may use (None: vLLM's default). Raises UserError where vLLM is not there.
    """

    def __init__(
        self,
        model: HFModel,
        adapters: Sequence[Path] = (),
        lora_rank: int = 0,
        memory: float | None = None,
    ) -> None:
        self.python = model.python or sys.executable
        if model.python is None and importlib.util.find_spec("vllm") is None:
            raise UserError(
                "vlm.engine=vllm: vLLM is not installed here; name an interpreter that has it with "
                "vlm.python=..., or pip install 'nsft-exp[vllm]'"
            )
        if not Path(self.python).is_file():
            raise UserError(f"vlm.python={self.python}: there is no such interpreter")
        self.model, self.adapters = model, list(adapters)
        self.lora_rank, self.memory = lora_rank, memory
        self._process: VllmProcess | None = None
        self._adapter: list[Any] | None = None

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[str, tuple[Reply, ...]]]:
        """Yield (request id, its n replies). Greedy answers are transformers' up to rounding; the noise of
        sampled ones is vLLM's own. Raises UserError for beams, views and prompts that are too long.
        """
        left = iter(requests)
        while some := list(islice(left, CHUNK)):
            process = self._start()
            rows = [self._rows(request) for request in some]
            prompts = [self._prompt(those) for those in rows]
            answers = process.answers(prompts, self._adapter)
            for those, answer in zip(rows, answers, strict=True):
                yield those[0].request.id, self._replies(those, answer)

    def take(self, save: Callable[[Path], None]) -> None:
        """Answer from now on with the adapter that `save` writes into a folder, in PEFT's format."""
        self._start()
        number, before = (1, None) if self._adapter is None else (self._adapter[0] + 1, self._adapter[1])
        folder = Path(self._place.name) / f"adapter-{number}"
        folder.mkdir()
        save(folder)
        self._adapter = [number, str(folder)]
        if before is not None:
            shutil.rmtree(before)

    def close(self) -> None:
        """End vLLM's processes and remove the folder that they read."""
        if self._process is not None:
            self._process.close()
            self._place.cleanup()
            self._process = None

    def _start(self) -> VllmProcess:
        if self._process is None:
            self._place = tempfile.TemporaryDirectory(prefix="nsft-vllm-")
            place = Path(self._place.name)
            folder = place / "model"
            folder.mkdir()
            self.loaded = written(self.model, self.adapters, folder)
            settings = VllmSettings(
                model=str(folder),
                dtype=self.model.dtype,
                max_length=self.loaded.max_length,
                batch_size=self.model.batch_size,
                stops=tuple(sorted(self.loaded.stops)),
                lora_rank=next((rank for rank in LORA_RANKS if rank >= self.lora_rank), self.lora_rank),
                memory=self.memory,
            )
            self._process = VllmProcess(self.python, place, settings, "vlm.engine=vllm")
        return self._process

    # --- requests and replies ----------------------------------------------------------------------

    def _rows(self, request: Request) -> list[Row]:
        refuse(request)
        if request.decoding.num_beams != 1:
            raise UserError(
                f"request {request.id}: vLLM has no beam search (Hugging Face only); take vlm.engine=hf"
            )
        if request.view != "clean":
            raise UserError(
                f"request {request.id}: vLLM takes pictures, not the tensor of view {request.view}; "
                "take vlm.engine=hf"
            )
        return rows_of(self.loaded, request)

    def _prompt(self, rows: list[Row]) -> dict[str, Any]:
        """A request as vLLM's process takes it."""
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
        return str(file) if file.exists() else save_picture(open_image(image, self.loaded.exif), file)

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
