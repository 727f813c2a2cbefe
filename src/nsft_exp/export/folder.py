"""An exported folder: rows, the images that they share, a card, and the mark that it was written here."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nsft_exp.records import UserError
from nsft_exp.store import replace_folder

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "GIF": ".gif", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tiff"}


class ImageFiles:
    """Copies images into `folder/images`, each once, under the hash of its content.

    `open_image` makes pictures for a source whose images are no files; those are written as PNG.
    """

    def __init__(self, folder: Path, open_image: Callable[[str], Any] | None = None) -> None:
        self.folder = folder
        self.open_image = open_image
        self.names: dict[str, str] = {}

    def __len__(self) -> int:
        return len(set(self.names.values()))

    def add(self, row_id: str, image: str | None) -> list[str]:
        """Return the image's path in the folder as a list (none: empty). Raises UserError for no image."""
        if image is None:
            return []
        if image not in self.names:
            self.names[image] = self._write(row_id, image)
        return [self.names[image]]

    def _write(self, row_id: str, image: str) -> str:
        content, suffix = self._content(row_id, image)
        name = f"images/{hashlib.sha256(content).hexdigest()[:24]}{suffix}"
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_bytes(content)
        return name

    def _content(self, row_id: str, image: str) -> tuple[bytes, str]:
        from PIL import Image, UnidentifiedImageError

        if self.open_image:
            buffer = io.BytesIO()
            self.open_image(image).save(buffer, "PNG")
            return buffer.getvalue(), ".png"
        try:
            content = Path(image).read_bytes()
            kind = Image.open(io.BytesIO(content)).format
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"{image}: record {row_id}: the image cannot be read ({error})") from error
        suffix = Path(image).suffix.lower()
        return content, suffix if suffix in (".jpeg", *SUFFIXES.values()) else SUFFIXES.get(str(kind), ".png")


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows as JSON lines and return how many."""
    count = 0
    with file.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file for people too."""
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def replace(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder whole or not at all; what a failed attempt has written is taken away."""

    def write_or_clear(partial: Path) -> None:
        try:
            write(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    replace_folder(folder, write_or_clear)
