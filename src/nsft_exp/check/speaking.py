"""The text's and the images' part of `nsft check vlm=...`: ids, masks, templates, image tokens, pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nsft_exp.check.checkpoint import drawn
from nsft_exp.check.vlm import Finding, compared, published
from nsft_exp.records import ROLES, Turn

SIZES = ((336, 336), (640, 480), (1000, 1000), (480, 640), (1920, 1080))
"""(width, height) of the pictures whose image tokens are compared."""
S, U, A = "system", "user", "assistant"
CONVERSATIONS: dict[str, list[tuple[str, str]]] = {
    "one turn, asked": [(U, "Q1")],
    "one turn": [(U, "Q1"), (A, "A1")],
    "two turns, asked": [(U, "Q1"), (A, "A1"), (U, "Q2")],
    "two turns": [(U, "Q1"), (A, "A1"), (U, "Q2"), (A, "A2")],
    "a system message": [(S, "S"), (U, "Q1")],
}
LLAVA_HUB = {
    "one turn, asked": "USER: <image>\nQ1 ASSISTANT:",
    "one turn": "USER: <image>\nQ1 ASSISTANT: A1 ",
    "two turns, asked": "USER: <image>\nQ1 ASSISTANT: A1 USER: Q2 ASSISTANT:",
    "two turns": "USER: <image>\nQ1 ASSISTANT: A1 USER: Q2 ASSISTANT: A2 ",
    "a system message": "S USER: <image>\nQ1 ASSISTANT:",
}
"""What the hub's template of LLaVA 1.5 and LLaVA-NeXT on Vicuna writes: no end of answer."""


def findings(loaded: Any, folder: Path) -> Iterator[Finding]:
    """Yield what the tokenizer, the processor and the template of a folder do, and what is used here."""
    yield from _ids(loaded)
    yield _mask(loaded)
    processor, reason = read_processor(folder)
    if processor is None:
        yield Finding("note", "processor", f"cannot be loaded here ({reason}); what is used here needs none")
    yield from _template(loaded, processor, folder)
    yield from _images(loaded, processor)
    yield _pixels(loaded, folder)


def read_processor(folder: Path) -> tuple[Any, str]:
    """Return the folder's processor, its images by PIL, or None and the reason why there is none."""
    from transformers import AutoProcessor

    from nsft_exp.vlm.reading import silently

    try:
        with silently():
            return AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil"), ""
    except (OSError, ValueError, ImportError, TypeError, AttributeError, KeyError) as error:
        return None, " ".join(str(error).split())[:120]


def _ids(loaded: Any) -> Iterator[Finding]:
    """BOS once in our ids, and which kind of tokenizer.json this is."""
    ids = loaded.chat.prompt((Turn("prompt", "Hi"),), 2)
    bos = loaded.tokenizer.bos_token_id
    if loaded.chat.style.bos:
        yield compared("BOS in a conversation", ids.count(bos), 1)
        text = loaded.tokenizer("USER: <image>\nHi ASSISTANT:")["input_ids"]
        yield compared("BOS by the tokenizer", text.count(bos), 1, "the tokenizer is not LLaVA's")
        after = text[text.index(loaded.chat.image_token_id) + 1 :]
        space = loaded.tokenizer.convert_ids_to_tokens(after)[0] == "▁"
        kind = "a space after a special token, as LLaVA's own code has it" if space else (
            "no space after a special token: text in one piece lacks one id that LLaVA was trained with"
        )  # fmt: skip
        yield Finding("note", "tokenizer.json", f"{kind}; ids are made by parts here, the same with both")
    yield compared("image tokens in a conversation", ids.count(loaded.chat.image_token_id), 2)


def _mask(loaded: Any) -> Finding:
    """What is supervised of two turns: the answers and their ends."""
    words = ("What is it?", "A cat.", "What colour?", "Black.")
    encoded = loaded.chat.encode([Turn(ROLES[n % 2], text) for n, text in enumerate(words)], 2)
    supervised = [token for token, role in zip(encoded.ids, encoded.roles, strict=True) if role]
    end = loaded.chat.style.end
    found = loaded.tokenizer.decode(supervised).replace(" ", "")
    return compared("supervised text of two turns", found, f"Acat.{end}Black.{end}")


