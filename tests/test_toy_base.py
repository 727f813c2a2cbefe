"""The shipped toy base is what its card says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from conftest import SMALL
from nsft_exp import toy_base
from nsft_exp.cell_run import build
from nsft_exp.config import compose_config, resolved
from nsft_exp.critic.contradiction import contradictions
from nsft_exp.critic.lexicon import Lexicon
from nsft_exp.critic.reading import Reader
from nsft_exp.critic.truth import truth_of
from nsft_exp.records import Sample
from nsft_exp.toy.card import card_scores, read_card
from nsft_exp.toy.files import version
from nsft_exp.toy.text import capital
from nsft_exp.toy.world import Scene, lexicon, make_scene, missing
from nsft_exp.toy_base import BASE
from nsft_exp.vlm.hf import HFModel

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


def test_its_chat_template_is_the_one_that_saving_writes(tmp_path: Path) -> None:
    assert HFModel(str(BASE), device="cpu").load().save_processor(tmp_path), "it must be exact"
    saved, shipped = (folder / "chat_template.jinja" for folder in (tmp_path, BASE))
    assert saved.read_text("utf-8") == shipped.read_text("utf-8")


def _rest(file: safe_open, name: str) -> int:
    size = 1
    for length in file.get_slice(name).get_shape()[1:]:
        size *= length
    return size


def test_its_tokenizer_has_one_piece_for_a_word_that_answers_a_lookup() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    columns = {place.split()[-1] for place in lexicon()["places"]}
    answers = [*lexicon()["colors"], *lexicon()["sizes"], *columns]
    assert {len(tokenizer.tokenize(capital(word))) for word in answers} == {1}


def test_its_world_is_the_one_that_the_code_draws() -> None:
    assert read_card(BASE)["world"] == version()


def test_by_its_card_it_sees_well_and_is_tempted() -> None:
    card = card_scores(BASE)
    kinds = ("color", "size", "position", "relation", "count", "total", "naming", "scene")
    assert min(card[f"vqa/detailed/{kind}"] for kind in kinds) > 90
    assert card["pope/adversarial_accuracy"] < card["pope/random_accuracy"] - 10
    assert card["chair/recall"] > 90


def test_asked_claim_by_claim_it_knows_the_better_of_two_answers(toy_data: Path) -> None:
    words = ["method=sima", "vlm=toy", "source.size=60", f"paths.data={toy_data}", *SMALL]
    config = resolved(compose_config(words))
    samples = {sample.id: sample for sample in build(config["source"]).samples()}
    vlm = HFModel(str(BASE), device="cpu").load()
    pairs = [p for p in build(config["pairing"]).pairs(samples.values(), vlm) if p.status == "ok"]
    lexicon = Lexicon(config["pairing"]["lexicon"])
    reader = Reader(lexicon)

    def errors(sample: Sample, answer: str) -> int:
        truth = truth_of(reader.read(sample.question, sample.answer), lexicon, closed_world=True)
        return len(contradictions(truth, reader.read(sample.question, answer).claims))

    better = [errors(samples[p.id], p.rejected) - errors(samples[p.id], p.chosen) for p in pairs]
    told = [difference for difference in better if difference]
    assert len(told) >= 5
    assert sum(difference > 0 for difference in told) >= 0.8 * len(told)


@pytest.mark.slow
def test_it_is_made_in_one_command_and_works_where_it_is_put(
    nsft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toy_base, "install", partial(toy_base.install, folder=tmp_path / "base"))
    words = ("toy-base", "tower.steps=4", "source.size=64", "limit=4", "benchmark.scenes=12")
    assert nsft(*words) != 0
    assert re.search(r"sees badly \({'vqa/detailed/color': .*take another seed", capfd.readouterr().err)
    assert not (tmp_path / "base").exists()
    monkeypatch.setattr(toy_base, "SEES", {})
    assert nsft(*words) == 0
    card = (tmp_path / "base" / "README.md").read_text("utf-8")
    assert "| tower: steps | 4 |" in card
    assert read_card(tmp_path / "base")["parameters"] == read_card(BASE)["parameters"]
    assert HFModel(str(tmp_path / "base"), device="cpu").load().model.dtype == torch.float32


@pytest.mark.slow
def test_its_scores_are_within_two_points_of_the_card_and_it_names_what_is_usual(
    nsft: Run, tmp_path: Path
) -> None:
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
    scenes_of_split = [make_scene(split, int(seed), number) for number in range(int(scenes))]
    assert named_typical(tmp_path / "runs" / "evaluate", scenes_of_split) >= 0.25


def named_typical(evaluations: Path, scenes: list[Scene]) -> float:
    """How many greedy descriptions of scenes that lack a typical object name one."""
    (folder,) = evaluations.glob("chair-*")
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text("utf-8").splitlines()]
    named = []
    for scene, row in zip(scenes, rows, strict=True):
        words = set(re.findall(r"[a-z]+", row["answer"].lower()))
        if absent := missing(scene):
            named.append(any(name in words for name in absent))
    return sum(named) / len(named)
