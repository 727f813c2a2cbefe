"""A study: the outcomes of a multirun on disk, and from them the report and the W&B runs."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nsft_exp.cell_run import build
from nsft_exp.critic.audit import audit, scenes_of
from nsft_exp.critic.lexicon import Lexicon
from nsft_exp.items import read_items, sample_digests
from nsft_exp.keys import digest, is_ignored, leaves
from nsft_exp.records import UserError
from nsft_exp.report.cell import Cell, Evaluation
from nsft_exp.store import StageFolder, Store, write_atomically


def study_folder(config: DictConfig) -> Path:
    """The folder of a study's outcomes: `runs/studies/<name>/`."""
    return Path(config.paths.runs) / "studies" / str(config.study.name)


def save_outcomes(outcomes: list[dict[str, Any]], config: DictConfig) -> None:
    """Write what the cells of this multirun came to (they replace the last multirun's)."""
    write_atomically(
        study_folder(config) / "cells.json", json.dumps(outcomes, indent=1, ensure_ascii=False) + "\n"
    )


def load_outcomes(config: DictConfig) -> list[dict[str, Any]]:
    """Return the stored outcomes of a study. Raises UserError where it was not run."""
    file = study_folder(config) / "cells.json"
    if not file.exists():
        raise UserError(f"{file}: not there; run the study first: nsft -m --config-name {config.study.name}")
    return json.loads(file.read_text("utf-8"))


def write_study_report(outcomes: list[dict[str, Any]], config: DictConfig, always: bool = False) -> None:
    """Write table, figures and page of a study, and its W&B runs where `logger=wandb`.

    Does nothing where the cells and their scores are those of the report that is there.
    """
    from nsft_exp.report.printing import print_table

    cells = make_cells(outcomes)
    study = _plain(config.study)
    folder = Path(config.paths.report) / str(config.study.name)
    state = digest([study, [_state(outcome) for outcome in outcomes]])
    stamp = folder / ".state"
    if always or not stamp.exists() or stamp.read_text() != state:
        from nsft_exp.report.write import write_report  # draws figures

        write_report(cells, study, folder)
        log_cells(cells, config)
        write_atomically(stamp, state)
    print_table(cells, study, folder)
    print(f"report: {folder / 'index.html'}")


def _state(outcome: dict[str, Any]) -> Any:
    """What a report depends on in one cell: its stage folders (named by their keys) and how it ended."""
    return [
        outcome["label"],
        outcome["status"],
        outcome["error"],
        outcome.get("seed"),
        outcome.get("folders"),
    ]


def log_cells(cells: list[Cell], config: DictConfig) -> None:
    """Write each finished cell to W&B, where the logger is W&B."""
    logger = _plain(config.logger)
    if not logger:
        return
    sink = build(logger)
    for cell in cells:
        if cell.status == "ok":
            sink.log(cell, group=str(config.study.name))


