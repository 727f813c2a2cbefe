"""Image files to RGB pictures, and those to the square arrays that a CLIP tower reads. PIL and NumPy."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from nsft_exp.records import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MEAN_COLOUR = (122, 116, 104)
"""CLIP's mean colour in 8 bits: what LLaVA pads an image with (LLaVA's `preprocess_v1`)."""
ORIENTATION = 0x0112
"""The EXIF tag whose values 5 to 8 turn a picture by 90 degrees."""


@dataclass(frozen=True)
class Layout:
    """How many image tokens a picture has, and the grid that the layout of its features follows from."""

    tokens: int
    grid: tuple[int, ...] = ()


def open_image(path: str | Path, exif: str = "apply") -> Image.Image:
    """Return the image of a file as RGB, fully decoded.

    Grey and CMYK are converted; 16 bits a channel are scaled to 8; transparent pixels are laid on white.
    `exif=apply` turns the picture as its EXIF orientation says; `ignore` leaves the pixels as stored.
    Raises UserError naming the file when it is missing, empty, cut off, too large or not an image.
    """
    if exif not in ("apply", "ignore"):
        raise UserError(f"exif={exif}: there is no such choice; take apply or ignore")
    try:
        if Path(path).stat().st_size == 0:
            raise UserError(f"{path}: the image file is empty; fetch it again")
        return to_rgb(_decoded(path, exif))
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such image; check the record's image and the image root"
        ) from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: this is not an image in a known format; replace it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"{path}: the image is too large to be opened safely ({error}); scale it down"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{path}: the image cannot be decoded ({error}); fetch it again") from None


def _decoded(path: str | Path, exif: str) -> Image.Image:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UserError("PIL is set to accept cut-off images (LOAD_TRUNCATED_IMAGES); unset it")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image.load()
            if image.format == "PNG" and _is_cut_off(path):
                raise OSError("its end is missing")
            return ImageOps.exif_transpose(image) if exif == "apply" else image.copy()


PNG_END = b"IEND\xaeB`\x82"
"""The last chunk of a PNG file."""


def _is_cut_off(path: str | Path) -> bool:
    """True for a PNG file without its last chunk: PIL decodes that (a JPEG without its end it refuses)."""
    with open(path, "rb") as file:
        file.seek(-min(file.seek(0, 2), 64), 2)
        if PNG_END in file.read():
            return False
        file.seek(0)
        return PNG_END not in file.read()  # other bytes may follow


def to_rgb(image: Image.Image) -> Image.Image:
    """Return any PIL image as 8-bit RGB: 16 bits scaled to 8, transparency laid on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """16-bit grey (PIL modes I;16 and I) to RGB, 65535 becoming 255; values in 0-255 of mode F are kept."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode != "F":
        values = values / 257
    grey = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return Image.fromarray(grey, "L").convert("RGB")


def pad_to_square(image: Image.Image, colour: tuple[int, int, int] = MEAN_COLOUR) -> Image.Image:
    """Return the image in the middle of a square of its longer side, filled with `colour`."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def normalised(
    image: Image.Image, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD
) -> np.ndarray:
    """Return an RGB picture as float32 [3, height, width]: levels in 0-1, less the mean, by the deviation."""
    levels = (np.arange(256) * (1 / 255)).astype(np.float32)
    means, deviations = (np.asarray(x, dtype=np.float32)[:, None] for x in (mean, std))
    pixels, tables = np.asarray(image), (levels - means) / deviations
    return np.stack([table[pixels[:, :, channel]] for channel, table in enumerate(tables)])


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the vision tower's input of `size` x `size` pixels.

    `pad` makes it square with the mean colour, as LLaVA was trained and scored; `crop` cuts the centre, as
    the hub's LLaVA-1.5 processor does. Then bicubic resizing by PIL, and CLIP's mean and standard deviation.
    The arrays equal those of transformers' PIL image processors.
    """

    size: int
    mode: str = "pad"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __post_init__(self) -> None:
        if self.mode not in ("pad", "crop"):
            raise UserError(f"vlm.preprocessing={self.mode}: there is no such choice; take pad or crop")

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return float32 [3, size, size]."""
        square = pad_to_square(image) if self.mode == "pad" else image
        return normalised(self._cropped(self._resized(square)), self.mean, self.std)

    @property
    def max_bytes(self) -> int:
        """Bytes of a picture's array."""
        return 12 * self.size * self.size

    def _resized(self, image: Image.Image) -> Image.Image:
        """The shorter side becomes `size`; the longer one is rounded down."""
        width, height = image.size
        short = min(width, height)
        if short == self.size:
            return image
        target = (int(self.size * width / short), int(self.size * height / short))
        return image.resize(target, Image.Resampling.BICUBIC)

    def _cropped(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if width == height:
            return image
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))


def image_size(path: str | Path, exif: str = "apply") -> tuple[int, int]:
    """Return (width, height) of the picture that `open_image` would give, read from the file's head.

    Raises UserError naming the file where even that cannot be read.
    """
    try:
        with Image.open(path) as image:
            turned = exif == "apply" and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            width, height = image.size
            return (height, width) if turned else (width, height)
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such image; check the record's image and the image root"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: the image cannot be read ({error}); fetch it again") from None
