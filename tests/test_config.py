"""Every YAML is a test case: it composes, and its keys are arguments of the constructor that it names."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from nsft_exp import config as configs
from nsft_exp.__main__ import VERBS, report
from nsft_exp.__main__ import run as nsft
from nsft_exp.keys import is_ignored, leaves
from nsft_exp.plan import make_plan
from nsft_exp.records import UserError
from nsft_exp.store import Store

CONF = configs.folder("conf")
GROUPS = (
    "source",
    "vlm",
    "pairing",
    "critic",
    "codebook",
    "method",
    "variant",
    "recipe",
    "tuning",
    "benchmark",
)
GROUPS += ("trainer", "logger", "preset")
OPTIONS = [(g, f.stem) for g in GROUPS for f in sorted((CONF / g).glob("*.yaml"))]
STUDIES = sorted(f.stem for f in configs.folder("experiments").glob("*.yaml"))


def compose(*overrides: str, name: str = "config") -> tuple[dict[str, Any], dict[str, str]]:
    """The plain config (mandatory values filled in) and the choices."""
    config = configs.compose_config(list(overrides), name)
    choices = {g: str(o) for g, o in config.hydra.runtime.choices.items() if "/" not in g}
    ours = configs.without_hydra(config)
    for key in configs.missing_keys(ours):
        OmegaConf.update(ours, key, "given")
    return configs.resolved(ours), choices


def nodes_with_target(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, list):
        return [found for child in node for found in nodes_with_target(child)]
    if not isinstance(node, dict):
        return []
    below = [found for child in node.values() for found in nodes_with_target(child)]
    return [node, *below] if "_target_" in node else below


def test_every_group_has_options() -> None:
    assert {g for g, _ in OPTIONS} == set(GROUPS)


@cache
def composed_together(number: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The option of this number of every group that has one; a variant goes with its own method only."""
    options = [(g, [o for group, o in OPTIONS if group == g]) for g in GROUPS if g != "variant"]
    return compose(*(f"{group}={names[number]}" for group, names in options if number < len(names)))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_an_option_composes_and_its_keys_bind_to_its_constructor(group: str, option: str) -> None:
    number = [o for g, o in OPTIONS if g == group].index(option)
    plain, choices = compose(f"variant={option}") if group == "variant" else composed_together(number)
    assert choices[group] == option
    assert_keys_bind(plain)


def assert_keys_bind(plain: dict[str, Any]) -> None:
    for node in nodes_with_target(plain):
        target = get_object(node["_target_"])
        arguments = {k: v for k, v in node.items() if not k.startswith("_")}
        inspect.signature(target).bind(**arguments)


@pytest.mark.slow
def test_every_option_composes_with_the_defaults_alone() -> None:
    for group, option in OPTIONS:
        plain, choices = compose(f"{group}={option}")
        assert choices[group] == option
        assert_keys_bind(plain)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_package_directives_stand_in_the_first_line(group: str, option: str) -> None:
    lines = (CONF / group / f"{option}.yaml").read_text("utf-8").splitlines()
    assert not any("@package" in line for line in lines[1:])


def rows_of(study: str) -> list[str]:
    """The rows of a study, their interpolations replaced."""
    config = configs.compose_config([], study)
    assert config.study.name == study
    return list(config.hydra.sweeper.arms or [""])


def assert_row_goes_together(row: str, study: str) -> None:
    plain, choices = compose(*row.split(), name=study)
    configs.check_belonging(plain, choices)
    assert make_plan(plain, choices, get_object(plain["method"]["_target_"]).consumes)


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_composes_with_its_last_row(study: str) -> None:
    assert_row_goes_together(rows_of(study)[-1], study)


@pytest.mark.slow
def test_every_row_of_every_study_composes_and_goes_together() -> None:
    for study in STUDIES:
        for row in rows_of(study):
            assert_row_goes_together(row, study)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["method=cont_sft", "critic=rule"],
            r"method=cont_sft does not go with critic=rule; critic can be: none",
        ),
        (
            ["method=gt_dpo", "pairing=none"],
            r"method=gt_dpo does not go with pairing=none; pairing can be: gt",
        ),
        (["method=gt_dpo", "variant=no_codebook"], r"variant=no_codebook does not go with method=gt_dpo"),
        (["method=nsft", "critic=none"], r"method=nsft does not go with critic=none"),
    ],
)
def test_what_does_not_belong_to_a_method_is_refused(words: list[str], message: str) -> None:
    plain, choices = compose(*words)
    with pytest.raises(UserError, match=message):
        configs.check_belonging(plain, choices)


def test_a_key_of_an_option_that_is_not_chosen_is_told_from_a_typo() -> None:
    with pytest.raises(
        UserError, match=r"source\.files_from\.scenes: the options chosen here have no such key"
    ):
        configs.compose_config(["source=llava150k", "source.files_from.scenes=3"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("method=nsfft", r"method=nsfft: there is no such option; did you mean nsft"),
        ("metod=nsft", r"metod: there is no such key; did you mean method"),
        (
            "recipe.learning_rat=1",
            r"recipe.learning_rat: there is no such key; did you mean recipe.learning_rate",
        ),
        ("source.sise=3", r"source.sise: there is no such key; did you mean source.size"),
    ],
)
def test_a_typo_is_refused_with_the_nearest_names(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        configs.compose_config([word])


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("demoo", "there is no config demoo; did you mean demo or demo_more?"),
        ("experiments/demo", "there is no config experiments/demo; did you mean demo or demo_more?"),
        ("x", f"there is no config x; there are: {', '.join(sorted(['config', *STUDIES]))}"),
    ],
)
def test_a_study_that_does_not_exist_is_refused_with_the_nearest_names(
    name: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)  # Hydra is given others
    for run, words in ((nsft, ["-m", "--config-name", name]), (report, [f"--config-name={name}"])):
        with pytest.raises(UserError) as error:
            run(words)
        assert str(error.value) == line