def stream_of(outcome: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a train stage needs to stream its rows to the cell's logger; None where that does not."""
    config = outcome["config"]
    run = build(config["logger"]).live_run(make_cell(outcome), group=str(config["study"]["name"]))
    return {"logger": config["logger"], "run": run} if run else None


def _plain(node: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def show(outcomes: list[dict[str, Any]], config: DictConfig) -> None:
    """Print the scores of a single cell."""
    from nsft_exp.report.printing import print_table

    cells = make_cells([o for o in outcomes if o["status"] == "ok"])
    if cells:
        print_table(cells, _plain(config.study))
        log_cells(cells, config)


def make_cells(outcomes: list[dict[str, Any]]) -> list[Cell]:
    """Return the report's cells. The base VLM, which no seed moves, gives one cell.

    Rows that a swept value tells apart (`recipe.learning_rate=1e-4,1e-3`) get that value into their label.
    """
    cells: dict[str, Cell] = {}
    for outcome, label in zip(outcomes, _labels(outcomes), strict=True):
        cell = make_cell(outcome | {"label": label})
        cells.setdefault(cell.name, cell)
    return list(cells.values())


COLUMNS = ("seed", "data_seed", "source.*", "pairing.seed", "limit")
"""Config leaves that a report shows beside the label, or that average away."""


def _labels(outcomes: list[dict[str, Any]]) -> list[str]:
    """Each outcome's label, with the words that tell it from others of one label, source and VLM."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for outcome in outcomes:
        groups.setdefault(_row(outcome), []).append(outcome)
    swept = {row: _swept(group) for row, group in groups.items()}
    return [" ".join([o["label"], *_told(o, swept[_row(o)])]) for o in outcomes]


def _row(outcome: dict[str, Any]) -> tuple[str, ...]:
    return outcome["label"], outcome["choices"]["source"], outcome["choices"]["vlm"]


def _told(outcome: dict[str, Any], names: list[str]) -> list[str]:
    values = dict(leaves(outcome.get("config", {}))) | outcome["choices"]
    return [f"{name}={values[name]}" for name in names if name in values]


def _swept(group: list[dict[str, Any]]) -> list[str]:
    """The config groups, and the leaves of others, that differ in a group of trained cells."""
    if group[0]["choices"]["method"] == "base":
        return []
    groups = _several([outcome["choices"] for outcome in group])
    names = _several([dict(leaves(outcome.get("config", {}))) for outcome in group])
    hidden = (*COLUMNS, *(pattern for g in groups for pattern in (g, f"{g}.*")))
    return groups + [n for n in names if not is_ignored(n) and not any(fnmatch(n, p) for p in hidden)]


def _several(rows: list[dict[str, Any]]) -> list[str]:
    """The names that have more than one value."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, set()).add(repr(value))
    return [name for name, found in values.items() if len(found) > 1]


def make_cell(outcome: dict[str, Any]) -> Cell:
    """Return one report cell from an outcome and the manifests of its stages."""
    choices, config, folders = outcome["choices"], outcome.get("config", {}), outcome.get("folders", {})
    trained = StageFolder(Path(folders["train"])).manifest() if "train" in folders else None
    seed = None if choices["method"] == "base" else outcome.get("seed")
    source = config.get("source", {})
    size = source.get("size")
    return Cell(
        label=outcome["label"],
        method=choices["method"],
        variant="" if choices.get("variant") == "none" else choices.get("variant", ""),
        source=choices["source"],
        size=size,
        vlm=choices["vlm"],
        seed=seed,
        source_seed=source.get("seed"),
        pairing_seed=config.get("pairing", {}).get("seed"),
        pairing=choices["pairing"],
        critic=choices["critic"],
        codebook=choices["codebook"],
        name=f"{outcome['label']}-{choices['source']}-{size}-{choices['vlm']}-seed{seed}",
        status=outcome["status"],
        error=outcome["error"],
        log=Path(outcome["log"]),
        counts=_counts(trained) | _critic_quality(config, folders),
        costs=_costs(trained, folders),
        config=config,
        samples=lambda: build(source).samples(),
        train_folder=_path(folders, "train"),
        earlier_trainings={
            name.partition(":")[2]: Path(path) for name, path in folders.items() if name.startswith("train:")
        },
        respond_folder=_path(folders, "respond"),
        critique_folder=_path(folders, "critique"),
        evaluations=tuple(
            _evaluation(name, Path(path)) for name, path in folders.items() if name.startswith("evaluate:")
        ),
    )


def _counts(trained: dict[str, Any] | None) -> dict[str, Any]:
    """What went into training, from the train stage's manifest."""
    if trained is None:
        return {}
    return trained["counts"] | {
        name: trained[name] for name in ("steps", "supervised_tokens") if name in trained
    }


def _critic_quality(config: dict[str, Any], folders: dict[str, str]) -> dict[str, Any]:
    """How good a critic is that reads with a lexicon, where the source carries annotations (see Audit)."""
    critic = config.get("critic") or {}
    if "critique" not in folders or "lexicon" not in critic:
        return {}
    asked = (config["source"], critic["lexicon"], config["paths"]["runs"])
    return _audited(json.dumps(asked), folders["respond"], folders["critique"])


@cache  # cells of several seeds share one critic pass
def _audited(asked: str, respond: str, critique: str) -> dict[str, Any]:
    source, lexicon, runs = json.loads(asked)
    samples = build(source).samples()
    hashes = sample_digests(samples, Store(runs))
    items = read_items(samples, hashes, StageFolder(Path(respond)), StageFolder(Path(critique)))
    rows = [(i.sample, i.preference, i.correction) for i in items if i.preference and i.correction]
    sums = audit(rows, scenes_of(samples), Lexicon(lexicon))["all"]
    rates = {"precision": sums.precision, "recall": sums.recall, "invented": sums.invented}
    return {f"critic_{name}": rate for name, rate in rates.items()} if sums.found else {}


def _costs(trained: dict[str, Any] | None, folders: dict[str, str]) -> dict[str, Any]:
    """What training took, the seconds of all rounds together."""
    if trained is None:
        return {}
    names = ("models_held", "trainable_parameters", "peak_memory_bytes")
    rounds = [path for name, path in folders.items() if name.partition(":")[0] == "train"]
    seconds = sum((StageFolder(Path(path)).manifest() or {}).get("seconds", 0.0) for path in rounds)
    return {name: trained[name] for name in names if name in trained} | {"train_seconds": seconds}


def _path(folders: dict[str, str], name: str) -> Path | None:
    return Path(folders[name]) if name in folders else None


def _evaluation(name: str, folder: Path) -> Evaluation:
    stage = StageFolder(folder)
    manifest = stage.manifest()
    assert manifest is not None, f"{folder} has no manifest though its step ended"
    return Evaluation(
        name=name.partition(":")[2],
        protocol=manifest["protocol"],
        benchmark=build(stage.read_config()["nodes"]["benchmark"]),
        folder=folder,
        metrics=manifest["metrics"],
        complete=manifest["complete"],
    )
