"""Drawing scenes: 64 x 64 RGB images with PIL alone.

An object is a filled silhouette in its color with a few marks in white (black on yellow); its masks are
drawn once, four times as large, and reduced. A pale object is mostly see-through; a half hidden one
stands behind a board. Coordinates below are hundredths of an object's box.
"""

from __future__ import annotations

from functools import cache

from PIL import Image, ImageDraw

from nsft_exp.toy.world import COLUMNS, Scene, Thing

SIZE = 64
LARGE, SMALL = 21, 14
PALE = 0.42
FINE = 4
"""Masks are drawn this many times as large as they are used."""

RGB = {
    "red": (214, 38, 38),
    "blue": (38, 78, 214),
    "green": (24, 138, 50),
    "yellow": (246, 206, 24),
    "purple": (150, 44, 178),
    "black": (28, 28, 28),
}
WHITE, BOARD, INK = (250, 250, 250), (146, 122, 100), (20, 20, 20)

Shape = tuple[str, tuple[float, ...]]
"""`poly`: x, y, ...; `oval`, `box`: x0, y0, x1, y1; `line`: width, x, y, ...; `-` before it takes away."""

SHAPES: dict[str, tuple[tuple[Shape, ...], tuple[Shape, ...]]] = {  # category: silhouette, marks
    "cup": (
        (("oval", (55, 25, 98, 72)), ("-oval", (67, 37, 86, 60)), ("poly", (5, 12, 74, 12, 64, 92, 15, 92))),
        (("box", (12, 24, 66, 33)),),
    ),
    "bottle": (
        (("box", (40, 0, 60, 30)), ("poly", (40, 22, 60, 22, 76, 46, 76, 100, 24, 100, 24, 46))),
        (("box", (26, 60, 74, 80)),),
    ),
    "table": (
        (("box", (0, 28, 100, 44)), ("box", (8, 40, 22, 96)), ("box", (78, 40, 92, 96))),
        (),
    ),
    "chair": (
        (("box", (16, 0, 32, 100)), ("box", (16, 46, 84, 62)), ("box", (68, 46, 84, 100))),
        (),
    ),
    "lamp": (
        (("poly", (30, 2, 70, 2, 94, 46, 6, 46)), ("box", (44, 44, 56, 90)), ("box", (22, 86, 78, 100))),
        (),
    ),
    "book": (
        (("poly", (0, 16, 50, 30, 100, 16, 100, 78, 50, 94, 0, 78)),),
        (("line", (7, 50, 30, 50, 92)), ("line", (6, 12, 40, 38, 47)), ("line", (6, 62, 47, 88, 40))),
    ),
    "clock": (
        (("oval", (2, 2, 98, 98)),),
        (("oval", (15, 15, 85, 85)), ("-line", (10, 50, 50, 50, 22)), ("-line", (10, 50, 50, 72, 58))),
    ),
    "key": (
        (
            ("oval", (0, 28, 44, 72)),
            ("-oval", (13, 41, 31, 59)),
            ("box", (40, 43, 100, 57)),
            ("box", (70, 50, 79, 78)),
            ("box", (88, 50, 97, 78)),
        ),
        (),
    ),
    "car": (
        (
            ("poly", (0, 50, 16, 48, 32, 22, 70, 22, 86, 48, 100, 54, 100, 74, 0, 74)),
            ("oval", (12, 60, 40, 90)),
            ("oval", (62, 60, 90, 90)),
        ),
        (("poly", (28, 47, 38, 30, 49, 30, 49, 47)), ("poly", (55, 47, 55, 30, 65, 30, 75, 47))),
    ),
    "house": (
        (("poly", (50, 0, 100, 46, 0, 46)), ("box", (12, 44, 88, 100))),
        (("box", (40, 64, 60, 100)),),
    ),
    "flag": (
        (("box", (8, 0, 18, 100)), ("poly", (18, 4, 96, 4, 76, 28, 96, 54, 18, 54))),
        (),
    ),
    "boat": (
        (
            ("poly", (0, 64, 100, 64, 80, 96, 20, 96)),
            ("box", (44, 2, 52, 66)),
            ("poly", (56, 6, 94, 56, 56, 56)),
        ),
        (),
    ),
    "umbrella": (
        (
            ("oval", (0, 4, 100, 96)),
            ("-box", (0, 50, 100, 100)),
            ("box", (46, 44, 54, 92)),
            ("box", (28, 86, 54, 94)),
            ("box", (28, 76, 35, 94)),
        ),
        (("line", (5, 50, 6, 30, 50)), ("line", (5, 50, 6, 70, 50))),
    ),
    "kite": (
        (("poly", (60, 0, 98, 34, 50, 72, 26, 20)), ("line", (7, 50, 70, 30, 78, 34, 90, 8, 98))),
        (("line", (5, 60, 2, 50, 70)), ("line", (5, 28, 21, 96, 34))),
    ),
    "hat": (
        (("box", (24, 8, 76, 74)), ("box", (0, 72, 100, 90))),
        (("box", (24, 56, 76, 68)),),
    ),
    "flower": (
        (
            ("oval", (33, 0, 67, 34)),
            ("oval", (33, 36, 67, 70)),
            ("oval", (12, 18, 48, 52)),
            ("oval", (52, 18, 88, 52)),
            ("box", (46, 66, 54, 100)),
            ("poly", (50, 98, 76, 74, 70, 92)),
        ),
        (("oval", (39, 24, 61, 46)),),
    ),
    "tree": (
        (
            ("poly", (50, 0, 80, 36, 20, 36)),
            ("poly", (50, 18, 92, 72, 8, 72)),
            ("box", (42, 72, 58, 100)),
        ),
        (),
    ),
    "bird": (
        (
            ("oval", (14, 38, 80, 82)),
            ("oval", (60, 14, 92, 48)),
            ("poly", (88, 24, 100, 34, 88, 40)),
            ("poly", (24, 50, 0, 34, 6, 66)),
            ("box", (40, 78, 46, 100)),
            ("box", (54, 78, 60, 100)),
        ),
        (("oval", (74, 24, 83, 33)), ("poly", (28, 54, 62, 54, 44, 72))),
    ),
    "star": (
        (("poly", (50, 0, 62, 36, 100, 37, 70, 60, 81, 97, 50, 75, 19, 97, 30, 60, 0, 37, 38, 36)),),
        (),
    ),
    "moon": (
        (("oval", (4, 2, 96, 98)), ("-oval", (36, -6, 114, 82))),
        (),
    ),
}

