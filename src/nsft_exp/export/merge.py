"""Merging what was trained into the base, writing the folder, and proving that it is the same model.

The merge is done in float32, whatever type the model is held in, and compared there; then the weights are
written in the model's own type. Models are in memory one after another.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nsft_exp.cell_run import build
from nsft_exp.export import agreement
from nsft_exp.export.folder import write_json
from nsft_exp.export.probe import NUM_PROBES, GreedyAnswer, ProbeSet, difference, probe_of
from nsft_exp.export.processor import read_processor
from nsft_exp.export.vllm import interpreter_with_vllm, vllm_answers
from nsft_exp.images import open_image as open_file
from nsft_exp.records import Item, UserError
from nsft_exp.vlm.reading import silently
from nsft_exp.vlm.template import writes_training_ids

FLOAT32 = "float32"
TOLERANCE = 1e-5
"""Largest difference of logits, relative to the largest logit, that float32 rounding explains."""
NO_CHANGE = 1e-6
"""Where training moves no logit by more than this (relative), it is taken to have changed nothing."""
PIXEL_TOLERANCE = 1e-3
"""Largest difference of normalised pixels between training's and the written processor's arithmetic."""


@dataclass
class MergedModel:
    """A model in the making: where it comes from, where it goes, and what its proof has found so far.

    `vlm` is the base's config node, `trained` a train stage's folder (None: the base itself), `items` those
    whose first questions are the probes, `open_image` the source's own way to make pictures, `python` an
    interpreter with vLLM, `parents` the train stages' folders of the rounds before.
    """

    folder: Path
    vlm: dict[str, Any]
    trained: Path | None
    items: Sequence[Item]
    open_image: Callable[[str], Any] | None = None
    python: str | None = None
    parents: Sequence[Path] = ()
    found: dict[str, Any] = field(default_factory=dict)

    def write(self) -> dict[str, Any]:
        """Write the folder and return what the proof found.

        Raises UserError where the training changed nothing or the folder is not the trained model.
        """
        interpreter = interpreter_with_vllm(self.python)
        logits = self._write_merged()
        _free()
        self._compare_logits(logits)
        _free()
        model = self._read_back("auto")
        self.found["dtype"] = str(model.dtype).removeprefix("torch.")
        if self.found["dtype"] != self.vlm["dtype"]:
            raise UserError(
                f"the folder comes back as {self.found['dtype']}, not vlm.dtype={self.vlm['dtype']}"
            )
        if self.trained and self.vlm["dtype"] != FLOAT32:
            self._compare_answers(model)
        if interpreter is None:
            why = (
                "left out"
                if self.python
                else "not installed here; python=<interpreter> names one that has it"
            )
            self._note("vLLM", f"not compared ({why})")
            return self.found
        answers = [self.probes.answer(model, probe) for probe in self.probes.probes]
        config, ends = model.config, _ends(model)
        del model
        _free()
        self._compare_vllm(interpreter, answers, config, ends)
        return self.found

    # --- making it ---

    def _write_merged(self) -> list[Tensor]:
        """Merge in float32, write in the model's type, and return the logits that the folder must give."""
        loaded = self._load(FLOAT32)
        self.probes = self._probes(loaded)
        logits = base = self.probes.logits(loaded.model)
        if self.trained and (self.trained / "model").is_dir():
            del loaded
            _free()
            loaded = self._load(FLOAT32, [self.trained])
            logits = self.probes.logits(loaded.model)
        elif self.trained:
            logits = self._merge(loaded, self.trained / "adapter")
        if self.trained:
            self._check_change(base, logits)
        if self.vlm["dtype"] != FLOAT32:
            _round(loaded.model, getattr(torch, self.vlm["dtype"]))
            logits = self.probes.logits(loaded.model)
            loaded.model.to(getattr(torch, self.vlm["dtype"]))
        loaded.save(self.folder)
        self._note("parameters", f"{sum(p.numel() for p in loaded.model.parameters()):,}")
        return logits

    def _load(self, dtype: str, trained: Sequence[Path] = ()) -> Any:
        loaded = build(self.vlm | {"dtype": dtype}).load([*self.parents, *trained])
        loaded.opener = self.open_image
        return loaded

    def _merge(self, loaded: Any, adapter: Path) -> list[Tensor]:
        """Merge the adapter and a trained projector; returns the logits that they give beside the weights."""
        from peft import PeftModel

        peft = PeftModel.from_pretrained(loaded.model, str(adapter), local_files_only=True).eval()
        beside = self.probes.logits(loaded.model)
        loaded.model = peft.merge_and_unload(safe_merge=True)
        merged = difference(beside, self.probes.logits(loaded.model))
        _within(merged, f"{adapter}: the merged weights' logits are not the adapter's")
        self._note("merged against the adapter (float32)", f"logits differ by {merged:.1e} relative")
        return beside

    def _check_change(self, base: Sequence[Tensor], trained: Sequence[Tensor]) -> None:
        moved = difference(base, trained)
        if not moved > NO_CHANGE:
            raise UserError(
                f"{self.trained}: what was trained changes nothing (largest relative change of a logit "
                f"{moved:.1e}); train longer, or check that tuning.targets names modules of this base"
            )
        self._note("trained against the base (float32)", f"logits differ by {moved:.1e} relative")

    def _probes(self, loaded: Any) -> ProbeSet:
        """The probes with the model's own processor, whose chat template gives training's ids."""
        exact = loaded.save_processor(self.folder)
        write_json(self.folder / "config.json", loaded.model.config.to_dict())  # names the processor's class
        processor = read_processor(self.folder)
        if exact:
            self._note("chat template", "its ids and its mask of answers are those of training")
        elif writes_training_ids(processor, loaded.chat):
            self._note("chat template", "its ids are those of training")
        else:
            self._note("chat template", "its ids are not those of training: feed token ids, not text")
        opener = self.open_image or (lambda image: open_file(image, self.vlm.get("exif", "apply")))
        found = ProbeSet([probe_of(item) for item in self.items[:NUM_PROBES]], processor, opener)
        pixels = found.pixel_difference(loaded)
        message = "the written image processor does not make training's pixels; check vlm.preprocessing"
        _within(pixels, message, PIXEL_TOLERANCE)
        self._note("pixels against training's", f"differ by {pixels:.1e}")
        return found

    # --- proving it ---

    def _read_back(self, dtype: str) -> Any:
        """The model as a user gets it. Raises UserError where a weight is missing or one too many."""
        from transformers import AutoModelForImageTextToText

        with silently():
            read: Any = AutoModelForImageTextToText.from_pretrained(
                self.folder, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        model, info = read
        wrong = {name: sorted(keys)[:3] for name, keys in info.items() if keys}
        if wrong:
            raise UserError(f"the written weights do not fit the model ({wrong})")
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def _compare_logits(self, logits: Sequence[Tensor]) -> None:
        """In float32: the file's type has rounded the weights on both sides already."""
        value = difference(logits, self.probes.logits(self._read_back(FLOAT32)))
        _within(value, "the folder's logits are not the trained model's")
        self._note("read back by transformers", f"logits differ by {value:.1e} relative")

    def _compare_answers(self, model: Any) -> None:
        """Greedy answers as evaluation gets them (the adapter beside the weights), and of the folder."""
        loaded = self._load(self.vlm["dtype"], [self.trained] if self.trained else [])
        with_folder = copy.copy(loaded)
        with_folder.model = model
        ours, theirs = (self._greedy(some) for some in (loaded, with_folder))
        name = "greedy answers against the trained model's"
        self._note(name, agreement.summary("the trained model", ours, theirs))

    def _greedy(self, loaded: Any) -> list[GreedyAnswer]:
        requests = [probe.request for probe in self.probes.probes]
        replies = {key: reply for key, (reply, *_) in loaded.generate(requests)}
        return [GreedyAnswer(replies[r.id].ids, replies[r.id].logps) for r in requests]

    def _compare_vllm(
        self,
        interpreter: str,
        answers: Sequence[tuple[list[int], GreedyAnswer]],
        config: Any,
        ends: set[int],
    ) -> None:
        pictures = [self.probes.picture(probe) for probe in self.probes.probes]
        prompts = [prompt for prompt, _ in answers]
        theirs = vllm_answers(interpreter, self.folder, prompts, pictures, config)
        ours = [answer.until(ends) for _, answer in answers]
        text = agreement.summary("vLLM", ours, [answer.until(ends) for answer in theirs])
        self._note("vLLM against transformers", text)

    def _note(self, name: str, text: str) -> None:
        self.found[name] = text
        print(f"  {name}: {text}")


def _within(value: float, message: str, tolerance: float = TOLERANCE) -> None:
    if not value <= tolerance:
        raise UserError(f"{message} (largest difference {value:.2g}, allowed {tolerance:g})")


def _round(model: Any, dtype: torch.dtype) -> None:
    """Give every weight the value that it has in a lower precision, still held in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()


def _ends(model: Any) -> set[int]:
    end = model.generation_config.eos_token_id
    return set(end) if isinstance(end, (list, tuple)) else {end}


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
