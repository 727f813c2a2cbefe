"""The toy world on disk: its images, sources and tests, all in the formats of the real ones.

    align        images/; toy_vqa.json, toy_caption.json, toy_instruct.json (LLaVA conversations)
    validation   images/; pope/, chair/, vqa/ (GQA's format) and mme/, see benchmark_files.py
    test         the same

The folder's manifest is written last: a folder without it, or made by another version of the world or from
other numbers, is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal

from filelock import FileLock

from nsft_exp.records import Exchange, UserError
from nsft_exp.toy.benchmark_files import write_tests
from nsft_exp.toy.draw import draw_scene
from nsft_exp.toy.talk import caption_talk, instruct_talk, vqa_talk
from nsft_exp.toy.world import FOLDER, Scene, make_scene

MANIFEST = "manifest.json"
MADE_BY = (
    "lexicon.yaml",
    "world.yaml",
    "world.py",
    "draw.py",
    "text.py",
    "fact.py",
    "ask.py",
    "talk.py",
    "benchmark_files.py",
    "files.py",
)

Talk = Callable[[Scene, Random], tuple[Exchange, ...]]
SOURCES: dict[str, Talk] = {"toy_vqa": vqa_talk, "toy_caption": caption_talk, "toy_instruct": instruct_talk}


class ToyFiles:
    """The files of one split under `folder`: `scenes` scenes drawn from `seed`."""

    def __init__(
        self, folder: str, split: Literal["align", "validation", "test"], seed: int = 0, scenes: int = 2400
    ) -> None:
        if split not in ("align", "validation", "test"):
            raise UserError(
                f"toy split {split}: there is no such split on disk; take align, validation or test"
            )
        if scenes < 1:
            raise UserError(f"toy scenes={scenes}: must be at least 1")
        self.folder, self.split, self.seed, self.scenes = Path(folder), split, seed, scenes

    def ensure(self) -> None:
        """Write the files unless they are there already, whole and of this version.

        Raises UserError for a folder that cannot be written, or that holds something else.
        """
        if self._made():
            return
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder.parent / f".{self.folder.name}.lock"):
                if not self._made():
                    self._make()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"{self.folder}: cannot write there ({reason}); set paths.data to a writable folder"
            ) from error

    def wanted(self) -> dict[str, Any]:
        """What the manifest of these files says: what they were made from."""
        return {"split": self.split, "seed": self.seed, "scenes": self.scenes, "version": version()}

    def _made(self) -> bool:
        file = self.folder / MANIFEST
        try:
            return bool(json.loads(file.read_text(encoding="utf-8")) == self.wanted())
        except (OSError, ValueError):
            return False

    def _make(self) -> None:
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / MANIFEST).exists():
            raise UserError(
                f"{self.folder}: holds files that are not the toy world's; move them or set paths.data"
            )
        partial = self.folder.with_name(f".{self.folder.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            self._write(partial)
            write_json(partial / MANIFEST, self.wanted())
            shutil.rmtree(self.folder, ignore_errors=True)
            partial.rename(self.folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        scenes = [make_scene(self.split, self.seed, number) for number in range(self.scenes)]
        (folder / "images").mkdir()
        for number, scene in enumerate(scenes):
            draw_scene(scene).save(folder / "images" / image_name(number))
        if self.split == "align":
            for name, talk in SOURCES.items():
                write_json(folder / f"{name}.json", source_records(name, talk, scenes, self.seed))
        else:
            write_tests(folder, scenes, f"{self.split}/{self.seed}")


def source_records(name: str, talk: Talk, scenes: list[Scene], seed: int) -> list[dict[str, Any]]:
    """Return one record a scene in LLaVA's format, with the scene's annotation (read by reports only)."""
    return [
        {
            "id": f"{name}-{number:06d}",
            "image": image_name(number),
            "conversations": conversation(talk(scene, Random(f"{name}/{seed}/{number}"))),
            "annotation": annotation(scene),
        }
        for number, scene in enumerate(scenes)
    ]


def conversation(talk: tuple[Exchange, ...]) -> list[dict[str, str]]:
    """Return exchanges as LLaVA's turns, `<image>` leading the first one."""
    turns = []
    for number, said in enumerate(talk):
        turns.append({"from": "human", "value": said.question if number else f"<image>\n{said.question}"})
        turns.append({"from": "gpt", "value": said.answer})
    return turns


def annotation(scene: Scene) -> dict[str, Any]:
    """Return the truth about a scene in words."""
    things = [
        {"category": t.category, "color": t.color, "size": t.size, "place": t.place} for t in scene.things
    ]
    return {"scene": scene.kind, "objects": things, "sign": scene.sign.glyph if scene.sign else None}


def image_name(number: int) -> str:
    """Return the file name of a scene's image, like COCO's of 2017."""
    return f"{number + 1:012d}.png"


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file in a readable form."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


@cache
def version() -> str:
    """Return a hash of all that decides the files' content: the world's words, numbers and code."""
    parts = [(FOLDER / name).read_bytes() for name in MADE_BY]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
