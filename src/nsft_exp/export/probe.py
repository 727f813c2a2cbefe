"""Probes of an exported model: questions of the cell's own source, put to it through its own processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsft_exp.records import Decoding, Item, Request, Turn
from nsft_exp.vlm.template import messages

NUM_PROBES = 32
NUM_LOGIT_PROBES = 4
"""Logits are compared over the whole conversations of the first probes."""
MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class Probe:
    """A question about a picture or none, and an answer under which logits are compared."""

    id: str
    image: str | None
    turns: tuple[Turn, ...]
    """The conversation up to the question, then the answer."""

    @property
    def request(self) -> Request:
        """The question, to be answered greedily."""
        decoding = Decoding(max_new_tokens=MAX_NEW_TOKENS)
        return Request(self.id, self.image, self.turns[:-1], decoding=decoding)


def probe_of(item: Item) -> Probe:
    """An item's question with its earlier exchanges, and its ground-truth answer."""
    sample = item.sample
    turns = [Turn("prompt", text) for x in sample.history for text in (x.question, x.answer)]
    turns += [Turn("prompt", sample.question), Turn("prompt", sample.answer)]
    return Probe(sample.id, sample.image, tuple(turns))


@dataclass(frozen=True)
class GreedyAnswer:
    """The ids of a greedy answer, its end token included, with their log-probabilities (nats)."""

    ids: tuple[int, ...]
    logps: tuple[float, ...]

    def until(self, ends: set[int]) -> GreedyAnswer:
        """The answer up to the first of these end tokens."""
        cut = next((number + 1 for number, token in enumerate(self.ids) if token in ends), len(self.ids))
        return GreedyAnswer(self.ids[:cut], self.logps[:cut])


@dataclass(frozen=True)
class ProbeSet:
    """Probes, and what turns them into a model's inputs: the exported processor, and pictures by name."""

    probes: Sequence[Probe]
    processor: Any
    opener: Callable[[str], Any]

    def picture(self, probe: Probe) -> Any | None:
        """The probe's picture, if it has one."""
        return self.opener(probe.image) if probe.image is not None else None

    def inputs(self, probe: Probe, model: Any, answered: bool) -> dict[str, Any]:
        """A probe's whole conversation, or (not `answered`) what comes before its answer, for a model."""
        turns = probe.turns if answered else probe.turns[:-1]
        inputs = self.processor.apply_chat_template(
            messages(turns, self.picture(probe)),
            add_generation_prompt=not answered,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.lm_head.weight.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        return dict(inputs)

    @torch.inference_mode()
    def logits(self, model: Any) -> list[Tensor]:
        """The logits [T, V] of the first probes' conversations, in float32 on the CPU."""
        some = self.probes[:NUM_LOGIT_PROBES]
        return [model(**self.inputs(p, model, answered=True)).logits[0].float().cpu() for p in some]

    @torch.inference_mode()
    def answer(self, model: Any, probe: Probe) -> tuple[list[int], GreedyAnswer]:
        """The prompt's ids and the greedy answer by transformers' own `generate`."""
        inputs = self.inputs(probe, model, answered=False)
        out = model.generate(
            **inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
        start = inputs["input_ids"].shape[1]
        ids = out.sequences[0, start:].tolist()
        logps = [
            float(step[0].float().log_softmax(-1)[token]) for token, step in zip(ids, out.logits, strict=True)
        ]
        return out.sequences[0, :start].tolist(), GreedyAnswer(tuple(ids), tuple(logps))

    def pixel_difference(self, loaded: Any) -> float:
        """The largest difference between the processor's pixels of the first images and training's."""
        worst = 0.0
        images = [probe.image for probe in self.probes[:NUM_LOGIT_PROBES] if probe.image is not None]
        for image in dict.fromkeys(images):
            theirs = self.processor.image_processor(self.opener(image), return_tensors="pt")["pixel_values"]
            ours = loaded.pixels(image)
            worst = max(worst, float((theirs.reshape(-1) - ours.reshape(-1)).abs().max()))
        return worst


def difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The largest difference of two models' logits, relative to the largest logit of the first."""
    scale = max(float(logits.abs().max()) for logits in first)
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) / scale