def _template(loaded: Any, processor: Any, folder: Path) -> Iterator[Finding]:
    """Whose template the folder has. None of it is used: conversations are written by `conversation.py`."""
    from nsft_exp.vlm.template import candidates

    template = read_template(processor, folder) or loaded.tokenizer.chat_template
    if template is None:
        yield Finding("note", "chat template", "there is none; none is needed here")
        return
    ours = loaded.family.processor(loaded.tokenizer)
    found = rendered(loaded.tokenizer, template)
    if _is_exact(ours, loaded.chat, template):
        yield Finding("ok", "chat template", "writes the ids that are trained here")
    elif found == LLAVA_HUB:
        yield Finding(
            "note", "chat template", "the hub's: no system sentence and no end of answer; not used here"
        )
    else:
        plain = next(candidates(ours, loaded.chat))
        expected = LLAVA_HUB if loaded.chat.style.bos else rendered(loaded.tokenizer, plain)
        for name, text in found.items():
            if text != expected[name] and not (text.rstrip() == expected[name] or name == "a system message"):
                yield Finding("note", f"chat template, {name}", f"writes {text!r}, not {expected[name]!r}")
    for name, text in found.items():
        if "Q1" not in text:
            yield Finding("differs", f"chat template, {name}", f"loses the text of a message: {text!r}")


def _is_exact(processor: Any, chat: Any, template: str) -> bool:
    """Whether the processor writes training's ids with this template, which may be anybody's."""
    from jinja2.exceptions import TemplateError

    from nsft_exp.vlm.template import writes_training_ids

    processor.chat_template = template
    try:
        return writes_training_ids(processor, chat)
    except (TemplateError, ValueError, TypeError, LookupError):  # not for such messages
        return False


def read_template(processor: Any, folder: Path) -> str | None:
    """Return the folder's template, from the processor or, where that cannot be loaded, from its own file."""
    if getattr(processor, "chat_template", None):
        return str(processor.chat_template)
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    old = folder / "chat_template.json"
    return json.loads(old.read_text("utf-8")).get("chat_template") if old.is_file() else None


def rendered(tokenizer: Any, template: str) -> dict[str, str]:
    """Return each conversation as a template writes it, the image in the first question; errors as text."""
    from jinja2.exceptions import TemplateError

    texts = {}
    for name, turns in CONVERSATIONS.items():
        talk: list[dict[str, Any]] = []
        for role, text in turns:
            image = [{"type": "image"}] if role == U and not any(m["role"] == U for m in talk) else []
            talk.append({"role": role, "content": [*image, {"type": "text", "text": text}]})
        try:
            texts[name] = tokenizer.apply_chat_template(
                talk, chat_template=template, tokenize=False, add_generation_prompt=turns[-1][0] == U
            )
        except TemplateError as error:
            texts[name] = f"Q1 {error}"
    return texts


def _images(loaded: Any, processor: Any) -> Iterator[Finding]:
    """Image tokens as used here, as the processor counts them, as published."""
    counts = {}
    for size in SIZES:
        counts[size] = loaded.family.layout(size).tokens
        if processor is not None:
            yield _counted(loaded, processor, size, counts[size])
    known = published(loaded.model.config)
    if known:
        yield compared("image tokens of 640x480", counts[640, 480], known.image_tokens)


def _counted(loaded: Any, processor: Any, size: tuple[int, int], ours: int) -> Finding:
    what = f"image tokens of {size[0]}x{size[1]}"
    image = loaded.tokenizer.convert_ids_to_tokens(loaded.chat.image_token_id)
    try:
        ids = processor(text=image, images=drawn(*size), return_tensors="pt")["input_ids"][0].tolist()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return Finding("differs", what, f"the processor fails: {' '.join(str(error).split())[:120]}")
    hint = "its processor_config.json lacks num_additional_image_tokens?"
    return compared(f"{what}, by the processor", ids.count(loaded.chat.image_token_id), ours, hint)


def _pixels(loaded: Any, folder: Path) -> Finding:
    """Whether the folder's image processor makes the pixels that are used here (the hub's 1.5 crops)."""
    import torch
    from transformers import AutoImageProcessor

    what, picture = "pixels of the image processor", drawn(640, 480)
    try:
        theirs = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        found = theirs(picture, return_tensors="pt")["pixel_values"].flatten()
    except (OSError, ValueError, ImportError, TypeError) as error:
        return Finding("note", what, f"cannot be made here ({' '.join(str(error).split())[:120]})")
    ours = torch.from_numpy(loaded.preprocessing(picture)).flatten()
    if len(found) != len(ours) or not torch.allclose(found, ours, atol=1e-5):
        return Finding("note", what, f"not those of {loaded.preprocessing!r}, which is used everywhere here")
    return Finding("ok", what, "those that are used here")
