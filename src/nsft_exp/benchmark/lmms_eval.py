"""The long tail: lmms-eval's tasks, run by lmms-eval itself against a server of the OpenAI protocol.

Its dependencies cannot live beside Hydra's (antlr4), so it has an interpreter of its own (`make lmms-env`).
It asks with its own prompts and scores by its own rules: for the benchmarks that are native here its numbers
are other numbers. A request that failed is an answer to it, which it scores; here its task has no score.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nsft_exp.interfaces import Address
from nsft_exp.records import Metric, Request, UserError

FAILED = "[LMMS_EVAL_"
"""How lmms-eval begins the answer to a request that failed, or that its budget did not allow."""
VERSION = "import importlib.metadata as m; print(m.version('lmms_eval'))"


class LmmsEval:
    """Some tasks of one version of lmms-eval; `folder` holds task files besides its own."""

    def __init__(
        self,
        tasks: str | Sequence[str],
        folder: str | None = None,
        version: str = "0.7.3",
        python: str = ".venv-lmms/bin/python",
        concurrency: int = 16,
        attempts: int = 5,
        backoff: float = 1.0,
        timeout: float = 600,
        name: str = "lmms_eval",
    ) -> None:
        self.tasks = tasks.split(",") if isinstance(tasks, str) else list(tasks)
        if not self.tasks or not all(task and "," not in task for task in self.tasks):
            raise UserError(f"tasks={tasks}: name at least one task of lmms-eval, like tasks=[mmstar,ai2d]")
        self.folder, self.version, self.python, self.name = folder, version, Path(python), name
        self.concurrency, self.attempts, self.backoff, self.timeout = concurrency, attempts, backoff, timeout

    @property
    def protocol(self) -> str:
        """The program, its version and the tasks."""
        return f"lmms-eval {self.version}, tasks {', '.join(self.tasks)}"

    def files(self) -> list[Path]:
        """The folder of task files; lmms-eval has the data."""
        return [] if self.folder is None else [Path(self.folder)]

    def requests(self) -> list[Request]:
        """None: lmms-eval asks. Raises UserError where the interpreter lacks it, or has another version."""
        if not self.python.is_file():
            raise UserError(
                f"benchmark.python={self.python}: there is no such interpreter; make lmms-env, or name one "
                f"that has lmms-eval {self.version}"
            )
        if self.folder is not None and not Path(self.folder).is_dir():
            raise UserError(f"benchmark.folder={self.folder}: there is no such folder of task files")
        asked = subprocess.run([self.python, "-c", VERSION], capture_output=True, text=True, check=False)
        found = asked.stdout.strip() or "none"
        if found != self.version:
            raise UserError(
                f"benchmark.python={self.python}: has lmms-eval {found}, not {self.version}; make lmms-env, "
                "or say benchmark.version=... (the scores of another version are others)"
            )
        return []

    def command(self, address: Address, out: Path, limit: int | None) -> tuple[list[str], dict[str, str]]:
        """Return (the words that evaluate the model at an address, what they add to the environment).

        The key is in the environment alone. `out` gets the results, `limit` questions of each task.
        """
        model = {
            "model": address.model,
            "base_url": address.base_url,
            "num_cpus": self.concurrency,
            "max_retries": self.attempts,
            "retry_backoff_s": self.backoff,
            "timeout": self.timeout,
        }
        words = [str(self.python), "-m", "lmms_eval", "eval", "--model", "async_openai", "--batch_size", "1"]
        words += ["--model_args", ",".join(f"{key}={value}" for key, value in model.items())]
        words += ["--tasks", ",".join(self.tasks), "--output_path", str(out), "--log_samples"]
        words += ["--include_path", self.folder] if self.folder is not None else []
        words += ["--limit", str(limit)] if limit is not None else []
        return words, {"OPENAI_API_KEY": address.key or "none"}

    def outcome(self, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return (an evaluate stage's summary, a record for each sample) of the results in a folder.

        A metric is `<task>/<metric>`, with `,<filter>` where lmms-eval has filtered. It is None where
        lmms-eval has no number, or where a request of the task, or of a task of the group, has failed. Raises
        UserError where there are no results.
        """
        results = _results(out)
        records = [record for task in results["n-samples"] for record in _samples(out, task)]
        failed = {record["task"] for record in records if record["reason"]}
        groups = results.get("group_subtasks", {})
        metrics = {
            f"{task}/{key.removesuffix(',none')}": None if _spoilt(task, groups, failed) else _number(value)
            for task, row in results["results"].items()
            for key, value in row.items()
            if "," in key and "_stderr" not in key
        }
        number = sum(task["effective"] for task in results["n-samples"].values())
        lost = sum(bool(record["reason"]) for record in records)
        return {
            "benchmark": self.name,
            "protocol": self.protocol,
            "n": number,
            "counts": {"scored": len(records) - lost, "unanswered": lost},
            "complete": not lost and len(records) == number and bool(number),
            "metrics": metrics,
            "tasks": {task: results["versions"].get(task) for task in results["n-samples"]},
            "git_hash": results.get("git_hash"),  # of the checkout around lmms-eval, which may be another's
        }, records

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """None: lmms-eval's metrics are no sums over items."""
        return {}

    def describe(self) -> list[Metric]:
        """None: only lmms-eval knows what its tasks measure."""
        return []


def _results(out: Path) -> dict[str, Any]:
    files = sorted(out.glob("*/*_results.json"))
    if not files:
        raise UserError(f"{out}: lmms-eval has left no results; what it said stands above")
    results: dict[str, Any] = json.loads(files[-1].read_text("utf-8"))
    for part in ("results", "n-samples", "versions"):
        if not isinstance(results.get(part), dict):
            raise UserError(f"{files[-1]}: has no `{part}`: the results of another version of lmms-eval?")
    return results


def _samples(out: Path, task: str) -> Iterator[dict[str, Any]]:
    """A record for each sample of a task, in an evaluate stage's form; `reason`: the request has failed."""
    for file in sorted(out.glob(f"*/*_samples_{task}.jsonl")):
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            replies = (
                row["filtered_resps"] if isinstance(row["filtered_resps"], list) else [row["filtered_resps"]]
            )
            said = [str(reply) for reply in (*replies, *row.get("resps", ()))]
            failed = next((text for text in said if FAILED in text), "")
            yield {
                "id": f"{task}:{row['doc_id']}",
                "task": task,
                "question": str(row.get("input", "")),
                "answer": None if failed else "\n".join(map(str, replies)),
                "finish": None,
                "score": None,  # as counts: lmms-eval's own numbers are under `values`
                "values": {key: value for key, value in row.items() if key not in _PLAIN},
                "reason": failed and f"no answer: {failed}",
            }


_PLAIN = ("doc_id", "target", "filtered_resps", "resps", "token_counts", "doc_hash", "input")
"""What a row of samples holds besides lmms-eval's numbers."""


def _spoilt(task: str, groups: Mapping[str, Sequence[str]], failed: set[str]) -> bool:
    """Whether a request of a task, or of those below a group, has failed."""
    below = [name for name in groups.get(task, ()) if name != task]
    return task in failed or any(_spoilt(name, groups, failed) for name in below)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
