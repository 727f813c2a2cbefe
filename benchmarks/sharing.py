"""What running the common beginning once is worth: pairs in training, several answers to one request.

    python benchmarks/sharing.py              the toy base, on the CPU
    python benchmarks/sharing.py --rows 64    with more pairs and requests at once

Each is timed with its beginning shared and without, one after the other, `--repeats` times over; given are
the medians and their ratio. The same numbers come out but for rounding (tests/test_branches.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nsft_exp.batching import Batch, collate
from nsft_exp.config import PACKAGE
from nsft_exp.encoding import encode_examples
from nsft_exp.method.dpo import DPO
from nsft_exp.records import Decoding, Item, Preference, Request, Sample, Turn
from nsft_exp.reference import token_scores
from nsft_exp.toy.draw import draw_scene
from nsft_exp.toy.talk import instruct_talk
from nsft_exp.toy.world import make_scene
from nsft_exp.vlm.hf import HFModel


def samples(folder: Path, count: int) -> list[tuple[Sample, str]]:
    """Return samples of the toy world with another scene's description as a rejected answer each."""
    found = []
    for number in range(count):
        scene, other = (make_scene("align", 0, n) for n in (number, number + count))
        path = folder / f"{number}.png"
        draw_scene(scene).save(path)
        *history, last = instruct_talk(scene, Random(number))
        wrong = instruct_talk(other, Random(number))[-1].answer
        found.append((Sample(str(number), str(path), last.question, last.answer, tuple(history)), wrong))
    return found


def pairs(loaded: Any, some: list[tuple[Sample, str]]) -> Batch:
    """Return a micro-batch of preference pairs."""
    items = [Item(s, Preference(s.id, "ok", s.answer, wrong), None) for s, wrong in some]
    encoded, _ = encode_examples(DPO().examples(items, Random(0)), loaded.chat, loaded.layout, 1024)
    return collate(encoded, range(len(encoded)), loaded.pixels, loaded.pad_id)


def train(loaded: Any, batch: Batch) -> None:
    """Make the gradients of a micro-batch's log-probabilities."""
    loaded.model.zero_grad()
    token_scores(loaded, batch).logp.sum().backward()


def requests(some: list[tuple[Sample, str]], answers: int) -> list[Request]:
    """Return a request for several sampled answers about each sample's image."""
    how = Decoding(32, temperature=1.0)
    return [Request(s.id, s.image, (Turn("prompt", s.question),), n=answers, decoding=how) for s, _ in some]


def alone(asked: list[Request]) -> list[Request]:
    """Return a request for every single answer."""
    return [dataclasses.replace(r, id=f"{r.id}.{k}", n=1) for r in asked for k in range(r.n)]


def medians(shared: Callable[[], Any], apart: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Return both calls' median seconds, timed in turns after one of each that is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats + 1):
        for call, found in zip((shared, apart), times, strict=True):
            started = time.perf_counter()
            call()
            if number:
                found.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def measure(rows: int, answers: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Return the seconds with and without sharing of both kinds of work."""
    with TemporaryDirectory() as place:
        loaded = HFModel(str(PACKAGE / "toy" / "base"), device="cpu", batch_size=rows * answers).load()
        some = samples(Path(place), rows)
        batch, asked = pairs(loaded, some), requests(some, answers)
        split = dataclasses.replace(batch, branches=None)
        singles = alone(asked)
        return {
            f"gradients of {rows} pairs": medians(
                lambda: train(loaded, batch), lambda: train(loaded, split), repeats
            ),
            f"{answers} answers to {rows} requests": medians(
                lambda: list(loaded.generate(asked)), lambda: list(loaded.generate(singles)), repeats
            ),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16, help="pairs, and requests, at once")
    parser.add_argument("--answers", type=int, default=4, help="answers to a request")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, (shared, apart) in measure(asked.rows, asked.answers, asked.repeats).items():
        print(f"{name:<28} {shared:.3f} s shared, {apart:.3f} s apart: ratio {shared / apart:.2f}")


if __name__ == "__main__":
    main()
