"""The command line: `nsft` composes and runs a cell or a sweep; `nsft <verb>` does one thing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from nsft_exp import config as configs
from nsft_exp.outcomes import CONFIGS, OUTCOMES
from nsft_exp.records import UserError


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exits with 0 (done), 1 (a cell failed) or 2 (refused: one line says what to mend)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and arguments[0] in VERBS:
            sys.exit(VERBS[arguments[0]](arguments[1:]))
        sys.exit(run(arguments))
    except UserError as error:
        print(f"nsft: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("nsft: interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)


def run(arguments: list[str]) -> int:
    """Run one cell, or a multirun and its report. Returns the exit code."""
    outcomes, config = run_jobs(arguments)
    return conclude(outcomes, config, multirun=bool(OUTCOMES)) if outcomes else 0


def run_jobs(arguments: list[str]) -> tuple[list[dict[str, Any]], DictConfig]:
    """Have Hydra compose and run the jobs; return their outcomes and the last one's config.

    Without a job (`--help`, `--cfg`) there are no outcomes. Raises UserError for a config that does not
    compose and for a folder that cannot be written.
    """
    configs.register_resolvers()
    configs.full_errors()
    configs.check_words(arguments)
    OUTCOMES.clear()
    outcomes: list[dict[str, Any]] = []
    composed = DictConfig({})
    sys.argv = ["nsft", *with_experiments(arguments)]

    def job(config: DictConfig) -> dict[str, Any]:
        from nsft_exp.cell import run_cell

        nonlocal composed
        composed = config
        outcomes.append(run_cell(config))
        return outcomes[-1]

    try:
        hydra.main(str(configs.folder("conf").resolve()), "config", "1.3")(job)()
    except HydraException as error:
        raise configs.explain(error, [a for a in arguments if "=" in a]) from error
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{error.filename}: cannot write there ({reason}); set paths.runs to a writable folder"
        ) from error
    return (OUTCOMES, CONFIGS[-1]) if OUTCOMES else (outcomes, composed)


def with_experiments(arguments: list[str]) -> list[str]:
    """Let `--config-name demo` find a study of `experiments/` without `--config-dir`."""
    if any(a in ("--config-name", "-cn") or a.startswith("--config-name=") for a in arguments) and not any(
        a in ("--config-dir", "-cd") or a.startswith("--config-dir=") for a in arguments
    ):
        return ["--config-dir", str(configs.folder("experiments").resolve()), *arguments]
    return arguments


def conclude(outcomes: list[dict[str, Any]], config: DictConfig, multirun: bool) -> int:
    """Write a sweep's outcomes and report; name what failed. Returns the exit code."""
    from nsft_exp.study import save_outcomes, show, write_study_report

    if multirun:
        save_outcomes(outcomes, config)
        write_study_report(outcomes, config)
    else:
        show(outcomes, config)
    failed = [o for o in outcomes if o["status"] != "ok"]
    for outcome in failed:
        cell = f"{outcome['label']} seed {outcome.get('seed')}"
        print(f"nsft: {cell}: {outcome['error']} (log: {outcome['log']})", file=sys.stderr)
    if not failed:
        return 0
    return 2 if not multirun and failed[0].get("refused") else 1


def report(arguments: list[str]) -> int:
    """`nsft report`: write the report of a finished study again, from its stored outcomes."""
    from nsft_exp.study import load_outcomes, write_study_report

    name, overrides = split_config_name(arguments)
    config = configs.compose_config(overrides, name)
    write_study_report(load_outcomes(config), config, always=True)
    return 0


def split_config_name(arguments: list[str]) -> tuple[str, list[str]]:
    """Return (config name, overrides) of a verb's arguments."""
    rest = list(arguments)
    for flag in ("--config-name", "-cn"):
        if flag in rest:
            at = rest.index(flag)
            name = rest[at + 1] if at + 1 < len(rest) else ""
            return name, rest[:at] + rest[at + 2 :]
    named = next((a for a in rest if a.startswith("--config-name=")), None)
    if named:
        rest.remove(named)
        return named.partition("=")[2], rest
    return "config", rest


def toy_base(arguments: list[str]) -> int:
    """`nsft toy-base`: train the toy base VLM from scratch and put it where `vlm=toy` finds it."""
    from nsft_exp.toy_base import install, prepare, trained

    config = configs.resolved(configs.compose_config(arguments, "toy_base_lookups"))
    prepare(config["vlm"], config["tower"])
    first, composed = run_jobs(["--config-name", "toy_base_lookups", *arguments])
    code = conclude(first, composed, multirun=False)
    if code:
        return code
    path = configs.quoted(str(trained(first[0])))
    last, composed = run_jobs(["--config-name", "toy_base", f"vlm.path={path}", *arguments])
    code = conclude(last, composed, multirun=False)
    if code == 0:
        print(f"toy base: {install(first[0], last[0])}")
    return code


def export(arguments: list[str]) -> int:
    """`nsft export`: write what a cell trains on as a data set for other trainers."""
    from nsft_exp.export import data

    return data.export(arguments)


def export_model(arguments: list[str]) -> int:
    """`nsft export-model`: write a finished cell's model as a Hugging Face folder, and prove it."""
    from nsft_exp.export import model

    return model.export_model(arguments)


def check(arguments: list[str]) -> int:
    """`nsft check`: look at a source or a VLM before hours of work depend on it."""
    from nsft_exp import check as checks

    return checks.check(arguments)


def score(arguments: list[str]) -> int:
    """`nsft score`: score a file of answers made elsewhere by a benchmark's official rule."""
    from nsft_exp import score as scores

    return scores.score(arguments)


def evaluate(arguments: list[str]) -> int:
    """`nsft evaluate`: a model, whoever trained it, on the benchmarks."""
    from nsft_exp import evaluate as evaluation

    return evaluation.evaluate(arguments, run_jobs, conclude)


def compare(arguments: list[str]) -> int:
    """`nsft compare`: how two models differ, from their per-item scores."""
    from nsft_exp import compare as comparison

    return comparison.compare(arguments)


def estimate(arguments: list[str]) -> int:
    """`nsft estimate`: what a run or sweep will do and cost, before it starts."""
    from nsft_exp.estimate import verb

    return verb.estimate(arguments, with_experiments)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "report": report,
    "toy-base": toy_base,
    "check": check,
    "export": export,
    "export-model": export_model,
    "score": score,
    "evaluate": evaluate,
    "compare": compare,
    "estimate": estimate,
}

if __name__ == "__main__":
    main()
