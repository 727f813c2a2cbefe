"""The suites `paper` and `all`: their members, where those read, and that they share their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nsft_exp import config as configs
from nsft_exp.cell_run import build
from nsft_exp.plan import benchmark_members
from nsft_exp.store import Store


def suite_of(name: str, root: str = "/data") -> dict[str, Any]:
    words = [f"benchmark={name}", f"benchmark.root={root}"]
    return dict(configs.resolved(configs.compose_config(words))["benchmark"])


def test_a_member_has_one_key_alone_and_in_every_suite(tmp_path: Path) -> None:
    paper, everything = (benchmark_members(suite_of(name)) for name in ("paper", "all"))
    assert set(paper) < set(everything)
    assert {name: everything[name] for name in paper} == paper
    store = Store(tmp_path)
    keys = {store.key("evaluate", {"benchmark": node, "limit": None}) for node in everything.values()}
    assert len(keys) == len(everything)


def test_the_image_folder_of_mmbench_is_there_before_its_key_is_made(tmp_path: Path) -> None:
    (tmp_path / "mmbench").mkdir()
    (tmp_path / "mmbench" / "dev.tsv").write_text("index\tquestion\tA\tB\tanswer\n")
    node = benchmark_members(suite_of("paper", str(tmp_path)))["mmbench"]
    store, keys = Store(tmp_path / "runs"), []
    for picture in (None, Path(node["image_root"]) / "1.jpg"):
        if picture:
            picture.write_bytes(b"written by the first run")
        build(node).files()
        keys.append(store.key("evaluate", {"benchmark": node}))
    assert keys[0] == keys[1]


@pytest.mark.parametrize("suite", ["paper", "all"])
def test_the_suites_totals_are_of_their_own_members_metrics(suite: str) -> None:
    node = suite_of(suite)
    members = benchmark_members(node)
    for key in (key for weights in node["totals"].values() for key in weights):
        name, _, metric = key.partition("/")
        benchmark = build(members[name])
        benchmark._items = {}  # no files: the metrics that are there without them
        assert metric in {m.name for m in benchmark.describe()}, key


@pytest.mark.parametrize("suite", ["paper", "all"])
def test_a_suites_members_read_their_own_folders(suite: str) -> None:
    for name, node in benchmark_members(suite_of(suite)).items():
        assert (node["name"], node["root"]) == (name, f"/data/{name}")
