"""Answers of a stage's VLM in chunks of requests: by this process, or dealt to a process for each device.

Chunks are the same whatever the number of devices, and an answer's last digits depend on its chunk alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from nsft_exp.cell_run import CellRun, build
from nsft_exp.device import num_cores, num_gpus, visible_devices
from nsft_exp.interfaces import Pairing
from nsft_exp.plan import Step
from nsft_exp.records import Preference, Reply, Request, Sample, UserError, from_json, to_json

CHUNK = 512
"""Requests that are answered together. A killed chunk is asked again whole: an answer's last digits depend on
the batch that it was in, and a resumed run must give the same bytes as one that was not killed."""
SHUTDOWN = 60
"""Seconds that a process gets to end by itself, with the engine that it may have."""

Answered = tuple[str, tuple[Reply, ...]]
T = TypeVar("T")
R = TypeVar("R")


class Answerer:
    """A VLM, by its config node, with what these train-stage folders hold; loaded when it is first asked.

    `devices` processes answer, a GPU each where there are GPUs, when there is more than one chunk to answer;
    a server's model is asked by this process alone. `threads` of the CPU is for each (None: its share).
    """

    def __init__(
        self, node: dict[str, Any], adapters: Sequence[Path], devices: int = 1, threads: int | None = None
    ) -> None:
        self.node, self.adapters, self.threads = node, list(adapters), threads
        self.devices = devices if node.get("engine") in ("hf", "vllm") else 1
        self._here: Any = None
        self._others: list[AnswerProcess] = []

    @property
    def vlm(self) -> Any:
        """What answers in this process."""
        if self._here is None:
            self._here = build(self.node).answerer(self.adapters)
        return self._here

    def generate(self, requests: Iterable[Request]) -> Iterator[Answered]:
        """Yield (request id, its n replies) in any order. Raises UserError for what cannot be answered."""
        chunks = in_chunks(requests)
        first, second = next(chunks, []), next(chunks, [])
        if self.devices == 1 or (not second and not self._others):
            while first:
                yield from self.vlm.generate(first)
                first, second = second, next(chunks, [])
            return
        dealt = [first, second, *chunks]
        yield from self._deal(dealt, lambda chunk, process: process.answers(chunk))

    def pairs(self, pairing: Pairing, samples: Sequence[Sample]) -> Iterator[Preference]:
        """Yield the pairing's preferences. One that cuts its own chunks has several in the making, a process
        for each; its preferences are the same.
        """
        size: int = getattr(pairing, "chunk", 0)
        if self.devices == 1 or not 0 < size < len(samples):
            yield from pairing.pairs(samples, self)
            return
        chunks = [samples[start : start + size] for start in range(0, len(samples), size)]
        yield from self._deal(chunks, lambda chunk, process: pairing.pairs(chunk, process))

    def close(self) -> None:
        """End what answers, wherever it is."""
        for process in self._others:
            process.close()
        if hasattr(self._here, "close"):
            self._here.close()

    def _deal(
        self, chunks: Sequence[Sequence[T]], work: Callable[[Sequence[T], AnswerProcess], Iterable[R]]
    ) -> Iterator[R]:
        """Give each chunk to a process that is free; yield what the work on it gives."""
        free: SimpleQueue[AnswerProcess] = SimpleQueue()
        for process in self._started():
            free.put(process)

        def worked(chunk: Sequence[T]) -> list[R]:
            process = free.get()
            try:
                return list(work(chunk, process))
            finally:
                free.put(process)

        with ThreadPoolExecutor(self.devices) as threads:
            futures = [threads.submit(worked, chunk) for chunk in chunks]
            try:
                for future in as_completed(futures):
                    yield from future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                for process in self._others:
                    process.kill()
                raise

    def _started(self) -> list[AnswerProcess]:
        if not self._others:
            names = visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"), num_gpus())
            threads = self.threads or max(1, num_cores() // self.devices)
            order = {"vlm": self.node, "adapters": [str(a) for a in self.adapters], "threads": threads}
            for number in range(self.devices):
                device = names[number % len(names)] if names else None
                self._others.append(AnswerProcess(order, device))
        return self._others


class AnswerProcess:
    """One process with the model, asked line by line; it ends when its input does."""

    def __init__(self, order: dict[str, Any], device: str | None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(order["threads"])}
        environment |= {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nsft_exp.answering"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self._write(order)

    def generate(self, requests: Iterable[Request]) -> Iterator[Answered]:
        """Yield the answers, as Answerer would in this process."""
        for chunk in in_chunks(requests):
            yield from self.answers(chunk)

    def answers(self, requests: Sequence[Request]) -> list[Answered]:
        """Return the answers. Raises UserError as the process did, RuntimeError where it has ended."""
        assert self.process.stdout is not None
        self._write(to_json(list(requests)))
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"a process that answers ended with code {self.process.wait()}; its words are above"
            )
        answer = json.loads(line)
        if "refused" in answer:
            raise UserError(answer["refused"])
        return [(key, from_json(tuple[Reply, ...], replies)) for key, replies in answer["answers"]]

    def close(self) -> None:
        """End the process: by itself, else by force."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=SHUTDOWN)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process.wait()

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()

    def _write(self, message: Any) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: the next reading tells
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()


def in_chunks(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """Yield lists of CHUNK requests, the last with what is left."""
    left = iter(requests)
    while chunk := list(islice(left, CHUNK)):
        yield chunk


@contextmanager
def answering(step: Step, run: CellRun) -> Iterator[Answerer]:
    """The step's VLM with what the train steps of its `init` trained, or its engine, inside the block.

    Sets the number of threads; all processes that answer end with the block.
    """
    if run.threads:
        import torch

        torch.set_num_threads(run.threads)
    trained = [run.folders[name].path for name in step.init]
    answerer = Answerer(step.nodes["vlm"], trained, run.devices, run.threads)
    try:
        yield answerer
    finally:
        answerer.close()


def served(step: Step, keys: Iterable[str]) -> dict[str, Any]:
    """What the calls with these keys have cost, for the manifest; empty where no server answered."""
    keys = [key for key in keys if key]
    return {"server": build(step.nodes["vlm"]).usage(keys)} if keys else {}


def main() -> None:
    """The process's side. What is printed goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    order = json.loads(sys.stdin.readline())
    import torch

    torch.set_num_threads(order["threads"])
    answerer = Answerer(order["vlm"], [Path(a) for a in order["adapters"]])
    try:
        for line in sys.stdin:
            replies.write(json.dumps(_reply(answerer, json.loads(line))) + "\n")
            replies.flush()
    finally:
        answerer.close()


def _reply(answerer: Answerer, rows: list[Any]) -> dict[str, Any]:
    try:
        found = answerer.generate([from_json(Request, row) for row in rows])
        return {"answers": [[key, to_json(replies)] for key, replies in found]}
    except UserError as error:
        return {"refused": str(error)}


if __name__ == "__main__":
    main()
