"""What decides a stage's key: the config leaves that are in it and those that are not, and the hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from typing import Any

PATHS = (
    "*.file",
    "*.folder",
    "*.root",
    "*.path",
    "*.lexicon",
    "*.synonyms",
    "*.replies",
    "*.tokenizer",
    "*.ocr_file",
    "vlm.tower",
)
"""Config leaves that are places: the content behind them is in the key, the place is not."""

IGNORED = (
    *PATHS,
    "source.*image_root",  # every image that is read is in its sample's hash
    "paths.*",
    "logger",
    "logger.*",
    "study.*",
    "launch",
    "vlm.batch_size",
    "vlm.device",
    "vlm.python",
    *(f"vlm.server.{key}" for key in ("base_url", "key_env", "cache", "check_prompts", "concurrency")),
    *(f"vlm.server.{key}" for key in ("attempts", "backoff", "timeout", "budget*", "prices*")),
    *(f"benchmark.judge.{key}" for key in ("base_url", "key_env", "concurrency", "attempts", "backoff")),
    *(f"benchmark.judge.{key}" for key in ("timeout", "budget*", "prices*")),
    *(f"benchmark.{key}" for key in ("python", "concurrency", "attempts", "backoff", "timeout")),
    "tasks",  # the benchmark's own stand in its node
    "pairing.min_yield",  # what is left of the answers is judged, the answers are the same
    "pairing.max_one_side",
    "pairing.min_edited",
    *(f"method.*{key}" for key in ("min_accuracy", "min_spread", "when_collapsed")),  # judged, not changed
    "method.max_kl",  # where a run stops; those that go on are the same
    "method.when_kl_explodes",
    "method.rollouts_memory",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.zero_stage",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.rendezvous",
    "trainer.threads",
    "trainer.num_workers",
    "trainer.micro_batch",
    "trainer.reference",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.evaluate_every",
    "trainer.evaluate_limit",
    "trainer.process",
)
"""Config leaves that must not change a result, and so are in no key."""

REVISIONS = {"respond": 1, "critique": 1, "train": 1, "evaluate": 1}
"""Raised by hand when a stage's code changes its result: old folders are then not taken for new ones."""

LEFT_OUT = {
    "respond": ("source.size", "source.seed"),
    "critique": ("source.size", "source.seed"),
    "train": ("vlm.engine",),  # what answers does not train
    "evaluate": (),
}
"""Leaves that a stage's key leaves out, beside those that are in no key."""


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every leaf of nested dictionaries and lists."""
    children = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, (list, tuple))
        else None
    )
    if children is None or not node:
        yield prefix, node
        return
    for name, child in children:
        yield from leaves(child, f"{prefix}.{name}" if prefix else str(name))


@cache
def is_ignored(name: str) -> bool:
    """True for a config leaf that is in no key (see IGNORED)."""
    return any(fnmatch(name, pattern) for pattern in IGNORED)


@cache
def is_place(name: str) -> bool:
    """True for a config leaf whose value is a file or folder (see PATHS)."""
    return any(fnmatch(name, pattern) for pattern in PATHS)


def digest(value: Any) -> str:
    """Return the SHA-256 (hex) of a JSON value, independent of the order of dictionary keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
