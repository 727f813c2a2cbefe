"""Answers of vLLM to the probes' prompts, from an interpreter that has it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nsft_exp.export.probe import MAX_NEW_TOKENS, GreedyAnswer
from nsft_exp.records import UserError
from nsft_exp.vlm.vllm_engine import one_image_token

MAX_LENGTH = 8192
"""Tokens that vLLM makes room for, where the prompts need no more and the model takes as many."""


def interpreter_with_vllm(python: str | None) -> str | None:
    """The interpreter that was named, this one where it has vLLM, or None (`none`: it is left out)."""
    if python == "none":
        return None
    if python is None:
        return sys.executable if importlib.util.find_spec("vllm") else None
    if not Path(python).is_file():
        raise UserError(f"python={python}: there is no such interpreter")
    return python


def vllm_answers(
    python: str,
    folder: Path,
    prompts: Sequence[Sequence[int]],
    pictures: Sequence[Any | None],
    config: Any,
) -> list[GreedyAnswer]:
    """The greedy answers of vLLM, run by `python` on a model's folder, to prompts as token ids.

    `pictures` are PIL images and `config` is the model's. vLLM puts the image tokens in itself, so that each
    run of them becomes one; it computes in the model's own type. Raises UserError with the end of its output
    where vLLM fails.
    """
    with tempfile.TemporaryDirectory(prefix="nsft-vllm-") as place:
        pairs = enumerate(zip(prompts, pictures, strict=True))
        asked = [
            {
                "ids": one_image_token(ids, config.image_token_id),
                "image": _saved(picture, Path(place, f"{n}.png")),
            }
            for n, (ids, picture) in pairs
        ]
        longest = max(MAX_LENGTH, *(len(ids) + MAX_NEW_TOKENS for ids in prompts))
        order = {
            "model": str(folder.resolve()),
            "dtype": str(config.dtype).removeprefix("torch."),
            "max_length": min(longest, config.text_config.max_position_embeddings),
            "max_tokens": MAX_NEW_TOKENS,
            "prompts": asked,
        }
        rows = _run(python, Path(place), order)
    return [GreedyAnswer(tuple(row["ids"]), tuple(row["logps"])) for row in rows]


def _run(python: str, place: Path, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Have the interpreter answer an order; files go through the folder `place`."""
    order, reply = place / "order.json", place / "reply.json"
    order.write_text(json.dumps(asked), "utf-8")
    # as text, not as a file: Python would look for modules in the file's own folder first
    script = Path(__file__).with_name("vllm_answers.py").read_text("utf-8")
    command = [python, "-c", script, str(order), str(reply)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if not reply.exists():
        reason = " ".join(done.stderr.split())[-400:]
        raise UserError(
            f"{asked['model']}: vLLM does not answer (code {done.returncode}: {reason}); "
            "python=none leaves it out"
        )
    rows: list[dict[str, Any]] = json.loads(reply.read_text("utf-8"))
    return rows


def _saved(picture: Any | None, file: Path) -> str | None:
    if picture is None:
        return None
    picture.convert("RGB").save(file)
    return str(file)