GLYPHS = {  # 5 x 7 dots
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "V": "10001 10001 10001 10001 10001 01010 00100",
    "X": "10001 10001 01010 00100 01010 10001 10001",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "7": "11111 00001 00010 00100 00100 01000 01000",
    "9": "01110 10001 10001 01111 00001 00001 01110",
}

GROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {  # wall or sky, floor
    "kitchen": ((226, 222, 206), (196, 186, 170)),
    "bedroom": ((232, 206, 206), (206, 176, 150)),
    "office": ((204, 212, 222), (172, 176, 186)),
    "street": ((196, 204, 210), (142, 142, 146)),
    "beach": ((188, 222, 236), (236, 220, 176)),
    "garden": ((206, 226, 214), (166, 204, 146)),
    "harbour": ((212, 220, 228), (132, 172, 190)),
    "field": ((176, 172, 206), (172, 178, 138)),
}


def draw_scene(scene: Scene) -> Image.Image:
    """Return the scene as a 64 x 64 RGB image; the same scene gives the same bytes."""
    image = _ground(scene.kind, scene.shade).copy()
    for thing in scene.things:
        _draw_thing(image, thing)
    if scene.sign:
        x, y = _centre(scene.sign.cell)
        image.paste(_sign(scene.sign.glyph, scene.sign.pale), (x - 8, y - 9))
    return image


