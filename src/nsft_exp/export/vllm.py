"""Answers of vLLM to the probes' prompts, from an interpreter that has it."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from nsft_exp.export.probe import MAX_NEW_TOKENS, GreedyAnswer
from nsft_exp.records import UserError
from nsft_exp.vlm.vllm_process import VllmProcess, VllmSettings, one_image_token, save_picture

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
    longest = max(MAX_LENGTH, *(len(ids) + MAX_NEW_TOKENS for ids in prompts))
    settings = VllmSettings(
        model=str(folder.resolve()),
        dtype=str(config.dtype).removeprefix("torch."),
        max_length=min(longest, config.text_config.max_position_embeddings),
        batch_size=8,
    )
    with tempfile.TemporaryDirectory(prefix="nsft-vllm-") as place:
        pairs = enumerate(zip(prompts, pictures, strict=True))
        asked = [_prompt(ids, picture, Path(place, f"{n}.png"), config) for n, (ids, picture) in pairs]
        try:
            with closing(VllmProcess(python, Path(place), settings, str(folder))) as process:
                rows = process.answers(asked)
        except UserError as error:
            raise UserError(f"{error}; python=none leaves it out") from error
    answers = [row["samples"][0] for row in rows]
    return [GreedyAnswer(tuple(answer["ids"]), tuple(answer["logps"])) for answer in answers]


def _prompt(ids: Sequence[int], picture: Any | None, file: Path, config: Any) -> dict[str, Any]:
    return {
        "ids": one_image_token(ids, config.image_token_id),
        "image": None if picture is None else save_picture(picture, file),
        **{"n": 1, "temperature": 0.0, "top_p": 1.0, "seed": 0, "max_tokens": MAX_NEW_TOKENS},
        "candidates": [],
    }
