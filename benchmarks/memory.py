"""Peak memory and speed of training and answering at a model's true shape, with random weights.

    python benchmarks/memory.py                 LLaVA-1.5-7B in bf16, on a GPU
    python benchmarks/memory.py --shape tiny    the same rows with a tiny model, on the CPU

It needs no network and no weights, and of the project's dependencies only torch, transformers, lightning,
peft, safetensors, pillow and rich: where the project is not installed, run it with PYTHONPATH=src.
Every row is a process of its own, so that its peak is its own and running out of memory costs that row alone.
Two more rows kill a training half-way and go on: LoRA, and full fine-tuning with the depth cut to 8 layers.
Written are `memory.json` and a table; the figures depend on the machine, which both name.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from nsft_exp.method.dpo import DPO
from nsft_exp.method.nsft import NSFT
from nsft_exp.method.sft import SFT
from nsft_exp.recipe import Recipe, TrainerOptions, Tuning
from nsft_exp.records import Correction, Decoding, Exchange, Item, Preference, Request, Sample, Turn
from nsft_exp.training import fit
from nsft_exp.vlm.scratch import ScratchLlava

SHAPES: dict[str, dict[str, Any]] = {
    "llava15_7b": {
        **{"width": 4096, "layers": 32, "mlp": 11008, "head_size": 128, "max_positions": 4096},
        **{"image_size": 336, "patch_size": 14, "vision_width": 1024, "vision_layers": 24},
        **{"vision_mlp": 4096, "vocab_size": 32064},
    },
    "tiny": {"width": 64, "layers": 2, "mlp": 128, "head_size": 32, "vocab_size": 512},
}
METHODS: dict[str, tuple[Any, str, str]] = {  # name: method, tuning, reference
    "sft": (SFT, "lora", "auto"),
    "nsft": (NSFT, "lora", "auto"),
    "dpo, adapter off": (DPO, "lora", "adapter_off"),
    "dpo, cached": (DPO, "lora", "cached"),
    "dpo, copy": (DPO, "lora", "copy"),
    "sft, full, 8 layers": (SFT, "full", "auto"),
}
RESUMED = {"sft": None, "sft, full, 8 layers": 8}
"""The rows that are killed half-way and resumed, with the depth that they are cut to."""


@dataclasses.dataclass
class RandomLlava(ScratchLlava):
    """A LLaVA of any shape; its random weights are drawn where they are used."""

    vision_heads: int = 16

    def __post_init__(self) -> None:
        """Without the scratch model's demand that one head size divides both widths."""
        super(ScratchLlava, self).__init__(
            None, dtype=self.dtype, device=self.device, batch_size=self.batch_size
        )

    def tower_config(self) -> Any:
        """CLIP's, whose heads are not the decoder's."""
        config = super().tower_config()
        config.num_attention_heads = self.vision_heads if self.vision_width >= 1024 else 1
        return config

    def base(self, device: torch.device, quantization: str | None) -> tuple[Any, Any]:
        """Draw the model on its device."""
        tokenizer = self._tokenizer()
        config = self._config(tokenizer)
        config.text_config.vocab_size = self.vocab_size
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, self.dtype))
        return model, tokenizer


def model(shape: str, layers: int | None) -> RandomLlava:
    """Return the VLM of a shape, its decoder cut to `layers`."""
    gpu = torch.cuda.is_available()
    sizes = {**SHAPES[shape], **({"layers": min(layers, SHAPES[shape]["layers"])} if layers else {})}
    return RandomLlava(**sizes, dtype="bfloat16" if gpu else "float32", device="cuda:0" if gpu else "cpu")


def items(folder: Path, count: int) -> list[Item]:
    """Return samples with answers of LLaVA-150k's length (about 100 words), pairs and corrections."""
    words = ["a", "man", "stands", "near", "the", "red", "car", "and", "looks", "at", "it", "."]
    rng, found = Random(0), []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = folder / f"{number}.png"
        Image.effect_noise((336, 336), 60).convert("RGB").save(image)
        chosen, rejected = (" ".join(rng.choices(words, k=100)) for _ in range(2))
        sample = Sample(str(number), str(image), "Describe the image in detail.", chosen)
        dialogue = tuple(Exchange(f"Is there a {w} in it?", "No, there is not.") for w in words[1:6])
        pair = Preference(sample.id, "ok", chosen, rejected)
        found.append(Item(sample, pair, Correction(sample.id, "ok", dialogue=dialogue)))
    return found


