"""The weights' part of `nsft check vlm=...`: sizes, names, types, ids, and what the model answers."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nsft_exp.check.vlm import Finding, compared, published
from nsft_exp.records import Decoding, Request, Turn, UserError

SHOWN = 4
"""Names that are listed where some are missing."""
NEW_TOKENS = 16


def findings(vlm: Any, folder: Path) -> Iterator[Finding]:
    """Yield what the configuration and the heads of the weight files say; no weights are read."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: has no configuration ({reason}); check vlm.path") from None
    if config.model_type != vlm.model_type:
        raise UserError(f"{folder}: is a {config.model_type}, not a {vlm.model_type}; take another vlm=...")
    shapes, types = weight_heads(folder)
    known = published(config)
    total = sum(math.prod(shape) for shape in shapes.values())
    if known:
        yield compared("parameters", total, known.parameters)
        yield compared("tensors", len(shapes), known.tensors)
    else:
        yield Finding("note", "parameters", f"{total} in {len(shapes)} tensors; no published model's shape")
    yield _named(set(shapes), written_names(config))
    listed = ", ".join(f"{count} {kind}" for kind, count in types.items())
    yield Finding("note", "types in the files", f"{listed}; loaded as {vlm.dtype}")


def weight_heads(folder: Path) -> tuple[dict[str, list[int]], Counter[str]]:
    """Return the shape of every tensor by name, and how many there are of each type."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: holds no weights in safetensors; convert them or name another folder")
    shapes: dict[str, list[int]] = {}
    types: Counter[str] = Counter()
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dictionary)
                part = file.get_slice(name)
                shapes[name] = part.get_shape()
                types[part.get_dtype()] += 1
    return shapes, types


def written_names(config: Any) -> set[str]:
    """Return the names under which a model of this configuration is saved here.

    They depend on the numbers of layers alone: a model of the same layers and tiny widths is made and saved.
    """
    from transformers import AutoModelForImageTextToText

    from nsft_exp.vlm.loaded import use_hub_names
    from nsft_exp.vlm.reading import silently

    with tempfile.TemporaryDirectory() as folder, silently():
        AutoModelForImageTextToText.from_config(narrow(config)).save_pretrained(folder)
        use_hub_names(Path(folder))
        return set(weight_heads(Path(folder))[0])


def narrow(config: Any) -> Any:
    """Return the configuration with the same layers and the smallest widths."""
    parts = copy.deepcopy(config.to_dict())
    text, vision = parts["text_config"], parts["vision_config"]
    text |= {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    text |= {"head_dim": 8} if text.get("head_dim") else {}
    heads = "num_heads" if "num_heads" in vision else "num_attention_heads"
    vision |= {"hidden_size": 8, "intermediate_size": 8, heads: 1}
    vision |= {"out_hidden_size": 8} if "out_hidden_size" in vision else {}
    return type(config).from_dict(parts)


def _named(found: set[str], written: set[str]) -> Finding:
    if found == written:
        return Finding("ok", "names of the tensors", f"all {len(found)} as they are written here")
    more, fewer = sorted(found - written), sorted(written - found)
    said = [f"{len(more)} unknown ({', '.join(more[:SHOWN])})"] if more else []
    said += [f"{len(fewer)} missing ({', '.join(fewer[:SHOWN])})"] if fewer else []
    return Finding("differs", "names of the tensors", "; ".join(said))


# --- the model itself ------------------------------------------------------------------------------


def loaded_findings(loaded: Any, folder: Path) -> Iterator[Finding]:
    """Yield what the loaded model says: rows of its embedding, ids, and a greedy answer."""
    config, tokenizer = loaded.model.config, loaded.tokenizer
    rows = loaded.model.get_input_embeddings().weight.shape[0]
    fits = "ok" if rows >= len(tokenizer) else "differs"
    yield Finding(fits, "rows of the embedding", f"{rows} for {len(tokenizer)} tokens")  # type: ignore[arg-type]
    yield compared("rows of the head", loaded.model.lm_head.weight.shape[0], rows)
    known = published(config)
    if known:
        yield compared("padding id", loaded.pad_id, known.pad_id, "nothing here tells padding by its id")
    else:
        yield Finding("note", "padding id", f"{loaded.pad_id}")
    yield from _generation(loaded, folder)
    yield _greedy(loaded)
    yield Finding(
        "note", "vLLM's answers", "not compared here; `nsft export-model` does where it is installed"
    )


def _generation(loaded: Any, folder: Path) -> Iterator[Finding]:
    """How an answer ends; a folder may ask for sampling, which evaluation does not read."""
    yield compared(f"id of {loaded.chat.style.end}", loaded.chat.end, loaded.tokenizer.eos_token_id)
    yield Finding("note", "ids that end an answer", f"{sorted(loaded.stops)}")
    path = folder / "generation_config.json"
    said = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    asked = {key: said[key] for key in ("do_sample", "temperature", "repetition_penalty") if said.get(key)}
    if asked:
        yield Finding(
            "note", "generation_config.json", f"{asked}: not used, requests say how they are decoded"
        )


def _greedy(loaded: Any) -> Finding:
    """A greedy answer about a picture, here and by transformers' own `generate`."""
    import torch

    image = "a drawn picture"
    loaded.opener = lambda _: drawn(640, 480)
    request = Request("q", image, (Turn("prompt", "What is in the image?"),), decoding=Decoding(NEW_TOKENS))
    (reply,) = dict(loaded.generate([request]))["q"]
    prompt = torch.tensor([loaded.chat.prompt(request.turns, loaded.layout(image).tokens)])
    theirs = their_greedy(loaded, prompt.to(loaded.device), image)
    loaded.opener = None
    same = next((n for n, (a, b) in enumerate(zip(reply.ids, theirs, strict=False)) if a != b), None)
    if same is None and len(reply.ids) == len(theirs):
        return Finding(
            "ok", "greedy answer", f"transformers gives the same {len(theirs)} tokens: {reply.text!r}"
        )
    at = min(len(reply.ids), len(theirs)) if same is None else same
    return Finding("differs", "greedy answer", f"transformers' differs from token {at + 1}: {reply.text!r}")


def their_greedy(loaded: Any, prompt: Any, image: str) -> list[int]:
    """The ids that transformers generates from the same ids and pixels."""
    import torch

    dtype = next(loaded.tower.parameters()).dtype
    inputs = loaded.family.inputs(loaded.pictures([(image, "clean")]).to(loaded.device, dtype=dtype))
    if (
        "image_grid_thw" in inputs
    ):  # untold which tokens are an image's, Qwen2.5-VL counts positions, silently
        inputs["mm_token_type_ids"] = (prompt == loaded.chat.image_token_id).int()
    with torch.inference_mode():
        out = loaded.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            **inputs,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=sorted(loaded.stops),
            pad_token_id=loaded.pad_id,
            max_new_tokens=NEW_TOKENS,
        )
    ids: list[int] = out[0, prompt.shape[1] :].tolist()
    return ids


def drawn(width: int, height: int) -> Any:
    """A picture that is the same everywhere: two colour ramps."""
    import numpy as np
    from PIL import Image

    down, across = np.mgrid[0:height, 0:width]
    ramp = np.stack([across * 255 // width, down * 255 // height, (across + down) % 256], axis=2)
    return Image.fromarray(ramp.astype(np.uint8))
