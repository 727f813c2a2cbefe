"""The toy base's vision tower: what it is asked, what its drawings tell, what a kill changes (nothing)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from nsft_exp.records import UserError
from nsft_exp.toy import tower
from nsft_exp.toy.patch_words import PatchWords
from nsft_exp.toy.plain import random_scene
from nsft_exp.toy.world import LEXICON, Scene, Sign, Thing
from nsft_exp.vlm.scratch import ScratchLlava

WORDS = yaml.safe_load(LEXICON.read_text("utf-8"))
SIZES: dict[str, Any] = {"image_size": 64, "patch_size": 16, "vision_width": 32, "vision_mlp": 32}
RECIPE = tower.TowerRecipe(steps=6, batch_size=2)


def train(folder: Path, recipe: tower.TowerRecipe = RECIPE) -> Path:
    tower.train_tower(folder, *ScratchLlava(**SIZES).base(torch.device("cpu"), None), recipe)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("tower") / "tower")


def test_the_labels_are_those_of_the_scene() -> None:
    categories = list(WORDS["categories"])
    thing = Thing(categories[2], WORDS["colors"][1], "large", cell=4, view="pale")
    scene = Scene(WORDS["scenes"][0], (thing,), Sign(WORDS["glyphs"][3], 1, False), 0)
    blank = [0, tower.NOTHING, tower.NOTHING, tower.NOTHING]
    expected = [blank] * 6
    expected[1] = [1, tower.NOTHING, tower.NOTHING, 3]  # a sign, which has no color and no view here
    expected[4] = [2 + 2, 1, 2, tower.NOTHING]  # after `nothing` and `sign`; clear, small, pale: number 2
    assert tower.cell_labels(scene) == expected


def test_a_patch_is_asked_about_the_cell_under_its_centre() -> None:
    upper = [0, 0, 0, 1, 1, 2, 2, 2]  # centres 4, 12, ... 60 of 64 pixels; columns end at 21.3 and 42.7
    lower = [3 + cell for cell in upper]
    assert tower.patch_cells(8).tolist() == upper * 4 + lower * 4  # the rows meet at pixel 32


def test_every_object_is_as_likely_as_any_other_whatever_the_place() -> None:
    rng = Random(0)
    scenes = [random_scene(rng) for _ in range(4000)]
    seen = Counter((scene.kind, thing.category) for scene in scenes for thing in scene.things)
    pairs = [(kind, category) for kind in WORDS["scenes"] for category in WORDS["categories"]]
    expected = sum(seen.values()) / len(pairs)
    chi_square = sum((seen[pair] - expected) ** 2 / expected for pair in pairs)
    freedom = len(pairs) - 1
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5
    kinds = Counter(scene.kind for scene in scenes)
    assert all(abs(n - 4000 / 8) < 4 * (4000 * 1 / 8 * 7 / 8) ** 0.5 for n in kinds.values())


@pytest.mark.parametrize(("step", "saved"), [(1, 0), (5, 4)])
def test_a_killed_training_ends_as_one_that_was_not(
    step: int, saved: int, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawings, asked = tower.Drawings.__getitem__, []

    def counted(self: tower.Drawings, number: int) -> object:
        asked.append(number)
        if len(asked) == step + 1:
            raise KeyboardInterrupt
        return drawings(self, number)

    checkpoints = tower.Checkpoints
    with monkeypatch.context() as patch:
        patch.setattr(tower, "Checkpoints", lambda path, every, last: checkpoints(path, 2, last))
        patch.setattr(tower.Drawings, "__getitem__", counted)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(tmp_path / "tower")
        assert not (tmp_path / "tower").exists()
        assert (tmp_path / "tower.ckpt").exists() == (saved > 0)
        train(tmp_path / "tower")
    assert len(asked) < step + 1 + RECIPE.steps or step < 2, "it went on where it was"
    names = ("model.safetensors", "config.json", "projector.safetensors")
    assert [(tmp_path / "tower" / n).read_bytes() for n in names] == [
        (trained / n).read_bytes() for n in names
    ]


def tower_weights(place: str | None) -> dict[str, Tensor]:
    model = ScratchLlava(**SIZES, tower=place, device="cpu").load().model
    return model.model.vision_tower.state_dict()


def test_a_model_made_with_a_tower_has_its_weights(trained: Path) -> None:
    made = (
        ScratchLlava(**SIZES, tower=str(trained), device="cpu").load().model.model.vision_tower.state_dict()
    )
    theirs = load_file(trained / "model.safetensors")
    random = ScratchLlava(**SIZES, device="cpu").load().model.model.vision_tower.state_dict()
    names = {name: name.removeprefix("vision_model.") for name in theirs}
    assert {n.removeprefix("vision_model.") for n in made if "position_ids" not in n} == set(names.values())
    ours = {n.removeprefix("vision_model."): value for n, value in made.items()}
    drawn = {n.removeprefix("vision_model."): value for n, value in random.items()}
    assert all(ours[names[n]].equal(value) for n, value in theirs.items())
    assert not all(drawn[names[n]].equal(value) for n, value in theirs.items())


def test_its_projector_comes_with_it(trained: Path) -> None:
    made, drawn = (
        ScratchLlava(**SIZES, tower=place, device="cpu").load().model.model.multi_modal_projector.state_dict()
        for place in (str(trained), None)
    )
    theirs = load_file(trained / "projector.safetensors")
    assert set(theirs) == set(made)
    assert all(made[name].equal(value) and not drawn[name].equal(value) for name, value in theirs.items())


def test_a_projector_that_speaks_another_models_words_is_refused(trained: Path) -> None:
    with pytest.raises(UserError, match=r"words of another vlm\.seed or tokenizer; remove .*tower"):
        ScratchLlava(**SIZES, tower=str(trained), seed=1, device="cpu").load()


def test_a_tower_made_by_another_recipe_is_not_taken_for_this_ones(trained: Path) -> None:
    with pytest.raises(UserError, match=r"made with other recipe .*remove it"):
        train(trained, replace(RECIPE, steps=7))


def test_a_patch_is_to_say_the_words_for_what_its_cell_holds() -> None:
    model, tokenizer = ScratchLlava(**SIZES).base(torch.device("cpu"), None)
    table = model.get_input_embeddings().weight.detach()

    def word(text: str) -> Tensor:
        return table[torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)].mean(0)

    words = PatchWords(table, tokenizer)
    training = tower.TowerTraining(model.model.vision_tower, model.model.multi_modal_projector, words, RECIPE)
    thing = Thing("cup", "red", "small", cell=4, view="small")
    scene = Scene("beach", (thing,), Sign("K", 1, False), 0)
    labels = torch.tensor([tower.cell_labels(scene)])[:, training.cells]
    wanted = training.wanted(labels, torch.tensor([WORDS["scenes"].index("beach")]))[0]
    everywhere = 0.5 * word("beach")
    expected = {
        0: everywhere + word("top left"),
        1: everywhere + word("top middle") + word("sign") + word("K"),
        4: everywhere
        + word("bottom middle")
        + word("cup")
        + 0.7 * (word("cups") + word("red"))
        + 0.5 * word("small"),
    }
    for patch, cell in enumerate(training.cells.tolist()):
        if cell in expected:
            torch.testing.assert_close(wanted[patch], expected[cell])


def test_making_loading_and_saving_one_draws_no_bars_of_transformers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = train(tmp_path / "tower")
    ScratchLlava(**SIZES, tower=str(place), device="cpu").load().save(tmp_path / "model")
    assert "100%" not in capfd.readouterr().err


def test_a_tower_of_another_size_is_refused(trained: Path) -> None:
    with pytest.raises(UserError, match=r"intermediate_size is 32, the model's is 64"):
        ScratchLlava(**(SIZES | {"vision_mlp": 64}), tower=str(trained), device="cpu").load()


def test_a_tower_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no vision tower; train it first"):
        ScratchLlava(**SIZES, tower=str(tmp_path), device="cpu").load()
