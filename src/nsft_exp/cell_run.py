"""What running a cell carries from step to step, and how another process is told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from nsft_exp.items import sample_digests
from nsft_exp.keys import LEFT_OUT, REVISIONS
from nsft_exp.plan import Step
from nsft_exp.records import Item, Sample, UserError, to_json
from nsft_exp.store import StageFolder, Store


class Unfinished(Exception):
    """A stage has work left, in a run that only looks."""


@dataclass
class Loaded:
    """What several cells, or several stages of one, read alike: read once."""

    samples: dict[str, Sequence[Sample]] = field(default_factory=dict)
    """Of each source node."""
    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    """The samples' hashes by id, of each source node."""
    _items: tuple[str, list[Item]] = ("", [])

    def items(self, name: str, read: Callable[[], list[Item]]) -> list[Item]:
        """Return the items of this name; the last ones are kept, which the next seed's cell reads too."""
        if self._items[0] != name:
            self._items = (name, read())
        return self._items[1]


@dataclass
class CellRun:
    """What running one cell has produced so far: the folder and the key of each step by name."""

    store: Store
    threads: int | None = None
    """CPU threads of every stage: the same number gives the same bytes (None: as torch chooses)."""
    devices: int = 1
    """Processes that answer, as many as train on this machine, a GPU each."""
    folders: dict[str, StageFolder] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    stream: dict[str, Any] | None = None
    """The `logger` that training streams its rows to, and the `run` there; plain values, for a child too."""

    watched: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The benchmarks (config nodes by name) that a training answers questions of now and then."""

    looking: bool = False
    """Find out whether all is done, and do nothing."""

    loaded: Loaded = field(default_factory=Loaded)

    def samples(self, step: Step) -> Sequence[Sample]:
        """The samples of the step's source, as often as they are asked for."""
        name = repr(step.nodes["source"])
        if name not in self.loaded.samples:
            self.loaded.samples[name] = list(build(step.nodes["source"]).samples())
        return self.loaded.samples[name]

    def sample_digests(self, step: Step) -> dict[str, str]:
        """The hashes of the step's samples by id, as they were when they were first asked for."""
        name = repr(step.nodes["source"])
        if name not in self.loaded.digests:
            self.loaded.digests[name] = sample_digests(self.samples(step), self.store)
        return self.loaded.digests[name]

    def begin(self) -> None:
        """Called where a stage's work begins. Raises Unfinished in a run that only looks."""
        if self.looking:
            raise Unfinished

    def inputs(self, step: Step, kind: str) -> StageFolder | None:
        """The folder of the input step of this kind, if the step has one."""
        return next((self.folders[name] for name in step.inputs if name.split(":")[0] == kind), None)


def build(node: dict[str, Any]) -> Any:
    """Return the object that a config node describes: its `_target_` called with its other keys.

    Raises the UserError of a constructor as it is, not in Hydra's words.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None


def stage_folder(step: Step, run: CellRun, inputs: Any = None) -> StageFolder:
    """The folder of a step, its key noted in the run; nothing is written."""
    nodes = {group: dict(node) if isinstance(node, dict) else node for group, node in step.nodes.items()}
    for name in LEFT_OUT[step.kind]:
        group, leaf = name.split(".")
        nodes[group].pop(leaf, None)
    key = run.store.key(step.kind, nodes, inputs, REVISIONS[step.kind])
    run.keys[step.name] = key
    return run.store.open(step.kind, step.label, key)


def open_folder(step: Step, run: CellRun, inputs: Any = None) -> StageFolder:
    """The folder of a step, which says from here on what it was asked to do."""
    folder = stage_folder(step, run, inputs)
    folder.write_config({"kind": step.kind, "name": step.name, "nodes": step.nodes})
    return folder


def to_order(step: Step, run: CellRun) -> dict[str, Any]:
    """Return a step and its run as plain JSON values, for another process."""
    return {
        "step": to_json(step),
        "runs": str(run.store.root),
        "threads": run.threads,
        "devices": run.devices,
        "folders": {name: str(folder.path) for name, folder in run.folders.items()},
        "keys": run.keys,
        "stream": run.stream,
        "watched": run.watched,
    }


def from_order(order: dict[str, Any]) -> tuple[Step, CellRun]:
    """Return the step and the run that `to_order` wrote."""
    step = Step(**(order["step"] | {name: tuple(order["step"][name]) for name in ("inputs", "init")}))
    folders = {name: StageFolder(Path(path)) for name, path in order["folders"].items()}
    run = CellRun(
        Store(order["runs"]), order["threads"], order["devices"], folders, order["keys"], order["stream"]
    )
    run.watched = order["watched"]
    return step, run
