"""Which way the modules may look, read off their imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "nsft_exp"
PLUGINS = ("source", "vlm", "pairing", "critic", "method", "benchmark", "toy")
VOCABULARY = ("records", "interfaces", "losses", "keys", "store", "statistics")
MODEL = ("batching", "branches", "encoding", "conversation", "images", "view")
TRAINING = ("recipe", "reference", "sharding", "value_head", "vlm", "world", *VOCABULARY, *MODEL)
STEP = ("sums", "optimizer", "resources")
ALLOWED = {
    "records": (),
    "interfaces": ("records", "losses"),
    "losses": ("records",),
    "keys": (),
    "fingerprint": ("keys",),
    "store": ("records", "keys", "fingerprint"),
    "statistics": ("records",),
    "recipe": ("records",),
    "plan": ("records",),
    "images": ("records",),
    "augment": (),
    "view": ("records", "augment"),
    "conversation": ("records",),
    "encoding": ("records", "conversation", "images"),
    "batching": ("branches", "conversation", "encoding"),
    "branches": (),
    "llm": ("records",),
    **dict.fromkeys(PLUGINS, (*VOCABULARY, *MODEL, "llm")),
    "reference": TRAINING,
    "value_head": ("records",),
    "world": (),
    "sharding": ("world",),
    "strategies": ("sharding",),
    "zero": ("records", "sharding", "strategies"),
    "child": (),
    "checkpoint": (*VOCABULARY, "child", "world"),
    "progress": VOCABULARY,
    "sums": VOCABULARY + MODEL,
    "muon": (),
    "optimizer": ("muon", "recipe", "sharding"),
    "resources": ("records",),
    "running": ("recipe", "world", "checkpoint", "child", "progress"),
    "lit": (*TRAINING, *STEP, "zero"),
    "job": TRAINING,
    "looking": (*TRAINING, "checkpoint", "job"),
    "training": (
        *(*TRAINING, "checkpoint", "job", "lit", "looking"),
        *("resources", "running", "strategies", "zero"),
    ),
    "ppo": (*TRAINING, *STEP, "checkpoint", "job", "running", "training"),
    "toy.patch_words": ("toy",),
    "toy.tower": (*TRAINING, "checkpoint", "progress", "running", "toy"),
    "toy.two_tower": (*TRAINING, "checkpoint", "progress", "running", "toy"),
    "toy_scorer": ("store", "toy"),
    "report": (*VOCABULARY, *MODEL),
    "wandb_log": (*VOCABULARY, "report"),
    "items": ("records", "keys", "store"),
    "output": ("records", "store"),
    "judging": ("records", "output", "llm", "benchmark"),
    "scoring": ("records", "store", "statistics", "judging"),
    "watching": ("records", "keys", "scoring", "cell_run"),
    "cell_run": ("records", "keys", "store", "plan", "items"),
    "torchrun": ("records", "store", "child"),
    "preflight": ("records", "plan", "cell_run", "items"),
    "answering": ("records", "interfaces", "plan", "cell_run", "device"),
    "evaluating": (
        "records",
        "store",
        "plan",
        "output",
        "cell_run",
        "child",
        "answering",
        "judging",
        "scoring",
    ),
    "stages": (
        *("records", "keys", "store", "plan", "items", "output", "training", "ppo"),
        *("cell_run", "torchrun", "world", "watching", "answering", "evaluating"),
    ),
    "rank": ("records", "store", "cell_run", "stages", "world"),
    "launch": ("records", "store", "plan", "stages", "cell_run", "child", "device", "torchrun"),
    "config": ("records", "keys"),
    "device": ("records",),
    "export": (
        *("records", "keys", "store", "plan", "config", "preflight", "launch", "cell_run"),
        *("items", "output", "conversation", "images", "vlm"),
    ),
    "score": ("records", "store", "config", "benchmark", "judging"),
    "evaluate": ("records", "store", "config", "score"),
    "compare": ("records", "store", "config", "score", "statistics"),
    "estimate": (
        *("records", "keys", "store", "plan", "config", "cell_run", "launch", "stages", "evaluating"),
        *("items", "judging", "llm"),
    ),
    "check": (*TRAINING, "config", "plan", "output", "cell_run", "source"),
}


def imports_of(file: Path) -> set[str]:
    """The first component of every import of ours in a file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [
                f"{node.module}.{a.name}" if node.module == "nsft_exp" else node.module for a in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{file}: relative import"
        found |= {name.split(".")[1] for name in names if name.startswith("nsft_exp.")}
    return found


def part_of(file: Path) -> str:
    """The row of the table that a file is under: its own, or that of its package."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return name if (name := ".".join(parts)) in ALLOWED else parts[0]


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_a_part_imports_only_what_stands_below_it(part: str) -> None:
    files = [f for f in SOURCE.rglob("*.py") if part_of(f) == part]
    assert files, f"{part} has no files; is the table of this test out of date?"
    for file in files:
        forbidden = imports_of(file) - set(ALLOWED[part]) - {part, "__version__"}
        assert not forbidden, f"{file.relative_to(SOURCE)} must not import {sorted(forbidden)}"


def test_what_renders_tables_and_calls_critics_imports_without_torch() -> None:
    modules = [
        "records",
        "interfaces",
        "store",
        "plan",
        "statistics",
        "config",
        "cell",
        "stages",
        "judging",
        "study",
        "device",
        "cell_process",
        "finished",
        "cell_pool",
        "__main__",
    ]
    for package in ("source", "critic", "pairing", "benchmark", "report", "toy", "estimate"):
        modules += [
            ".".join(f.relative_to(SOURCE).with_suffix("").parts) for f in (SOURCE / package).glob("*.py")
        ]
    trains = ("toy.patch_words", "toy.tower", "toy.two_tower")
    modules = [m.removesuffix(".__init__") for m in modules if m not in trains]
    code = "import sys, importlib\n" + "".join(f"importlib.import_module('nsft_exp.{m}')\n" for m in modules)
    code += "print(sorted(m for m in ('torch', 'transformers', 'lightning', 'peft') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
