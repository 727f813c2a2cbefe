"""Pictures changed at random, before a model's own preprocessing: the choices of SeVa's early version.

Sizes, ranges and strengths are those of SeVa's public code; `crop`, `jitter` and `blur` alone are its MoCo's.
Jitter is applied with probability 0.8 and blur with 0.5 (MoCo v2's). RandAugment and AutoAugment are not
here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Augment = Callable[[Image.Image, Generator], Image.Image]
BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
SIDE = 224
"""Pixels of a random crop's sides."""
CENTRE = 128
"""Pixels of the centre crop's sides."""
BORDER = 50
"""Pixels of black that `pad` puts on every side."""


def in_turn(image: Image.Image, draw: Generator, steps: Sequence[tuple[float, Augment]]) -> Image.Image:
    """Apply each step with its probability."""
    for probability, step in steps:
        if draw.random() < probability:
            image = step(image, draw)
    return image


def random_crop(image: Image.Image, draw: Generator, least: float, most: float = 1.0) -> Image.Image:
    """Cut a share of the area from `least` to `most`, at most 4:3 either way, and make it 224 x 224."""
    width, height = image.size
    for _ in range(10):
        area = width * height * draw.uniform(least, most)
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1))
            return image.resize((SIDE, SIDE), BILINEAR, (left, top, left + w, top + h))
    side = min(width, height)  # no such cut fits into the picture's shape
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((SIDE, SIDE), BILINEAR, (left, top, left + side, top + side))


def jitter(image: Image.Image, draw: Generator, hue: float) -> Image.Image:
    """Brightness, contrast and saturation times 0.6 to 1.4 and hue by up to `hue` turns, in any order."""
    for change in draw.permutation(4):
        if change == 3:
            image = _turned_hue(image, draw.uniform(-hue, hue))
        else:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change]
            image = enhance(image).enhance(draw.uniform(0.6, 1.4))
    return image


def _turned_hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue, dtype=np.int16) + round(turns * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8), "L"), saturation, value)).convert(
        "RGB"
    )


def blur(image: Image.Image, draw: Generator) -> Image.Image:
    """Gaussian blur with a deviation of 0.1 to 2 pixels."""
    return image.filter(ImageFilter.GaussianBlur(draw.uniform(0.1, 2.0)))


def grey(image: Image.Image, draw: Generator) -> Image.Image:
    """The picture without colour."""
    return ImageOps.grayscale(image).convert("RGB")


def flip(image: Image.Image, draw: Generator) -> Image.Image:
    """The picture mirrored left to right."""
    return ImageOps.mirror(image)


def centre_crop(image: Image.Image, draw: Generator) -> Image.Image:
    """The middle 128 x 128 pixels, on black where the picture is smaller."""
    left, top = (image.width - CENTRE) // 2, (image.height - CENTRE) // 2
    return image.crop((left, top, left + CENTRE, top + CENTRE))


def perspective(image: Image.Image, draw: Generator) -> Image.Image:
    """Each corner moved inwards by up to 0.6 of half a side."""
    width, height = image.size
    x, y = draw.uniform(0, 0.6 * width / 2, 4), draw.uniform(0, 0.6 * height / 2, 4)
    corners = [(0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1)]
    moved = [(abs(cx - dx), abs(cy - dy)) for (cx, cy), dx, dy in zip(corners, x, y, strict=True)]
    rows, values = [], []
    for (u, v), (cx, cy) in zip(moved, corners, strict=True):  # PIL asks where each pixel comes from
        rows += [[u, v, 1, 0, 0, 0, -cx * u, -cx * v], [0, 0, 0, u, v, 1, -cy * u, -cy * v]]
        values += [cx, cy]
    solved = np.linalg.solve(np.array(rows, dtype=float), np.array(values, dtype=float))
    return image.transform(image.size, Image.Transform.PERSPECTIVE, solved.tolist(), BILINEAR)


def rotation(image: Image.Image, draw: Generator) -> Image.Image:
    """Turned by 0 to 180 degrees, black in the corners."""
    return image.rotate(draw.uniform(0, 180), NEAREST)


def affine(image: Image.Image, draw: Generator) -> Image.Image:
    """Turned by 30 to 70 degrees, shrunk to 0.5 to 0.75, moved by up to 0.1 (across) and 0.3 (up, down)."""
    angle, scale = math.radians(draw.uniform(30, 70)), draw.uniform(0.5, 0.75)
    dx, dy = draw.uniform(-0.1, 0.1) * image.width, draw.uniform(-0.3, 0.3) * image.height
    cos, sin, cx, cy = math.cos(angle) / scale, math.sin(angle) / scale, image.width / 2, image.height / 2
    back = (
        cos,
        sin,
        cx - cos * (cx + dx) - sin * (cy + dy),
        -sin,
        cos,
        cy + sin * (cx + dx) - cos * (cy + dy),
    )
    return image.transform(image.size, Image.Transform.AFFINE, back, NEAREST)


def _contrastive(least: float, hue: float, blurred: float) -> Augment:
    """The augmentation of a contrastive method: crop, jitter, grey, blur, flip."""
    steps: list[tuple[float, Augment]] = [(1.0, partial(random_crop, least=least))]
    steps += [(0.8, partial(jitter, hue=hue)), (0.2, grey), (blurred, blur), (0.5, flip)]
    return partial(in_turn, steps=steps)


AUGMENTATIONS: dict[str, Augment] = {
    "moco": _contrastive(0.2, 0.1, 0.5),
    "byol": _contrastive(0.08, 0.1, 0.5),
    "simclr": _contrastive(0.2, 0.4, 0.0),
    "crop": partial(random_crop, least=0.2),
    "small_crop": partial(random_crop, least=0.36, most=0.64),
    "centre_crop": centre_crop,
    "flip": flip,
    "jitter": partial(jitter, hue=0.1),
    "blur": blur,
    "grey": grey,
    "pad": lambda image, draw: ImageOps.expand(image, BORDER),
    "perspective": perspective,
    "rotation": rotation,
    "affine": affine,
    "posterize": lambda image, draw: ImageOps.posterize(image, 2),
    "solarize": lambda image, draw: ImageOps.solarize(image, 128),
    "sharpness": lambda image, draw: ImageEnhance.Sharpness(image).enhance(0),
}
"""By name; each takes an RGB picture and the random numbers to draw from."""


def sizes(name: str, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) that an augmentation makes of a picture of this size."""
    if name in ("moco", "byol", "simclr", "crop", "small_crop"):
        return SIDE, SIDE
    if name == "centre_crop":
        return CENTRE, CENTRE
    return (size[0] + 2 * BORDER, size[1] + 2 * BORDER) if name == "pad" else size
