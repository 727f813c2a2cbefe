"""From a composed config to the steps of its cell: a pure function.

A cell is a list of steps. Most are a line of four (respond, critique, train, evaluate); a method that
iterates repeats the first three (`rounds`), each round answering with, and starting from, the model that
the rounds before it have trained (`init`). A method that is trained on rewards (`reward`) has a step before
its own that trains the reward model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from nsft_exp.records import UserError

Kind = Literal["respond", "critique", "train", "evaluate"]


@dataclass(frozen=True)
class Step:
    """One stage to run.

    `label` is the readable part of its folder's name. `nodes` are the resolved config nodes that it reads.
    `inputs` names the earlier steps whose records it consumes, or whose reward model; `init` names, in order,
    the train steps whose result its model starts from (of a critique: with whose result the model gave the
    answers).
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
    method's (`nothing`: the base VLM itself, no training). The last round's steps are named after their
    kinds, those of earlier rounds also after their number (`train:1`). Raises UserError for rounds that make
    no sense.
    """
    config = {**config, "source": _with_held_out(config)}
    rounds = _rounds(config)
    steps: list[Step] = []
    trained: tuple[str, ...] = ()
    for number, changes in enumerate(rounds, 1):
        suffix = "" if number == len(rounds) else f":{number}"
        steps += _round(_changed(config, changes), choices, consumes, number, suffix, trained)
        if consumes != "nothing":
            trained += (f"train{suffix}",)
    row = _row(config, choices)
    if len(rounds) > 1:
        row += f"-round{len(rounds)}"
    for member, node in benchmark_members(config["benchmark"]).items():
        nodes = {"vlm": config["vlm"], "benchmark": node, "limit": config.get("limit")}
        label = f"{member}-{row if trained else choices['vlm']}"
        steps.append(Step("evaluate", f"evaluate:{member}", label, nodes, init=trained))
    return steps


def _round(
    config: dict[str, Any],
    choices: dict[str, str],
    consumes: str,
    number: int,
    suffix: str,
    init: tuple[str, ...],
) -> list[Step]:
    """One round's steps; `init` names the trainings of the rounds before it."""
    asked, row = f"{choices['source']}-{choices['vlm']}", _row(config, choices)
    later = (
        f"{row}-round{number}" if number > 1 else None
    )  # what depends on the rounds before is the row's own
    steps: list[Step] = []
    if config["pairing"]:
        nodes = _take(config, "source", "vlm", "pairing")
        label = later or f"{asked}-{choices['pairing']}"
        steps.append(Step("respond", f"respond{suffix}", label, nodes, init=init))
    if config["critic"]:
        nodes = _take(config, "source", "critic", "codebook")
        label = later or f"{asked}-{choices['critic']}-{choices['codebook']}"
        critique = Step("critique", f"critique{suffix}", label, nodes, (f"respond{suffix}",), init)
        steps.append(critique)
    if consumes != "nothing":
        nodes = _take(config, "source", "vlm", "method", "recipe", "tuning", "trainer", "seed")
        inputs = tuple(step.name for step in steps)
        if config.get("reward"):
            label = f"{later or row}-reward"
            steps.append(Step("train", f"train:reward{suffix}", label, _reward(config, nodes), inputs, init))
            inputs += (f"train:reward{suffix}",)
        steps.append(Step("train", f"train{suffix}", later or row, nodes, inputs=inputs, init=init))
    return steps


def _reward(config: dict[str, Any], nodes: dict[str, Any]) -> dict[str, Any]:
    """What the reward model's training reads: a train step's nodes, its own method, its recipe's changes."""
    changes = config["reward"].get("recipe") or {}
    recipe = _changed(config["recipe"], changes, "recipe.", "reward")
    return {**nodes, "method": config["reward"]["method"], "recipe": recipe}


def _row(config: dict[str, Any], choices: dict[str, str]) -> str:
    asked = f"{choices['source']}-{choices['vlm']}"
    return f"{asked}-{row_label(choices).replace('/', '-')}-seed{config['seed']}"


def _rounds(config: dict[str, Any]) -> list[dict[str, Any]]:
    """What each round changes in the config: `rounds` is a number, or a list with one mapping a round."""
    rounds = config.get("rounds", 1)
    if isinstance(rounds, int) and rounds >= 1:
        return [{}] * rounds
    if isinstance(rounds, list) and rounds and all(isinstance(changes, dict) for changes in rounds):
        return rounds
    raise UserError(
        f"rounds={rounds}: take a number from 1 on, or a list with one mapping of changed values a round"
    )


def _changed(
    node: dict[str, Any], changes: dict[str, Any], prefix: str = "", whose: str = "rounds"
) -> dict[str, Any]:
    """The node with some of its values replaced. Raises UserError for a key that it does not have."""
    for name in changes:
        if name not in node:
            raise UserError(f"{whose}: {prefix}{name}: there is no such key; there are {', '.join(node)}")
    return node | {
        name: _changed(node[name], value, f"{prefix}{name}.", whose)
        if isinstance(value, dict) and isinstance(node[name], dict)
        else value
        for name, value in changes.items()
    }


def row_label(choices: dict[str, str]) -> str:
    """The row of a table that a cell belongs to: `method` or `method/variant`."""
    variant = choices.get("variant") or "none"
    return choices["method"] if variant == "none" else f"{choices['method']}/{variant}"


def _with_held_out(config: dict[str, Any]) -> dict[str, Any]:
    """The source node, larger by the samples that are held out of training and by a method's spare ones."""
    source, spare = config["source"], config["method"].get("spare") or 0
    if source.get("size") is None:
        if spare:
            raise UserError("method.spare: a whole source has no further samples; give source.size")
        return source
    return {**source, "size": source["size"] + (config["trainer"].get("held_out") or 0) + spare}


def benchmark_members(node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the benchmarks of a `benchmark` node by name: one class, or a suite of members."""
    if "_target_" in node:
        return {node.get("name", node["_target_"].rpartition(".")[2].lower()): node}
    return {name: child for name, child in node.items() if isinstance(child, dict) and "_target_" in child}


def _take(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: config[name] for name in names}
