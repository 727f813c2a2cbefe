"""Composing configs: where they are, what may go together, and help for a word that is not there."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nsft_exp.keys import leaves
from nsft_exp.records import UserError

PACKAGE = Path(__file__).parent
OPTIONAL = ("preset",)
"""The groups that need no option."""


def folder(name: str) -> Path:
    """The folder `conf` or `experiments`: inside an installed package, beside `src` in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parents[1] / name


def register_resolvers() -> None:
    """Let configs name files that the package ships: `${package:toy/base}`."""
    OmegaConf.register_new_resolver("package", lambda path: str(PACKAGE / path), replace=True)


def resolved(config: DictConfig) -> dict[str, Any]:
    """Return the config as plain values, every interpolation replaced.

    Raises UserError for a value that is mandatory (`???`) and missing.
    """
    ours = with_excluded_benchmarks(without_hydra(config))
    try:
        plain = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        missing = missing_keys(ours)
        if not missing:
            raise
        raise UserError(
            f"{missing[0]} has no value; give it on the command line: {missing[0]}=..."
        ) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def missing_keys(config: DictConfig) -> list[str]:
    """The dotted names of the mandatory values that are missing, in order. (OmegaConf's own stops at an
    interpolation of one.)"""
    return [name for name, value in leaves(OmegaConf.to_container(config)) if value == "???"]


def with_excluded_benchmarks(config: DictConfig) -> DictConfig:
    """Return the config with the benchmarks themselves where `source.exclude` names some of the cell's.

    Raises UserError for a name that is none of them.
    """
    named = OmegaConf.select(config, "source.exclude")
    names = [named] if isinstance(named, str) else named
    if not names or not all(isinstance(name, str) for name in names):
        return config
    node = config.benchmark
    members = [name for name in node if OmegaConf.is_dict(node[name]) and "_target_" in node[name]]
    places = {str(name): f"benchmark.{name}" for name in members}
    if "_target_" in node:
        places = {str(node.get("name")): "benchmark"}
    unknown = [name for name in names if name not in places]
    if unknown:
        raise UserError(
            f"source.exclude={unknown[0]}: is none of the cell's benchmarks ({', '.join(places)}); "
            "choose it with benchmark=..., or exclude one of these"
        )
    changed = config.copy()
    OmegaConf.update(changed, "source.exclude", [f"${{{places[name]}}}" for name in names], force_add=True)
    return changed


def without_hydra(config: DictConfig) -> DictConfig:
    """Return the config without its `hydra` node, whose values exist in a running job only."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def current_choices() -> dict[str, str]:
    """The chosen option of every group in the running Hydra job; raises UserError where one is missing."""
    check_choices(HydraConfig.get().runtime.choices)
    return choices_of(HydraConfig.get())


def choices_of(hydra_node: Any) -> dict[str, str]:
    """The chosen option of every group, from the `hydra` node of a job's config."""
    choices = hydra_node.runtime.choices.items()
    return {str(group): str(option) for group, option in choices if "/" not in group}


def check_choices(choices: Mapping[str, Any]) -> None:
    """Refuse a composed config in which a group that needs an option has none."""
    for group, options in all_options().items():
        if group not in OPTIONAL and not choices.get(group):
            raise UserError(f"{group} has no option; {group} can be: {', '.join(options)}")


def quoted(text: str) -> str:
    """Return a text as a value on Hydra's command line, whatever characters are in it."""
    escaped = text.replace("'", r"\'")
    return f"'{escaped}'"


def check_words(words: Iterable[str]) -> None:
    """Refuse words that take a group's option away: `group=null` (a ValueError in Hydra) and `~group`."""
    known = all_options()
    for word in words:
        group, _, option = word.lstrip("+~").partition("=")
        is_null = re.search(r"\bnull\b", option, re.IGNORECASE)
        if group in known and (is_null or (word.startswith("~") and group not in OPTIONAL)):
            instead = "leave the word out for none; " if group in OPTIONAL else ""
            raise UserError(f"{word}: {instead}{group} can be: {', '.join(known[group])}")


