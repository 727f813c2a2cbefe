"""Choosing the next token: arg-max, or a sample whose noise belongs to its request and not to the batch."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from nsft_exp.records import Request


def noise_of(request: Request, number: int) -> torch.Generator | None:
    """The random numbers of a request's sample, on the CPU so that they are the same on every device.

    None for a greedy answer.
    """
    if request.decoding.temperature == 0:
        return None
    text = f"{request.decoding.seed}|{request.id}|{number}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)


def choose(logits: Tensor, noise: list[torch.Generator | None], requests: list[Request]) -> Tensor:
    """Return each row's next token [B] from logits [B, V]; rows without noise take the arg-max.

    The arg-max of logits / T + Gumbel noise is a draw from softmax(logits / T).
    """
    chosen = logits.argmax(-1)
    for number, (generator, request) in enumerate(zip(noise, requests, strict=True)):
        if generator is None:
            continue
        decoding = request.decoding
        scaled = top_p_filtered(logits[number] / decoding.temperature, decoding.top_p)
        uniform = torch.rand(scaled.shape[-1], generator=generator, dtype=torch.float64)
        gumbel = -(-uniform.log()).log()
        chosen[number] = (scaled.double() + gumbel.to(scaled.device)).argmax()
    return chosen


def top_p_filtered(logits: Tensor, top_p: float) -> Tensor:
    """Return logits [V], at -inf outside the smallest set of likeliest tokens that together reach top_p."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    drop = torch.zeros_like(before, dtype=torch.bool).scatter(0, order, before >= top_p)
    return logits.masked_fill(drop, -torch.inf)