def _centre(cell: int) -> tuple[int, int]:
    return round((cell % COLUMNS + 0.5) * SIZE / COLUMNS), 16 + 32 * (cell // COLUMNS)


def _draw_thing(image: Image.Image, thing: Thing) -> None:
    side = SMALL if thing.view == "small" else LARGE
    x, y = _centre(thing.cell)
    corner = (min(max(x + thing.dx - side // 2, 0), SIZE - side), y + thing.dy - side // 2)
    marks = INK if thing.color == "yellow" else WHITE
    for mask, color in zip(
        _masks(thing.category, side, thing.view == "pale"), (RGB[thing.color], marks), strict=True
    ):
        image.paste(color, (*corner, corner[0] + side, corner[1] + side), mask)
    if thing.view == "hidden":
        _draw_board(image, corner, side)


def _draw_board(image: Image.Image, corner: tuple[int, int], side: int) -> None:
    """A board over the lower two fifths of an object's box."""
    x, y = corner[0], corner[1] + side * 3 // 5
    draw = ImageDraw.Draw(image)
    draw.rectangle((x, y, x + side - 1, corner[1] + side), fill=BOARD)
    draw.line((x, y + 4, x + side - 1, y + 4), fill=(120, 98, 80))


@cache
def _masks(category: str, side: int, pale: bool) -> tuple[Image.Image, Image.Image]:
    """Return the masks of silhouette and marks, side x side, 8 bit."""
    masks = [
        _mask(shapes, side * FINE).resize((side, side), Image.Resampling.BOX) for shapes in SHAPES[category]
    ]
    if pale:
        masks = [mask.point([round(PALE * level) for level in range(256)]) for mask in masks]
    return masks[0], masks[1]


def _mask(shapes: tuple[Shape, ...], side: int) -> Image.Image:
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    for name, numbers in shapes:
        level = 0 if name.startswith("-") else 255
        kind = name.removeprefix("-")
        scaled = [n * (side - 1) / 100 for n in numbers]
        if kind == "line":
            draw.line(scaled[1:], fill=level, width=max(1, round(scaled[0])))
        elif kind == "poly":
            draw.polygon(scaled, fill=level)
        elif kind == "oval":
            draw.ellipse(scaled, fill=level)
        else:
            draw.rectangle(scaled, fill=level)
    return mask


@cache
def _sign(glyph: str, pale: bool) -> Image.Image:
    """Return a white board, 16 x 18, with a letter of 10 x 14 dots."""
    board = Image.new("RGB", (16, 18), (90, 90, 90))
    draw = ImageDraw.Draw(board)
    draw.rectangle((1, 1, 14, 16), fill=WHITE)
    ink = (205, 205, 205) if pale else INK
    for row, dots in enumerate(GLYPHS[glyph].split()):
        for column, dot in enumerate(dots):
            if dot == "1":
                x, y = 3 + 2 * column, 2 + 2 * row
                draw.rectangle((x, y, x + 1, y + 1), fill=ink)
    return board


@cache
def _ground(kind: str, shade: int) -> Image.Image:
    """Return a kind of place without objects, in one of three shades."""
    wall, floor = (tuple(min(255, level + 7 * (shade - 1)) for level in color) for color in GROUNDS[kind])
    image = Image.new("RGB", (SIZE, SIZE), wall)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 38, SIZE, SIZE), fill=floor)
    darker = tuple(level - 14 for level in wall)
    below = tuple(level - 14 for level in floor)
    if kind == "kitchen":
        for step in range(0, SIZE, 8):
            draw.line((step, 0, step, 37), fill=darker)
            draw.line((0, step, SIZE, step), fill=darker if step < 38 else below)
    elif kind == "bedroom":
        for step in range(3, SIZE, 6):
            draw.line((step, 0, step, 37), fill=darker)
    elif kind == "office":
        draw.rectangle((0, 0, SIZE, 5), fill=darker)
        draw.line((0, 50, SIZE, 50), fill=below)
    elif kind == "street":
        for step in range(2, SIZE, 14):
            draw.rectangle((step, 51, step + 7, 52), fill=(222, 222, 222))
    elif kind == "beach":
        draw.rectangle((0, 28, SIZE, 40), fill=(150, 200, 222))
    elif kind == "garden":
        for step in range(0, SIZE, 7):
            draw.rectangle((step, 26, step + 3, 40), fill=(236, 240, 236))
    elif kind == "harbour":
        for step in range(0, SIZE, 10):
            draw.line((step, 44 + step % 3, step + 5, 44 + step % 3), fill=(176, 206, 216))
            draw.line((step + 4, 56, step + 9, 56), fill=(176, 206, 216))
    else:
        for step in range(0, SIZE, 5):
            draw.line((step, 62 - step % 4, step + 2, 56), fill=below)
    return image
