"""The shipped toy base is what its card says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open

from nsft_exp.toy.card import card_scores, read_card
from nsft_exp.toy.files import version
from nsft_exp.toy_base import BASE

Run = Callable[..., int]


def test_it_is_small_float32_and_has_the_hubs_names() -> None:
    weights = BASE / "model.safetensors"
    assert weights.stat().st_size < 8_000_000
    with safe_open(weights, "pt") as file:
        names = set(file.keys())
        count = sum(file.get_slice(name).get_shape()[0] * _rest(file, name) for name in names)
        assert {file.get_slice(name).get_dtype() for name in names} == {"F32"}
    assert any(name.startswith("vision_tower.vision_model.embeddings") for name in names)
    assert "language_model.lm_head.weight" in names or "lm_head.weight" in names
    assert count == read_card(BASE)["parameters"] <= 2_000_000


def _rest(file: safe_open, name: str) -> int:
    size = 1
    for length in file.get_slice(name).get_shape()[1:]:
        size *= length
    return size


def test_its_world_is_the_one_that_the_code_draws() -> None:
    assert read_card(BASE)["world"] == version()


def test_its_scores_are_within_two_points_of_the_card(nsft: Run, tmp_path: Path) -> None:
    about = re.search(r"(\d+) scenes of the (\w+) split, seed (\d+)", (BASE / "README.md").read_text("utf-8"))
    assert about
    scenes, split, seed = about.groups()
    words = (f"benchmark.split={split}", f"benchmark.scenes={scenes}", f"benchmark.seed={seed}")
    assert nsft("method=base", "trainer.threads=1", *words) == 0
    found = {}
    for folder in (tmp_path / "runs" / "evaluate").iterdir():
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        found |= {
            f"{manifest['benchmark']}/{name}": score
            for name, score in manifest["metrics"].items()
            if score is not None
        }
    card = card_scores(BASE)
    assert set(card) == set(found)
    tolerance = {name: 0.02 if name.endswith("_auc") else 2.0 for name in card}
    assert not {n: (card[n], found[n]) for n in card if abs(card[n] - found[n]) > tolerance[n]}
