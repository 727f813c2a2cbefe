"""How long a source's conversations are in tokens, and what the recipe's limit does to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from nsft_exp.conversation import ChatEncoder, cut, prompt_style
from nsft_exp.images import image_size
from nsft_exp.records import Sample, Turn, UserError

WIDTH = 64
"""Tokens of one bar of the histogram."""
CountTokens = Callable[[str], int]
"""From an image's path to its number of image tokens."""


@dataclass
class Lengths:
    """Lengths in tokens, image tokens included, of the samples with their (longer) answer."""

    max_length: int
    histogram: dict[int, int] = field(default_factory=dict)
    """Where a bar of WIDTH tokens begins -> samples."""
    total: int = 0
    longest: int = 0
    longest_id: str = ""
    trimmed: list[str] = field(default_factory=list)
    """Samples whose answer is cut at `max_length`."""
    dropped: list[str] = field(default_factory=list)
    """Samples that are left out, since the image or the whole answer would be cut."""
    refused: list[str] = field(default_factory=list)
    """Samples whose text cannot be written as tokens, with the reason."""


def chat_of(vlm: Any) -> tuple[ChatEncoder, CountTokens]:
    """Return a VLM's conversation builder and image token counter; its weights are not read.

    Raises UserError where its folder has no tokenizer or configuration.
    """
    if getattr(vlm, "path", None) is None:  # made from a seed: small
        loaded = vlm.load()
        return loaded.chat, lambda image: loaded.layout(image).tokens
    from transformers import AutoConfig

    from nsft_exp.vlm.reading import read_tokenizer

    folder = vlm.folder()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = read_tokenizer(folder)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: has no tokenizer and configuration ({reason}); check vlm.path") from None
    family = vlm.family(config)
    chat = ChatEncoder(tokenizer, prompt_style(vlm.prompt_style), config.image_token_id)
    if family.num_image_tokens is not None:
        return chat, lambda image: family.num_image_tokens
    return chat, lambda image: family.layout(image_size(image, vlm.exif)).tokens


def measure(samples: Iterable[Sample], chat: ChatEncoder, images: CountTokens, max_length: int) -> Lengths:
    """Return the lengths of the samples as training writes them: history, question, chosen answer.

    A sample that brings its rejected answer counts with the longer of the two.
    """
    found = Lengths(max_length)
    for sample in samples:
        try:
            lengths, kept = _lengths(sample, chat, images, max_length)
        except UserError as error:
            found.refused.append(f"record {sample.id}: {error}")
            continue
        longest = max(lengths)
        found.total += longest
        bar = longest // WIDTH * WIDTH
        found.histogram[bar] = found.histogram.get(bar, 0) + 1
        if longest > found.longest:
            found.longest, found.longest_id = longest, sample.id
        if None in kept:
            found.dropped.append(sample.id)
        elif kept != lengths:
            found.trimmed.append(sample.id)
    return found


def _lengths(
    sample: Sample, chat: ChatEncoder, images: CountTokens, max_length: int
) -> tuple[list[int], list[int | None]]:
    """Tokens of the conversation with each answer, and after the limit (None: dropped)."""
    count = images(sample.image) if sample.image is not None else None
    lengths: list[int] = []
    kept: list[int | None] = []
    for role, answer in (("chosen", sample.answer), ("rejected", sample.rejected)):
        if answer is None:
            continue
        texts = [text for said in sample.history for text in (said.question, said.answer)]
        turns = [Turn("prompt", text) for text in (*texts, sample.question)]
        encoded = chat.encode([*turns, Turn(role, answer)], count)
        short = cut(encoded, max_length, chat.image_token_id)
        lengths.append(len(encoded.ids))
        kept.append(len(short.ids) if short else None)
    return lengths, kept
