"""COCO's annotation files: the objects of each image, from its instances and its reference captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.caption_words import object_words
from nsft_exp.benchmark.reading import need, numbered_rows, read_json
from nsft_exp.records import UserError


class Coco:
    """COCO's instances and captions by image. A caption's words are read when its image is first scored."""

    def __init__(self, folder: Path, splits: Sequence[str], nodes: dict[str, str], synonyms: Path) -> None:
        """Read the files. UserError for a missing field or a category that the synonym table lacks."""
        self.nodes = nodes
        self.names: dict[int, str] = {}
        """Image id -> file name, in file order."""
        self._objects: dict[int, set[str]] = {}
        self._captions: dict[int, list[str]] = {}
        for split in splits:
            self._read_instances(folder / f"instances_{split}.json", synonyms)
            self._read_captions(folder / f"captions_{split}.json")

    def objects(self, image_id: Any) -> set[str]:
        """Return the classes of an image's true objects; empty for an image without annotations."""
        if image_id in self._captions:
            found = self._objects.setdefault(image_id, set())
            for caption in self._captions.pop(image_id):
                found |= {word.node for word in object_words(caption, self.nodes)}
        return self._objects.get(image_id, set())

    def _read_instances(self, path: Path, synonyms: Path) -> None:
        data = read_json(path)
        for where, image in numbered_rows(data, "images", path, "image"):
            self.names[need(image, "id", int, where)] = need(image, "file_name", str, where)
        classes = {}
        for where, category in numbered_rows(data, "categories", path, "category"):
            name = need(category, "name", str, where)
            if name not in self.nodes:
                raise UserError(
                    f"{synonyms}: has no class `{name}` of {path}; give the table of these categories"
                )
            classes[need(category, "id", int, where)] = self.nodes[name]
        for where, row in numbered_rows(data, "annotations", path, "annotation"):
            image, category = need(row, "image_id", int, where), need(row, "category_id", int, where)
            if category not in classes:
                raise UserError(f"{where}: category {category} is not in the file; fetch it again")
            self._objects.setdefault(image, set()).add(classes[category])

    def _read_captions(self, path: Path) -> None:
        for where, row in numbered_rows(read_json(path), "annotations", path, "annotation"):
            image, caption = need(row, "image_id", int, where), need(row, "caption", str, where)
            self._captions.setdefault(image, []).append(caption)
