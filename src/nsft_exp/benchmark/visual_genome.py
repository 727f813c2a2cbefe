"""Visual Genome's regions and HA-DPO's facts about SHR's images: what its judge is told of each.

Files in one folder: SHR's own, and from Visual Genome 1.2

    val_images_final.json         [{image_id, ...}]
    shr_factual_part1.jsonl, ...  {image_id: [fact, ...]} a line; an image may have none
    image_data.json               [{image_id, width, height, url: ".../VG_100K/<id>.jpg"}]
    region_descriptions.json      [{regions: [{image_id, x, y, width, height, phrase}]}], some hundred MB
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.reading import need, numbered_lines, read_json
from nsft_exp.records import UserError

FILES = ("val_images_final.json", "image_data.json", "region_descriptions.json")
FACTS = ("shr_factual_part1.jsonl", "shr_factual_part2.jsonl")


@dataclass(frozen=True)
class Picture:
    """One image: its size in pixels, and its place below Visual Genome's folder."""

    width: int
    height: int
    file: str


def read_pictures(root: Path) -> dict[str, Picture]:
    """Return SHR's images by id, in file order. Raises UserError for one that Visual Genome does not have."""
    chosen, known = root / FILES[0], root / FILES[1]
    ids = [_image_id(row, where) for where, row in _rows(chosen)]
    wanted = set(ids)
    found = {key: _picture(row, w) for w, row in _rows(known) if (key := _image_id(row, w)) in wanted}
    for number, key in enumerate(ids):
        if key not in found:
            raise UserError(f"{chosen}: record {number}: image {key} is not in {known}; fetch both again")
    return {key: found[key] for key in ids}


def read_regions(root: Path, pictures: Mapping[str, Picture]) -> dict[str, str]:
    """Return the region list of each image, a line `[x1, y1, x2, y2]: phrase` for each region.

    Coordinates are fractions of the image's size with two decimals. Raises UserError for an image without.
    """
    path = root / FILES[2]
    found = {}
    for where, row in _rows(path):
        regions = need(row, "regions", list, where)
        key = _image_id(regions[0], where) if regions else ""
        if key in pictures:
            found[key] = "".join(_region(region, pictures[key], where) for region in regions)
    for key in pictures:
        if key not in found:
            raise UserError(f"{path}: has no regions of image {key}; fetch it again")
    return found


def read_facts(root: Path) -> dict[str, str]:
    """Return the facts about each image that has some, a line for each fact; the second file's win."""
    found = {}
    for where, row in (line for name in FACTS for line in numbered_lines(root / name)):
        if not row:
            raise UserError(f"{where}: names no image; fetch the file again")
        key = next(iter(row))  # a line is about one image: what follows its first key is not read
        facts = need(row, key, (list, str), where)
        if not all(isinstance(fact, str) for fact in facts):
            raise UserError(f"{where}: a fact about image {key} is not text; fetch the file again")
        found[key] = "".join(f"{fact}\n" for fact in facts)
    return found


def _rows(path: Path) -> Sequence[tuple[str, Any]]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: is no list of records; is this the official file?")
    return [(f"{path}: record {number}", row) for number, row in enumerate(rows)]


def _image_id(row: Any, where: str) -> str:
    text = str(need(row, "image_id", (int, str), where))
    if not text.isdecimal():
        raise UserError(f"{where}: image_id {text[:60]!r} is not a number; is this the official file?")
    return text


def _picture(row: Any, where: str) -> Picture:
    width, height = (need(row, name, int, where) for name in ("width", "height"))
    if width < 1 or height < 1:
        raise UserError(f"{where}: an image of {width} x {height} pixels; fetch the file again")
    parts = need(row, "url", str, where).split("/")
    return Picture(width, height, "/".join(parts[-2:]))


def _region(region: Any, picture: Picture, where: str) -> str:
    """One region's line; empty where it has no phrase."""
    x, y, width, height = (need(region, name, (int, float), where) for name in ("x", "y", "width", "height"))
    phrase = need(region, "phrase", str, where)
    corners = [x / picture.width, y / picture.height]
    corners += [(x + width) / picture.width, (y + height) / picture.height]
    return f"{[float(f'{corner:.2f}') for corner in corners]}: {phrase}\n" if phrase else ""
