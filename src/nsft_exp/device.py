"""Which GPUs a cell sees when several cells run at once: plain names, no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from queue import SimpleQueue

from nsft_exp.records import UserError


def assign_slots(
    slots: int | None, groups: Sequence[str], threads: int | None, cores: int
) -> list[str | None]:
    """Return the devices of each slot, a value of CUDA_VISIBLE_DEVICES (None where there are no GPUs).

    Slot n has group n, and the groups begin again where there are more slots. Without a number of slots
    there is one for each group; without GPUs as many as fill `cores` with cells of `threads` threads (None:
    a cell takes all cores). Raises UserError for a number below 1.
    """
    if slots is not None and slots < 1:
        raise UserError(f"hydra.launcher.slots={slots}: must be at least 1, or null")
    number = slots or len(groups) or max(1, cores // (threads or cores))
    return list(islice(cycle(groups or [None]), number))


def device_groups(devices: Sequence[str], size: int) -> list[str]:
    """Cut devices into groups of `size`, each a value of CUDA_VISIBLE_DEVICES; a remainder stays unused.

    Without devices there are no groups. Raises UserError where not even one group is full.
    """
    if size < 1 or (devices and size > len(devices)):
        there = f"there are {len(devices)} GPUs; " if devices else ""
        raise UserError(
            f"hydra.launcher.devices_per_cell={size}: {there}take 1 to {len(devices) or 'the number of GPUs'}"
        )
    starts = range(0, len(devices) - size + 1, size)
    return [",".join(devices[start : start + size]) for start in starts]


def visible_devices(setting: str | None, count: int) -> list[str]:
    """Return the names of the `count` GPUs that this process may use, as CUDA_VISIBLE_DEVICES spells them.

    `setting` is that variable's present value (numbers or UUIDs; None: not set).
    """
    if setting is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in setting.split(",") if name.strip()][:count]


def num_gpus() -> int:
    """How many GPUs this process may use. A Linux without a GPU's driver answers without torch, at once."""
    drivers = ("nvidia*", "nvhost*", "nvgpu*", "kfd", "dxg")
    if sys.platform == "linux" and not any(any(Path("/dev").glob(name)) for name in drivers):
        return 0
    import torch

    return torch.cuda.device_count()


def num_cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Slots:
    """The places in which cells run, each with its devices."""

    def __init__(self, devices: Sequence[str | None]) -> None:
        self._free: SimpleQueue[str | None] = SimpleQueue()
        for names in devices:
            self._free.put(names)

    def take(self) -> str | None:
        """Wait for a free slot and return its devices."""
        return self._free.get()

    @contextmanager
    def giving_back(self, devices: str | None) -> Iterator[None]:
        """Free the slot of these devices at the end of the block, however it ends."""
        try:
            yield
        finally:
            self._free.put(devices)
