"""Rows of a study that are no product of single words."""

from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins


def jobs(arms: list[str] | None, *words: str) -> list[list[str]]:
    overrides = OverridesParser.create().parse_overrides(list(words))
    sweeper = Plugins.instance().class_name_to_class["hydra_plugins.nsft_study.StudySweeper"]
    (batch,) = sweeper(None, {}, arms).split_arguments(overrides, None)
    return batch


def test_without_arms_a_sweep_is_the_product_of_its_words() -> None:
    assert jobs(None, "method=a,b", "seed=0,1") == [
        ["method=a", "seed=0"],
        ["method=a", "seed=1"],
        ["method=b", "seed=0"],
        ["method=b", "seed=1"],
    ]


def test_every_arm_is_run_with_every_combination_of_the_other_words() -> None:
    assert jobs(["method=a", "method=b variant=c"], "seed=0,1") == [
        ["method=a", "seed=0"],
        ["method=a", "seed=1"],
        ["method=b", "variant=c", "seed=0"],
        ["method=b", "variant=c", "seed=1"],
    ]


def test_a_method_on_the_command_line_replaces_the_arms() -> None:
    assert jobs(["method=a", "method=b"], "method=d", "seed=0") == [["method=d", "seed=0"]]
