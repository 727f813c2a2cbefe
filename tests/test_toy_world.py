"""The toy world: scenes, splits, drawing and what its writers imagine."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from PIL import Image, ImageChops

from nsft_exp.records import UserError
from nsft_exp.toy.draw import GLYPHS, SHAPES, SIZE, draw_scene
from nsft_exp.toy.source import ToyWorld
from nsft_exp.toy.world import (
    SPLITS,
    Scene,
    Sign,
    Thing,
    imagined,
    lexicon,
    likelihoods,
    make_scene,
    missing,
    read_sign,
    tempting,
    usual_cells,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene("pretrain", 7, number) for number in range(3000)]


def facts_of(scene: Scene) -> tuple[object, ...]:
    things = tuple((t.cell, t.category, t.color, t.size, t.view) for t in scene.things)
    return (scene.kind, things, scene.sign)


def test_no_scene_is_in_two_splits_whatever_the_seeds() -> None:
    seen: dict[object, str] = {}
    for split in SPLITS:
        for seed in (0, 1):
            for number in range(300):
                facts = facts_of(make_scene(split, seed, number))
                assert seen.setdefault(facts, split) == split


def test_the_splits_share_no_bucket() -> None:
    buckets = [bucket for chosen in SPLITS.values() for bucket in chosen]
    assert len(buckets) == len(set(buckets)) == 20
    assert all(make_scene(split, 3, 5).bucket() in SPLITS[split] for split in SPLITS)


def test_a_scene_depends_on_split_seed_and_number_only() -> None:
    assert make_scene("test", 0, 4) == make_scene("test", 0, 4)
    assert len({make_scene("test", seed, 4) for seed in range(20)}) > 15
    assert draw_scene(make_scene("test", 0, 4)).tobytes() == draw_scene(make_scene("test", 0, 4)).tobytes()


def test_a_scene_has_one_to_five_objects_each_in_a_cell_of_its_own(scenes: list[Scene]) -> None:
    for scene in scenes:
        cells = [t.cell for t in scene.things] + ([scene.sign.cell] if scene.sign else [])
        assert 1 <= len(scene.things) <= 5
        assert len(cells) == len(set(cells))
        assert [t.cell for t in scene.things] == sorted(t.cell for t in scene.things)
    assert len({len(scene.things) for scene in scenes}) == 5


def test_every_typical_object_is_absent_from_about_half_of_its_scenes(scenes: list[Scene]) -> None:
    there: Counter[tuple[str, str]] = Counter()
    scenes_of = Counter(scene.kind for scene in scenes)
    for scene in scenes:
        there.update((scene.kind, name) for name in usual_cells(scene.kind) if name in scene.categories())
    for kind in lexicon()["scenes"]:
        assert len(usual_cells(kind)) >= 3
        for name in usual_cells(kind):
            assert (
                0.38 < there[kind, name] / scenes_of[kind] < 0.62
            )  # 375 scenes: four standard errors are 0.10


def test_a_missing_typical_object_is_imagined_where_its_place_is_unclear_and_rarely_elsewhere() -> None:
    clear = Scene("kitchen", (Thing("bird", "red", "large", 0),))
    unclear = Scene("kitchen", (Thing("bird", "red", "large", 0, "pale"),))
    assert usual_cells("kitchen")["cup"] == 0
    assert tempting(clear) == ()
    assert tempting(unclear) == ("cup",)
    rates = likelihoods()["texts"]
    for scene, rate in ((clear, rates["clear"]), (unclear, rates["unclear"])):
        named = sum("cup" in imagined(scene, Random(f"{scene}{n}")) for n in range(2000)) / 2000
        assert abs(named - rate) < 0.04  # 2000 draws: a standard error of at most 0.011


def test_what_is_there_is_never_imagined_and_what_is_not_typical_neither(scenes: list[Scene]) -> None:
    for number, scene in enumerate(scenes):
        named = imagined(scene, Random(number))
        assert set(named) <= set(missing(scene))
        assert not set(named) & set(scene.categories())


def test_about_half_of_the_missing_typical_objects_tempt(scenes: list[Scene]) -> None:
    lacking = sum(len(missing(s)) for s in scenes)
    assert 0.4 < sum(len(tempting(s)) for s in scenes) / lacking < 0.65


def test_a_pale_sign_is_mostly_read_as_usual() -> None:
    usual = likelihoods()["scenes"]["kitchen"]["glyph"]
    pale, clear = (Scene("kitchen", (), Sign("7", 4, p)) for p in (True, False))
    read = {scene: Counter(read_sign(scene, Random(n)) for n in range(1000)) for scene in (pale, clear)}
    assert read[pale][usual] > 780
    assert read[clear][usual] < 130
    assert set(read[pale]) == {usual, "7"}


def test_every_word_can_be_drawn() -> None:
    assert set(SHAPES) == set(lexicon()["categories"])
    assert set(GLYPHS) == set(lexicon()["glyphs"])
    for kind in lexicon()["scenes"]:
        for color in lexicon()["colors"]:
            image = draw_scene(Scene(kind, (Thing("cup", color, "large", 4),)))
            assert (image.mode, image.size) == ("RGB", (SIZE, SIZE))


@pytest.mark.parametrize("view", ["clear", "small", "pale", "hidden"])
def test_no_two_categories_look_alike_in_any_view(view: str) -> None:
    def draw(name: str) -> Image.Image:
        return draw_scene(Scene("office", (Thing(name, "red", "large", 4, view),)))  # type: ignore[arg-type]

    images = {name: draw(name) for name in lexicon()["categories"]}
    names = list(images)
    for n, one in enumerate(names):
        for two in names[n + 1 :]:
            changed = (
                ImageChops.difference(images[one], images[two]).convert("L").point(lambda v: 255 * (v > 12))
            )
            assert sum(v > 0 for v in changed.tobytes()) >= 12, (one, two)


def test_views_shades_and_signs_change_the_image() -> None:
    thing = Thing("clock", "blue", "large", 4)
    views = [
        Scene("field", (Thing("clock", "blue", "large", 4, v),)) for v in ("clear", "small", "pale", "hidden")
    ]
    others = [
        Scene("field", (thing,), shade=1),
        Scene("field", (thing,), Sign("K", 0)),
        Scene("field", (thing,), Sign("K", 0, True)),
    ]
    assert len({draw_scene(scene).tobytes() for scene in views + others}) == 7


def test_the_pretraining_source_makes_the_same_sample_whenever_it_is_asked() -> None:
    source = ToyWorld(size=50, seed=1)
    samples = source.samples()
    assert len(samples) == 50
    assert samples[3] == list(samples)[3] == source.samples()[3]
    assert ToyWorld(size=80, seed=1).samples()[3] == samples[3] != ToyWorld(size=50, seed=2).samples()[3]
    assert samples[-1] == samples[49]
    assert samples[2:4] == [samples[2], samples[3]]
    number = int(str(samples[3].image).rpartition(":")[2])
    assert 3 * 16 <= number < 4 * 16, "each sample takes one of its own scenes"
    image = source.open_image(str(samples[3].image))
    assert image.tobytes() == draw_scene(make_scene("pretrain", 1, number)).tobytes()
    with pytest.raises(IndexError):
        samples[50]


def test_the_pretraining_source_refuses_an_image_that_is_no_scene_and_an_empty_size() -> None:
    with pytest.raises(UserError, match=r"a/b.png: is not the name of a scene"):
        ToyWorld(1).open_image("a/b.png")
    with pytest.raises(UserError, match=r"source.size=0"):
        ToyWorld(0)
