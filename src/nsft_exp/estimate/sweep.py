"""The cells of a command line, composed as `nsft` would compose them, without running one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from hydra.utils import get_object
from omegaconf import DictConfig

from nsft_exp import config as configs
from nsft_exp.plan import Step, make_plan, row_label
from nsft_exp.records import UserError


@dataclass(frozen=True)
class Cell:
    """One cell that would run: its label, its resolved config and its steps."""

    label: str
    config: dict[str, Any]
    plan: list[Step]


def cells_of(arguments: list[str]) -> list[Cell]:
    """Return the cells that `nsft` with these arguments would run, in order.

    Raises UserError for a config that does not compose, and for a cell that would be refused.
    """
    configs.register_resolvers()
    configs.full_errors()
    configs.check_words(arguments)
    words = get_args_parser().parse_args(arguments)
    GlobalHydra.instance().clear()
    try:
        return [_cell(job) for job in _jobs(_hydra(words.config_dir), words)]
    except HydraException as error:
        raise configs.explain(error, [a for a in arguments if "=" in a]) from error
    finally:
        GlobalHydra.instance().clear()


def _hydra(config_dir: str | None) -> Hydra:
    search_path = create_config_search_path(f"file://{configs.folder('conf').resolve()}")
    if config_dir:
        place = f"file://{os.path.abspath(config_dir)}"
        search_path.prepend("command-line", place, SearchPathQuery(provider="schema"))
    return Hydra.create_main_hydra2("nsft", search_path)


def _jobs(hydra: Hydra, words: Any) -> list[DictConfig]:
    """The config of each job, with its `hydra` node."""
    name, overrides = words.config_name or "config", words.overrides
    many = words.multirun or hydra.get_mode(name, overrides) == RunMode.MULTIRUN
    mode = RunMode.MULTIRUN if many else RunMode.RUN
    config = hydra.compose_config(name, overrides, mode, with_log_configuration=False)
    if not many:
        return [config]
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
    sweeper: Any = Plugins.instance().instantiate_sweeper(
        config=config, hydra_context=context, task_function=lambda _: None
    )
    given = [*sweeper._parse_config(), *map(str, config.hydra.overrides.task)]
    parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(given)
    jobs = [job for batch in sweeper.split_arguments(parsed, None) for job in batch]
    return [hydra.config_loader.load_sweep_config(config, job) for job in jobs]


def _cell(job: DictConfig) -> Cell:
    """Plan one job. Raises UserError, with the cell's name before it, where the cell would be refused."""
    HydraConfig.instance().set_config(job)
    choices = configs.current_choices()
    try:
        plain = configs.resolved(job)
        configs.check_belonging(plain, choices)
        plan = make_plan(plain, choices, get_object(plain["method"]["_target_"]).consumes)
    except UserError as error:
        raise UserError(f"cell {row_label(choices)} seed {job.get('seed')}: {error}") from error
    return Cell(row_label(choices), plain, plan)
