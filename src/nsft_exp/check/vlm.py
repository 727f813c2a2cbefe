"""What a checkpoint's folder is, against what is known of it and of its family: `nsft check vlm=...`.

The facts are those of the published checkpoints and their original code. What a folder says otherwise is
told, line by line; nothing is mended here. Weights are read once; no network is needed for a folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

Verdict = Literal["ok", "note", "differs"]
COLOURS: dict[str, str] = {"ok": "green", "note": "yellow", "differs": "red"}


@dataclass(frozen=True)
class Finding:
    """One line of the check. A `note` is a known property or what could not be looked at; no damage."""

    verdict: Verdict
    what: str
    said: str


@dataclass(frozen=True)
class Published:
    """What is known of a published checkpoint: its size, its padding id, image tokens of 640x480 pixels."""

    parameters: int
    tensors: int
    pad_id: int
    image_tokens: int


PUBLISHED = {
    ("llava", 4096, 32): Published(7_063_427_072, 686, 32001, 576),
    ("llava", 5120, 40): Published(13_351_494_656, 758, 32001, 576),
    ("llava_next", 4096, 32): Published(7_063_431_168, 687, 0, 2340),
    ("llava_next", 5120, 40): Published(13_351_499_776, 759, 0, 2340),
    ("qwen2_5_vl", 3584, 28): Published(8_292_166_656, 729, 151643, 391),
    ("qwen2_5_vl", 2048, 36): Published(3_754_622_976, 824, 151643, 391),
}
"""(model type, the decoder's hidden size, its layers): LLaVA 1.5, LLaVA-NeXT on Vicuna, Qwen2.5-VL."""


def check_vlm(config: dict[str, Any]) -> int:
    """Check the VLM of a resolved config and print what was found. Returns 1 where something differs, else 0.

    Raises UserError where the folder holds no model of the family.
    """
    findings = []
    console = Console(highlight=False, soft_wrap=True)
    for finding in examine(config["vlm"]):
        findings.append(finding)
        colour = COLOURS[finding.verdict]
        console.print(f"[{colour}]{finding.verdict:<7}[/] {escape(finding.what)}: {escape(finding.said)}")
    count = sum(finding.verdict == "differs" for finding in findings)
    console.print(f"[red]{count} differ[/]" if count else "[green]nothing differs[/]")
    return int(count > 0)


def examine(node: dict[str, Any]) -> Iterator[Finding]:
    """Yield what is found of a VLM's config node, the cheap looks first."""
    from nsft_exp.cell_run import build
    from nsft_exp.check import checkpoint, speaking

    vlm = build(node)
    with tempfile.TemporaryDirectory() as scratch:
        folder = _folder(vlm, Path(scratch))
        yield Finding("note", "folder", str(folder if vlm.path else "made in memory"))
        yield from checkpoint.findings(vlm, folder)
        loaded = vlm.load()
        yield from checkpoint.loaded_findings(loaded, folder)
        yield from speaking.findings(loaded, folder)


def _folder(vlm: Any, scratch: Path) -> Path:
    """The model's folder; a model that is made in memory is saved first."""
    if vlm.path is not None:
        folder: Path = vlm.folder()
        return folder
    vlm.load().save(scratch)
    return scratch


def published(config: Any) -> Published | None:
    """What is known of the checkpoint of this configuration, if it is a known one."""
    text = config.text_config
    return PUBLISHED.get((config.model_type, text.hidden_size, text.num_hidden_layers))


def compared(what: str, found: Any, expected: Any, hint: str = "") -> Finding:
    """A finding that is `ok` where two values are equal."""
    if found == expected:
        return Finding("ok", what, f"{found}")
    return Finding("differs", what, f"{found}, not {expected}" + (f"; {hint}" if hint else ""))