def all_options() -> dict[str, list[str]]:
    """The options of every group, as `conf/` has them."""
    folders = [path for path in sorted(folder("conf").iterdir()) if path.is_dir() and path.name != "hydra"]
    return {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in folders}


def compose_config(overrides: list[str], name: str = "config") -> DictConfig:
    """Compose a config outside a Hydra job (for the verbs), with its `hydra` node.

    Raises UserError with the nearest names for a key or option that does not exist, and for a group without.
    """
    register_resolvers()
    check_words(overrides)
    GlobalHydra.instance().clear()
    conf, experiments = folder("conf").resolve(), folder("experiments").resolve()
    first, second = (conf, experiments) if (conf / f"{name}.yaml").exists() else (experiments, conf)
    with initialize_config_dir(str(first), version_base="1.3"):
        try:
            places = f"hydra.searchpath=['file://{second}']"
            config = compose(name, overrides=[places, *overrides], return_hydra_config=True)
        except HydraException as error:
            raise explain(error, overrides) from error
    check_choices(config.hydra.runtime.choices)
    return config


def check_belonging(config: dict[str, Any], choices: dict[str, str]) -> None:
    """Refuse a pairing, critic or codebook that the method has no use for, and a variant of another method.

    YAMLs of methods and variants name what belongs to them under `belongs`. Raises UserError with the words
    that do.
    """
    for group, options in config.get("belongs", {}).items():
        if choices[group] in options:
            continue
        whose = f"variant={choices['variant']}" if group == "method" else f"method={choices['method']}"
        raise UserError(
            f"{whose} does not go with {group}={choices[group]}; {group} can be: {', '.join(options)}"
        )


def explain(error: Exception, overrides: Iterable[str]) -> UserError:
    """Turn Hydra's composition error into one line with the nearest names."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if error.options is None:  # --config-name, for which Hydra lists the places alone
            what = f"there is no config {error.missing_cfg_file}"
            return UserError(f"{what}; {nearest(option, _configs_in(str(error)))}")
        return UserError(f"{group}={option}: there is no such option; {nearest(option, error.options)}")
    key = _refused_key(error, overrides)
    if key is None:
        return UserError(" ".join(str(error).split()))
    known = _known_keys()
    if key in known:
        return UserError(
            f"{key}: the options chosen here have no such key, the default ones do; leave it out"
        )
    return UserError(f"{key}: there is no such key; {nearest(key, known)}")


def nearest(word: str, options: Iterable[str]) -> str:
    """`did you mean ...` for a word close to some options, else the options."""
    options = sorted(set(options))
    close = difflib.get_close_matches(word, options, n=3, cutoff=0.6)
    if not close:
        tail = {option.rpartition(".")[2]: option for option in options}
        close = [tail[t] for t in difflib.get_close_matches(word.rpartition(".")[2], tail, n=3, cutoff=0.6)]
    return f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(options[:30])}"


def _configs_in(message: str) -> list[str]:
    """The configs and studies in the folders of the search path that Hydra's message ends with."""
    places = re.findall(r"path=file://(.+)$", message, re.MULTILINE)
    return [file.stem for place in places for file in Path(place).glob("*.yaml")]


def _refused_key(error: Exception, overrides: Iterable[str]) -> str | None:
    if not isinstance(error, ConfigCompositionException):
        return None
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if f"'{key}'" in str(error):
            return key
    return None


def _known_keys() -> list[str]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder("conf").resolve()), version_base="1.3"):
        config = compose("config", return_hydra_config=True)
    groups = [group for group in config.hydra.runtime.choices if "/" not in group]
    with_parents: set[str] = set(groups)
    for name, _ in leaves(OmegaConf.to_container(config, resolve=False)):
        if not name.startswith("hydra."):
            with_parents.add(name)
    return sorted(with_parents)


def full_errors() -> None:
    """Have Hydra raise its errors to us instead of printing them and exiting."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