def train(name: str, shape: str, folder: Path, layers: int | None, steps: int) -> dict[str, Any]:
    """Train one row's method for some steps and return its figures."""
    kind, tuning, reference = METHODS[name]
    method, batch = kind(), 8
    examples = method.examples(items(folder.parent / "images", steps * batch), Random(0))
    gpu = torch.cuda.is_available()
    rank = 128 if shape != "tiny" else 4
    summary = fit(
        vlm=model(shape, layers),
        method=method,
        examples=examples,
        validation=[],
        folder=folder,
        references=folder.parent / "reference",
        recipe=Recipe("memory", 1e-5, batch, lora_rank=rank, lora_alpha=2 * rank),
        tuning=Tuning(kind=tuning, activation_checkpointing=True),
        trainer=TrainerOptions(
            accelerator="auto",
            precision="bf16-true" if gpu else "32-true",
            micro_batch=4,
            reference=reference,
            checkpoint_every=2,
        ),
        seed=0,
        progress=False,
    )
    times = [json.loads(line) for line in (folder / "times.jsonl").read_text("utf-8").splitlines()]
    speeds = sorted(row["tokens_per_second"] for row in times[1:])  # the first step warms up
    return {
        "peak_gib": round(summary["peak_memory_bytes"] / 2**30, 2),
        "tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
        "models_held": summary["models_held"],
        "final_loss": summary["final_loss"],
    }


def answer(shape: str, folder: Path) -> dict[str, Any]:
    """Answer 32 questions with 64 tokens each and return the figures."""
    loaded = model(shape, None).load()
    asked = [
        Request(i.sample.id, i.sample.image, (Turn("prompt", i.sample.question),), decoding=Decoding(64))
        for i in items(folder.parent / "images", 32)
    ]
    loaded.stops = set()  # random weights may end an answer at once
    list(loaded.generate(asked[:4]))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    made = sum(len(reply.ids) for _, replies in loaded.generate(asked) for reply in replies)
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"peak_gib": round(peak / 2**30, 2) or None, "tokens_per_second": round(made / seconds, 1)}


def resumed(name: str, shape: str, folder: Path, steps: int) -> dict[str, Any]:
    """Kill a row's training after its first checkpoint, run it again, and compare it with one left alone."""
    whole = in_child("train", name, shape, folder / "whole", steps)
    order = command("train", name, shape, folder / "killed", steps)
    with subprocess.Popen(order, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while child.poll() is None and not (folder / "killed" / "checkpoint").exists():
            time.sleep(0.05)
        killed = child.poll() is None
        child.send_signal(signal.SIGKILL)
    again = in_child("train", name, shape, folder / "killed", steps)
    return {"killed": killed, "final_loss": again.get("final_loss"), "left_alone": whole.get("final_loss")}


def command(what: str, name: str, shape: str, folder: Path, steps: int) -> list[str]:
    """The command line of one row's process."""
    words = ["--row", what, name, str(folder), "--shape", shape, "--steps", str(steps)]
    return [sys.executable, __file__, *words]


def in_child(what: str, name: str, shape: str, folder: Path, steps: int) -> dict[str, Any]:
    """Run one row in a process of its own; where it fails its last line is the result."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command(what, name, shape, folder, steps), capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1][:300]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import transformers

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}


def main() -> None:
    """Measure every row, print the table and write `memory.json` after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="llava15_7b")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("memory.json"))
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        what, name, folder = asked.row[0], asked.row[1], Path(asked.row[2])
        layers = RESUMED.get(name)
        row = (
            answer(asked.shape, folder)
            if what == "answer"
            else train(name, asked.shape, folder, layers, asked.steps)
        )
        print(json.dumps(row))
        return
    measure(asked.shape, asked.steps, asked.out)


def measure(shape: str, steps: int, out: Path) -> None:
    """Run all rows of a shape, one after another."""
    report: dict[str, Any] = {"shape": shape, **machine(), "rows": {}}
    with tempfile.TemporaryDirectory() as place:
        jobs = [(f"train: {name}", "train", name) for name in METHODS]
        jobs += [("answer: 32 questions", "answer", "sft")]
        jobs += [(f"killed and resumed: {name}", "resume", name) for name in RESUMED]
        for number, (title, what, name) in enumerate(jobs):
            folder = Path(place) / str(number) / "run"
            started = time.perf_counter()
            one = resumed if what == "resume" else None
            row = one(name, shape, folder, steps) if one else in_child(what, name, shape, folder, steps)
            report["rows"][title] = {**row, "seconds": round(time.perf_counter() - started, 1)}
            print(f"{title:<42} {report['rows'][title]}", flush=True)
            out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
