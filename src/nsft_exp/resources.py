"""What a training takes: time, tokens a second, memory, and too much memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nsft_exp.records import UserError


def times(step: int, tokens: int, seconds: float, device: torch.device) -> dict[str, float]:
    """How long a step took, tokens (padding left out) a second, and the peak memory so far."""
    return {
        "step": step,
        "seconds": round(seconds, 6),
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_memory_bytes": peak_memory(device),
    }


def peak_memory(device: torch.device) -> int:
    """Peak bytes: allocated on a GPU, or resident in this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


@contextmanager
def telling_out_of_memory(examples: int) -> Iterator[None]:
    """Tell running out of GPU memory inside the block as a UserError that names the word to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory with {examples} examples at once; lower trainer.micro_batch "
            "(the result stays the same)"
        ) from error
