"""Beam search, transformers' own, over the prompts and image features that greedy answers get too.

An answer is that of the beam with the highest log-probability a token, as transformers' `generate` ends it by
default. It does not depend on the batch beyond rounding. Its tokens' log-probabilities are not kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from nsft_exp.records import Request, UserError

if TYPE_CHECKING:
    from nsft_exp.vlm.loaded import LoadedHF
    from nsft_exp.vlm.row import Row


def refuse_beams(request: Request) -> None:
    """Raise UserError for a request that beam search has no answer to."""
    how = request.decoding
    what = {
        "sampling": how.temperature > 0,
        "several answers": request.n > 1,
        "log-probabilities of candidates": bool(request.candidates),
        "an end after a sentence": how.one_sentence,
        "diversity": how.diversity > 0,
    }
    for name, asked in what.items():
        if asked and how.num_beams > 1:
            raise UserError(f"request {request.id}: beam search goes without {name}; set num_beams=1")


@torch.inference_mode()
def search_beams(
    loaded: LoadedHF, rows: list[Row], embeddings: Tensor, mask: Tensor, positions: Tensor
) -> None:
    """Answer rows that have the same limit and number of beams; changes them in place.

    `embeddings` [B, T, H] are the prompts with their images, padded on the left, `mask` [B, T] is 0 at the
    padding, `positions` [axes, B, T].
    """
    with _only(loaded.model, _settings(loaded, rows[0])):
        found = loaded.model.generate(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions[0] if len(positions) == 1 else positions,
        )
    for row, ids in zip(rows, found.tolist(), strict=True):
        end = next((place for place, token in enumerate(ids) if token in loaded.stops), None)
        row.finish = "length" if end is None else "stop"
        row.ids = ids[: row.limit] if end is None else ids[: end + 1]


def _settings(loaded: LoadedHF, row: Row) -> GenerationConfig:
    return GenerationConfig(
        num_beams=row.request.decoding.num_beams,
        do_sample=False,
        max_new_tokens=row.limit,
        eos_token_id=sorted(loaded.stops),
        pad_token_id=loaded.pad_id,
    )


@contextmanager
def _only(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Have the model generate by these settings alone, not its checkpoint's (Qwen's repetition penalty)."""
    before = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = before
