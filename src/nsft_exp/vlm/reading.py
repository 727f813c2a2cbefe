"""Reading a model's folder: weights in safetensors, tokenizer, the trained parts of earlier trainings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import logging as transformers_logging

from nsft_exp.records import UserError


def read_model(folder: Path, dtype: str, model_type: str = "llava", **options: Any) -> Any:
    """Return the model of a folder, `options` given to transformers.

    Raises UserError when there is no whole model of this type in safetensors.
    """
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except FileNotFoundError:
        raise UserError(f"{folder}: there is no config.json; vlm.path must name a model's folder") from None
    if kind != model_type:
        raise UserError(
            f"{folder}: model type {kind!r} is not supported by this vlm; it must be {model_type}, or take "
            f"another vlm=..."
        )
    try:
        with silently():
            read: Any = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: the model cannot be loaded ({' '.join(str(error).split())[:200]})"
        ) from error
    model, told = read
    missing = sorted(told["missing_keys"])
    if missing:  # transformers would draw them at random
        raise UserError(
            f"{folder}: {len(missing)} weights are missing ({', '.join(missing[:3])}); fetch the files again"
        )
    return model


def quantized(kind: str, dtype: str, spared: Sequence[str], device: torch.device) -> dict[str, Any]:
    """Return what transformers is to be told to load linear layers in 4 bits (QLoRA, Dettmers et al. 2023).

    `spared` modules keep `dtype`, in which the others' products are taken too.
    """
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_skip_modules=list(spared),
    )
    return {"quantization_config": config, "device_map": {"": device}}


@contextmanager
def silently() -> Iterator[None]:
    """Keep transformers' own progress bars and remarks off the terminal."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model's folder."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def device_named(name: str) -> torch.device:
    """`auto` is the GPU where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def model_folder(adapters: Sequence[Path]) -> Path | None:
    """The whole model that the last full training wrote (it replaces the base), if there is one."""
    whole = [Path(folder) / "model" for folder in adapters if (Path(folder) / "model").is_dir()]
    return whole[-1] if whole else None


def with_adapters(model: Any, adapters: Sequence[Path]) -> Any:
    """Put the adapters of train-stage folders on a model, those after its last full training.

    In float32 they are merged into the weights. In lower precision merging would round small updates away, so
    that they stay beside the weights (`stacked`). Raises UserError for a folder without a trained part.
    """
    folders = [Path(folder) for folder in adapters]
    for folder in folders:
        if not (folder / "model").is_dir() and not (folder / "adapter").is_dir():
            raise UserError(f"{folder}: there is neither a trained model nor an adapter here; train it first")
    whole = [number for number, folder in enumerate(folders) if (folder / "model").is_dir()]
    folders = folders[whole[-1] + 1 :] if whole else folders
    for folder in folders:
        model = _with_adapter(model, folder / "adapter", merge=model.dtype == torch.float32)
    return model


def _with_adapter(model: Any, folder: Path, merge: bool) -> Any:
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, str(folder), local_files_only=True)
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: the adapter does not fit the model ({reason})") from error
    if merge:
        return adapted.merge_and_unload(safe_merge=True)
    from nsft_exp.vlm.stacked import stack

    return stack(adapted)
