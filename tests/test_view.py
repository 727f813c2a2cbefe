"""Views of an image: the noise is the published schedule's, draws repeat, and layouts follow the new size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nsft_exp.augment import AUGMENTATIONS, random_crop
from nsft_exp.records import Decoding, Request, Turn, UserError
from nsft_exp.view import alphas_bar, drawn, view_named
from nsft_exp.vlm.loaded import LoadedHF
from nsft_exp.vlm.scratch import ScratchLlava
from nsft_exp.vlm.scratch_next import ScratchLlavaNext


def picture(width: int = 90, height: int = 60) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("step", "signal", "noise"),  # factors derived from SeVa's public code elsewhere
    [(500, 0.863, 0.505), (800, 0.467, 0.884), (900, 0.365, 0.931), (999, 0.285, 0.959)],
)
def test_diffusion_keeps_the_published_share_of_the_signal(step: int, signal: float, noise: float) -> None:
    kept = alphas_bar()[step]
    assert np.sqrt(kept) == pytest.approx(signal, abs=6e-4)
    assert np.sqrt(1 - kept) == pytest.approx(noise, abs=6e-4)
    x = np.ones((3, 200, 200), dtype=np.float32)
    y = view_named(f"diffusion:{step}@0|a|0").pixels(x)
    assert y.dtype == np.float32
    assert y.mean() == pytest.approx(signal, abs=0.01)
    assert y.std() == pytest.approx(noise, abs=0.01)


def test_adding_the_noise_step_by_step_gives_the_same_distribution() -> None:
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, 1000))) * (0.5e-2 - 1e-5) + 1e-5
    rng, x = np.random.default_rng(1), np.full(20000, 2.0)
    for beta in betas[:301]:
        x = np.sqrt(1 - beta) * x + np.sqrt(beta) * rng.standard_normal(x.shape)
    y = view_named("diffusion:300@x").pixels(np.full(20000, 2.0, dtype=np.float32))
    assert (y.mean(), y.std()) == (pytest.approx(x.mean(), abs=0.02), pytest.approx(x.std(), abs=0.02))


def test_noise_belongs_to_seed_record_and_sample() -> None:
    x = np.zeros((3, 8, 8), dtype=np.float32)

    def noise(seed: int, key: str, number: int) -> bytes:
        return view_named(drawn("diffusion:500", seed, key, number)).pixels(x).tobytes()

    assert noise(0, "a", 0) == noise(0, "a", 0)
    assert len({noise(0, "a", 0), noise(1, "a", 0), noise(0, "b", 0), noise(0, "a", 1)}) == 4
    assert drawn("clean", 0, "a") == "clean"


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_picture_is_changed_repeatably_and_has_the_size_that_is_told(name: str) -> None:
    image = picture(200, 150)
    many = [view_named(drawn(name, 0, str(n))).picture(image) for n in range(6)]
    again = view_named(drawn(name, 0, "0")).picture(image)
    assert again.tobytes() == many[0].tobytes()
    for changed in many:
        assert changed.mode == "RGB"
        assert changed.size == view_named(name).size(image.size)
    assert any(changed.tobytes() != image.tobytes() for changed in many)


def test_a_crop_covers_the_share_of_the_area_that_it_should() -> None:
    rows = np.repeat(np.arange(200, dtype=np.uint8)[:, None], 200, 1)  # levels tell where a pixel comes from
    image = Image.fromarray(np.stack([rows, rows.T, rows], -1))
    for n in range(20):
        cut = np.asarray(random_crop(image, np.random.default_rng(n), 0.36, 0.64)).astype(int)
        height, width = np.ptp(cut[:, 112, 0]) + 1, np.ptp(cut[112, :, 1]) + 1
        assert 0.33 <= height * width / 200**2 <= 0.67
        assert 0.72 <= width / height <= 1.4


@pytest.mark.parametrize("name", ["noise", "diffusion", "diffusion:1000", "diffusion:x", "blur:3", ""])
def test_a_view_that_does_not_exist_is_refused_with_those_that_do(name: str) -> None:
    with pytest.raises(UserError, match=r"no view .*; there are clean, diffusion:<step below 1000>, moco"):
        view_named(name)


@pytest.fixture
def loaded() -> LoadedHF:
    return ScratchLlava(device="cpu").load()


def test_the_model_is_given_the_noised_tensor(loaded: LoadedHF, tmp_path: Path) -> None:
    file = str(tmp_path / "a.png")
    picture().save(file)
    view = drawn("diffusion:500", 0, "a")
    clean, noised = loaded.pixels(file), loaded.pixels(file, view)
    expected = view_named(view).pixels(clean.numpy())
    assert torch.equal(noised, torch.from_numpy(expected))
    assert not torch.equal(clean, noised)
    with pytest.raises(UserError, match=r"a\.png: there is no view 'fog'"):
        loaded.pixels(file, "fog")


def test_a_noised_image_gets_another_answer_in_the_same_batch(loaded: LoadedHF, tmp_path: Path) -> None:
    file = str(tmp_path / "a.png")
    picture().save(file)
    views = ("clean", drawn("diffusion:999", 0, "a"), "solarize")
    asked = [
        Request(view, file, (Turn("prompt", "What?"),), view, decoding=Decoding(12), candidates=("Yes",))
        for view in views
    ]
    together = {key: reply for key, (reply,) in loaded.generate(asked)}
    scores = [together[view].candidate_logps for view in views]
    assert len(set(scores)) == 3
    for request in asked:
        ((_, (alone,)),) = loaded.generate([request])
        assert alone.ids == together[request.id].ids
        assert alone.candidate_logps == pytest.approx(together[request.id].candidate_logps, abs=1e-4)


def test_the_layout_follows_the_size_that_a_view_makes(tmp_path: Path) -> None:
    file = str(tmp_path / "a.png")
    picture(90, 30).save(file)
    loaded = ScratchLlavaNext(device="cpu").load()
    assert loaded.layout(file) == loaded.layout(file, "diffusion:500") == loaded.layout(file, "blur")
    assert loaded.layout(file, "crop") == loaded.family.layout((224, 224)) != loaded.layout(file)
    for view in ("clean", "diffusion:500@x", "crop@x"):
        features = loaded.features(loaded.pictures([(file, view)]))
        assert len(features.parts[0]) == loaded.layout(file, view).tokens
