"""`nsft evaluate`: any model on the benchmarks, not only what was trained here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nsft_exp import config as configs
from nsft_exp.records import UserError
from nsft_exp.score import items_file
from nsft_exp.store import StageFolder, write_atomically

USAGE = """\
nsft evaluate vlm=<option or folder> benchmark=<benchmark or suite> [benchmark.root=DIR] [to=DIR] [...]

  vlm         an option (vlm=llava15_7b), or a folder in Hugging Face's form (vlm=exports/model): LLaVA-1.5,
              LLaVA-NeXT or Qwen2.5-VL, told by its config.json
  benchmark   one of them, or a suite: paper (the main table's), all; a suite's members read DIR/<name>
  to          a folder for <benchmark>.json and <benchmark>.items.jsonl, as nsft score writes them

It is the cell of method=base: its answers are kept in the run store, a second time nothing is done again, and
a killed one goes on. nsft compare takes two such folders."""

OPTIONS = {"llava": "llava15_7b", "llava_next": "llava_next_7b", "qwen2_5_vl": "qwen25_vl_7b"}
"""The config of each model type."""
TRAINING = ("method", "variant", "pairing", "critic", "codebook", "recipe", "tuning", "seed", "data_seed")
"""Words that have no meaning for a model that is not trained."""

Run = Callable[[list[str]], tuple[list[dict[str, Any]], DictConfig]]
Conclude = Callable[[list[dict[str, Any]], DictConfig, bool], int]


def evaluate(arguments: list[str], run: Run, conclude: Conclude) -> int:
    """Evaluate a model; returns the exit code.

    `run` has Hydra run a cell's words, `conclude` prints what came of it. Raises UserError for words that are
    about training, and for a folder that holds no known model.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    to = next((word.partition("=")[2] for word in arguments if word.startswith("to=")), "")
    words = [part for word in arguments if not word.startswith("to=") for part in cell_words(word)]
    outcomes, config = run(["method=base", *words])
    code = conclude(outcomes, config, False) if outcomes else 0
    if to and code == 0:
        for name, folder in outcomes[0]["folders"].items():
            print(write_result(StageFolder(Path(folder)), Path(to), name.partition(":")[2]))
    return code


def cell_words(word: str) -> list[str]:
    """Return the words of the cell that one word of `nsft evaluate` stands for."""
    key, _, value = word.partition("=")
    if key in TRAINING:
        raise UserError(
            f"{word}: nsft evaluate takes a model as it is; train and evaluate a cell with nsft {word} ..."
        )
    if key != "vlm" or value in configs.all_options()["vlm"]:
        return [word]
    return model_words(Path(value))


def model_words(folder: Path) -> list[str]:
    """Return the words that describe the model in a folder. Raises UserError where there is none."""
    file = folder / "config.json"
    if not file.is_file():
        options = ", ".join(configs.all_options()["vlm"])
        raise UserError(
            f"vlm={folder}: is neither an option ({options}) nor a folder with a config.json; "
            "for a model on the hub take its option and vlm.path=NAME"
        )
    try:
        config = json.loads(file.read_text("utf-8"))
        kind, dtype = config["model_type"], config.get("dtype") or config.get("torch_dtype")
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{file}: names no model_type ({error}); give a model in Hugging Face's form"
        ) from error
    if kind not in OPTIONS:
        raise UserError(f"{file}: model_type {kind} is not known here; there are {', '.join(OPTIONS)}")
    precision = [f"vlm.dtype={dtype}"] if dtype in ("float32", "bfloat16", "float16") else []
    path = f"vlm.path={configs.quoted(str(folder))}"
    return [f"vlm={OPTIONS[kind]}", path, "vlm.revision=null", *precision]


def write_result(stage: StageFolder, to: Path, name: str) -> Path:
    """Write an evaluate stage's scores and per-item records as `nsft score` writes them; returns the file."""
    manifest, out = stage.manifest(), to / f"{name}.json"
    assert manifest is not None
    node = stage.read_config()["nodes"]["benchmark"]
    about = {"items": items_file(out).name, "config": node, "answers": str(stage.path)}
    try:
        to.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stage.path / "records.jsonl", items_file(out))
        write_atomically(out, json.dumps({**manifest, **about}, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{to}: cannot write there ({error.strerror}); give another to=") from error
    return out