def test_the_studies_of_another_folder_are_named_and_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    (tmp_path / "my demo").mkdir()
    (tmp_path / "my demo" / "mine.yaml").write_text("defaults: [config]\n")
    with pytest.raises(UserError, match=r"^there is no config demo; there are: config, mine$"):
        nsft(["--config-dir", str(tmp_path / "my demo"), "--config-name", "demo"])


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "preset"])
def test_a_group_without_an_option_is_refused_with_its_options(group: str) -> None:
    options = ", ".join(option for g, option in OPTIONS if g == group)
    for word in (f"{group}=null", f"{group}=toy,null", f"~{group}"):
        with pytest.raises(UserError, match=re.escape(f"{word}: {group} can be: {options}") + "$"):
            configs.compose_config([word])


def test_a_study_that_takes_an_option_away_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare.yaml").write_text(
        "# @package _global_\ndefaults:\n  - config\n  - override /benchmark: null\n"
    )
    original = configs.folder
    monkeypatch.setattr(configs, "folder", lambda name: tmp_path if name == "experiments" else original(name))
    with pytest.raises(UserError, match=r"benchmark has no option; benchmark can be: all, chair, "):
        configs.compose_config([], "bare")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["benchmark=null"], "benchmark=null: benchmark can be: all, chair, "),
        (["-m", "benchmark=toy,null"], "benchmark=toy,null: benchmark can be: all, chair, "),
        (["~method"], "~method: method can be: base, "),
        (["check", "source=null"], "source=null: source can be: llava150k, "),
        (["preset=null"], "preset=null: leave the word out for none; preset can be: debug, overfit"),
    ],
)
def test_the_command_says_so_in_one_line(
    words: list[str], message: str, nsft: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert nsft(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"nsft: {message}")


def keys_of_cell(plain: dict[str, Any], choices: dict[str, str], store: Store) -> list[str]:
    consumes = get_object(plain["method"]["_target_"]).consumes
    return [store.key(step.kind, step.nodes) for step in make_plan(plain, choices, consumes)]


def moved_leaf(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return "other" if value is None or isinstance(value, str) else ["other"]


def with_leaf(node: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    if isinstance(node, list):
        return [with_leaf(c, path[1:], value) if str(i) == path[0] else c for i, c in enumerate(node)]
    return {k: with_leaf(c, path[1:], value) if k == path[0] else c for k, c in node.items()}


def test_every_config_leaf_moves_a_key_unless_it_is_on_the_short_list(tmp_path: Path) -> None:
    plain, choices = compose()
    store = Store(tmp_path)
    before = keys_of_cell(plain, choices, store)
    # what other leaves are made from (their values are replaced already), and what is checked, not run
    silent = ("data_seed", "self_critic", "sentence_tree.", "image_text_scorer", "server.", "belongs.")
    silent += ("benchmark.split", "benchmark.seed", "benchmark.scenes")
    for name, value in leaves(plain):
        if value == {} or name.endswith("_target_") or name.startswith(silent) or Path(str(value)).exists():
            continue  # a place's content decides (tests/test_store.py)
        after = keys_of_cell(with_leaf(plain, name.split("."), moved_leaf(value)), choices, store)
        assert (after == before) == is_ignored(name), (
            f"{name}: the key {'stays' if after == before else 'moves'}"
        )


@pytest.mark.parametrize("word", ["benchmark.split=validation", "benchmark.seed=7", "benchmark.scenes=30"])
def test_another_test_set_moves_the_keys_of_evaluations(word: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = (keys_of_cell(*compose(*words), store) for words in ((), (word,)))
    assert [a == b for a, b in zip(first, second, strict=True)].count(False) == 4


def test_seed_moves_training_only_and_data_seed_moves_all() -> None:
    fixed = [compose(f"seed={seed}")[0] for seed in (0, 1)]
    assert fixed[0]["source"]["seed"] == fixed[1]["source"]["seed"] == 0
    moved = compose("seed=3", "data_seed=${seed}")[0]
    assert moved["source"]["seed"] == moved["pairing"]["seed"] == 3


@pytest.mark.parametrize("words", [["--help"], ["method=nsft", "--cfg", "job"]])
def test_help_and_config_answer_at_once_without_torch(words: list[str], tmp_path: Path) -> None:
    code = """
import sys
from nsft_exp.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
assert "torch" not in sys.modules, "torch was imported"
"""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nsft" in done.stdout
    assert time.perf_counter() - started < 10  # under 2 seconds on an idle machine
    assert not any(tmp_path.iterdir())


def test_the_help_names_every_verb(capsys: pytest.CaptureFixture[str], nsft: Callable[..., int]) -> None:
    nsft("--help")
    (line,) = [row for row in capsys.readouterr().out.splitlines() if row.lstrip().startswith("Verbs")]
    verbs = line.partition("nsft ")[2].partition("  (")[0]
    assert sorted(verbs.split(" | ")) == sorted(VERBS)
