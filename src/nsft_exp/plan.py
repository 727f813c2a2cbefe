"""From a composed config to the steps of its cell: a pure function.

A cell is a list of steps. Most are a line of four (respond, critique, train, evaluate); a method that
iterates repeats them, a later train step naming the earlier ones it starts from (`init`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["respond", "critique", "train", "evaluate"]


@dataclass(frozen=True)
class Step:
    """One stage to run.

    `label` is the readable part of its folder's name. `nodes` are the resolved config nodes that it reads.
    `inputs` names the earlier steps whose records it consumes; `init` names, in order, the train steps whose
    result its model starts from.
    """

    kind: Kind
    name: str
    label: str
    nodes: dict[str, Any]
    inputs: tuple[str, ...] = ()
    init: tuple[str, ...] = ()


def make_plan(config: dict[str, Any], choices: dict[str, str], consumes: str) -> list[Step]:
    """Return the steps of one cell in order.

    `config` is the resolved config, `choices` the chosen option of each group, and `consumes` the
    method's (`nothing`: the base VLM itself, no training).
    """
    config = {**config, "source": _with_held_out(config)}
    steps: list[Step] = []
    asked = f"{choices['source']}-{choices['vlm']}"
    if config["pairing"]:
        nodes = _take(config, "source", "vlm", "pairing")
        steps.append(Step("respond", "respond", f"{asked}-{choices['pairing']}", nodes))
    if config["critic"]:
        nodes = _take(config, "source", "critic", "codebook")
        label = f"{asked}-{choices['critic']}-{choices['codebook']}"
        steps.append(Step("critique", "critique", label, nodes, inputs=("respond",)))
    inputs = tuple(step.name for step in steps)
    trained: tuple[str, ...] = ()
    row = f"{asked}-{row_label(choices).replace('/', '-')}-seed{config['seed']}"
    if consumes != "nothing":
        nodes = _take(config, "source", "vlm", "method", "recipe", "tuning", "trainer", "seed")
        steps.append(Step("train", "train", row, nodes, inputs=inputs))
        trained = ("train",)
    for member, node in benchmark_members(config["benchmark"]).items():
        nodes = {"vlm": config["vlm"], "benchmark": node, "limit": config.get("limit")}
        label = f"{member}-{row if trained else choices['vlm']}"
        steps.append(Step("evaluate", f"evaluate:{member}", label, nodes, init=trained))
    return steps


def row_label(choices: dict[str, str]) -> str:
    """The row of a table that a cell belongs to: `method` or `method/variant`."""
    variant = choices.get("variant") or "none"
    return choices["method"] if variant == "none" else f"{choices['method']}/{variant}"


def _with_held_out(config: dict[str, Any]) -> dict[str, Any]:
    """The source node, larger by the samples that are held out of training for the validation loss."""
    source, held_out = config["source"], config["trainer"].get("held_out") or 0
    return source if source.get("size") is None else {**source, "size": source["size"] + held_out}


def benchmark_members(node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the benchmarks of a `benchmark` node by name: one class, or a suite of members."""
    if "_target_" in node:
        return {node.get("name", node["_target_"].rpartition(".")[2].lower()): node}
    return {name: child for name, child in node.items() if isinstance(child, dict) and "_target_" in child}


def _take(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: config[name] for name in names}
