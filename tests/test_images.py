"""Every kind of picture becomes 8-bit RGB, bad files are named, arrays equal Hugging Face's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nsft_exp.images import CLIP_MEAN, MEAN_COLOUR, Preprocessing, open_image, pad_to_square
from nsft_exp.records import UserError


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_grey_cmyk_and_palette_become_rgb(tmp_path: Path) -> None:
    assert open_image(save(Image.new("L", (3, 2), 77), tmp_path / "l.png")).getpixel((0, 0)) == (77, 77, 77)
    red = open_image(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "c.tiff"))
    assert red.mode == "RGB"
    assert red.getpixel((4, 4)) == (255, 0, 0)
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).quantize()
    assert open_image(save(palette, tmp_path / "p.png")).getpixel((0, 0)) == (10, 200, 30)


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    image = open_image(save(Image.fromarray(values), tmp_path / "deep.png"))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    half.putpixel((1, 1), (10, 20, 30, 255))
    image = open_image(save(half, tmp_path / "t.png"))
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((1, 1)) == (10, 20, 30)


def test_exif_rotation_is_applied_or_ignored(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 2), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = save(image, tmp_path / "turned.jpg", exif=exif)
    assert open_image(path).size == (2, 6)
    assert open_image(path, "ignore").size == (6, 2)
    with pytest.raises(UserError, match="apply or ignore"):
        open_image(path, "maybe")


def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = save(Image.fromarray(noise), tmp_path / "whole.png").read_bytes()
    cases = {"cut.png": whole[: len(whole) // 2], "empty.png": b"", "text.png": b"not an image at all"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as caught:
            open_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="there is no such image"):
        open_image(tmp_path / "gone.png")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("lost", [1, 4, 20])
def test_a_file_that_lost_only_its_last_bytes_is_refused(lost: int, suffix: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"whole.{suffix}")
    whole = path.read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(whole[:-lost])
    with pytest.raises(UserError, match=f"cut.{suffix}: the image cannot be decoded"):
        open_image(tmp_path / f"cut.{suffix}")
    path.write_bytes(whole + b"appended by a camera" * 100)
    assert open_image(path).size == (64, 64)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Image.new("RGB", (40, 40)), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="too large"):
        open_image(path)


def test_padding_puts_the_image_in_the_middle_of_the_mean_colour() -> None:
    assert tuple(int(255 * x) for x in CLIP_MEAN) == MEAN_COLOUR
    square = pad_to_square(Image.new("RGB", (5, 2), (9, 9, 9)))
    assert square.size == (5, 5)
    column = [square.getpixel((2, row)) for row in range(5)]
    assert column == [MEAN_COLOUR, (9, 9, 9), (9, 9, 9), MEAN_COLOUR, MEAN_COLOUR]


@pytest.mark.parametrize("size", [(64, 64), (640, 480), (333, 500), (100, 31), (36, 37)])
def test_arrays_equal_those_of_the_hugging_face_processors_bit_for_bit(size: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    sides = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
    theirs = {"pad": LlavaImageProcessorPil(do_pad=True, **sides), "crop": CLIPImageProcessorPil(**sides)}
    for mode, processor in theirs.items():
        expected = processor(image, return_tensors="np")["pixel_values"][0]
        assert np.array_equal(Preprocessing(48, mode)(image), expected)


def test_an_unknown_way_of_preprocessing_is_refused() -> None:
    with pytest.raises(UserError, match="pad or crop"):
        Preprocessing(48, "stretch")
