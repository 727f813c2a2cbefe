"""Samples from a file in LLaVA's conversation format (LLaVA-Instruct-150k, mix665k, the toy world's).

    [{"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
      "conversations": [{"from": "human", "value": "<image>\\nQ"}, {"from": "gpt", "value": "A"}, ...]}, ...]

`<image>` stands once, in the first human turn, before or after its text; a record without `image` has none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol

from nsft_exp.records import Exchange, Sample, UserError
from nsft_exp.source.checking import check_images
from nsft_exp.source.reading import read_records, sorted_by_rank

IMAGE = "<image>"
TURNS = ("first", "last", "random", "all")


class MakesFiles(Protocol):
    """Something that writes a source's files if they are missing (the toy world)."""

    def ensure(self) -> None:
        """Write the files unless they are there."""


class LlavaJson:
    """A source in LLaVA's format.

    `size` samples are drawn by `seed` from all that the file has: a larger size keeps those of a smaller
    one. `turn` says which answer of a conversation is aligned (`all`: every one, each its own sample); the
    exchanges before it become the sample's history. `images`: `with`, `without` or `all` records.
    `prompt_suffix` is appended to the aligned question unless it ends so already.
    """

    def __init__(
        self,
        file: str,
        image_root: str,
        size: int | None = None,
        seed: int = 0,
        turn: Literal["first", "last", "random", "all"] = "last",
        images: Literal["all", "with", "without"] = "all",
        image_prefix: str = "",
        prompt_suffix: str = "",
        exif: str = "apply",
        check: bool = True,
        files_from: MakesFiles | None = None,
    ) -> None:
        """`image_prefix` keeps only records whose image path starts so (`textvqa/`: mix665k's TextCaps part).

        `check=False` does not open the images of the chosen samples beforehand.
        """
        if turn not in TURNS:
            raise UserError(f"source.turn={turn}: there is no such choice; take {', '.join(TURNS)}")
        if images not in ("all", "with", "without"):
            raise UserError(f"source.images={images}: there is no such choice; take all, with or without")
        if size is not None and size < 1:
            raise UserError(f"source.size={size}: must be at least 1")
        self.file, self.image_root = Path(file), Path(image_root)
        self.size, self.seed, self.turn, self.images = size, seed, turn, images
        self.image_prefix, self.prompt_suffix = image_prefix, prompt_suffix
        self.exif, self.check, self.files_from = exif, check, files_from
        self._samples: list[Sample] | None = None

    def files(self) -> list[Path]:
        """The annotation file."""
        if self.files_from is not None:
            self.files_from.ensure()
        return [self.file]

    def samples(self) -> Sequence[Sample]:
        """The chosen samples, in the order of the draw; read once.

        Raises UserError naming file, record and mend for a broken record or image, or too large a size.
        """
        if self._samples is None:
            self.files()
            chosen = self._chosen()
            if self.check:
                check_images(chosen, self.file, self.exif)
            self._samples = chosen
        return self._samples

    def _chosen(self) -> list[Sample]:
        """The first `size` samples by rank; of the others no more is kept than a count."""
        found = 0

        def ranked() -> Iterator[Sample]:
            nonlocal found
            for sample in self._all():
                found += 1
                yield sample

        chosen = sorted_by_rank(ranked(), self.seed, self.size)
        if not found:
            raise UserError(
                f"{self.file}: no record is left (source.images={self.images}, source.image_prefix)"
            )
        if self.size is not None and self.size > found:
            raise UserError(f"{self.file}: has {found} samples, fewer than source.size={self.size}; lower it")
        return chosen

    def _all(self) -> Iterator[Sample]:
        seen: dict[str, int] = {}
        for number, record in enumerate(read_records(self.file)):
            where = f"{self.file}: record {_name(record, number)}"
            if not isinstance(record, dict):
                raise UserError(f"{where}: is not an object with `conversations`; correct it")
            name = str(record.get("id", number))
            seen[name] = seen.get(name, 0) + 1
            key = name if seen[name] == 1 else f"{name}~{seen[name]}"  # LLaVA names an image's records alike
            if self._wanted(record):
                yield from self._aligned(
                    record, key, read_conversation(record, where), self._image(record, where)
                )

    def _wanted(self, record: dict[str, Any]) -> bool:
        image = record.get("image")
        if (self.images == "with" and image is None) or (self.images == "without" and image is not None):
            return False
        return str(image or "").startswith(self.image_prefix)

    def _aligned(
        self, record: dict[str, Any], key: str, talk: list[Exchange], image: str | None
    ) -> Iterator[Sample]:
        last = len(talk) - 1
        picks = {"first": [0], "last": [last], "all": range(last + 1)}.get(self.turn)
        if picks is None:
            picks = [Random(f"{self.seed}/{key}").randint(0, last)]
        meta = {k: v for k, v in record.items() if k not in ("id", "image", "conversations")}
        for turn in picks:
            yield Sample(
                id=f"{key}#{turn}" if self.turn == "all" else key,
                image=image,
                question=self._asked(talk[turn].question),
                answer=talk[turn].answer,
                history=tuple(talk[:turn]),
                cluster=str(record.get("image") or key),
                meta=meta,
            )

    def _asked(self, question: str) -> str:
        return question if question.endswith(self.prompt_suffix) else question + self.prompt_suffix

    def _image(self, record: dict[str, Any], where: str) -> str | None:
        """The path of the record's image, inside the image root."""
        name = record.get("image")
        if name is None:
            return None
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where}: `image` is not a path; mend the record")
        path = os.path.normpath(self.image_root / name)
        root = os.path.abspath(self.image_root)
        if os.path.isabs(name) or os.path.commonpath([os.path.abspath(path), root]) != root:
            raise UserError(f"{where}: image `{name}` lies outside of {self.image_root}; correct the path")
        return path


def read_conversation(record: Any, where: str) -> list[Exchange]:
    """Return a record's exchanges, `<image>` taken out; UserError for anything but LLaVA's format."""
    turns = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: has no `conversations`; give it a human and a gpt turn, or remove it")
    if len(turns) % 2:
        raise UserError(f"{where}: the last human turn has no answer; add the gpt turn, or remove the record")
    texts = [_text(turn, number, where) for number, turn in enumerate(turns)]
    wanted = int(record.get("image") is not None)
    places = [number for number, text in enumerate(texts) for _ in range(text.count(IMAGE))]
    if len(places) != wanted or any(places):
        raise UserError(
            f"{where}: `{IMAGE}` occurs {len(places)} times"
            f"{' and not only in the first turn' if any(places) else ''}; it must stand "
            f"{'once, in the first human turn' if wanted else 'nowhere, since the record has no image'}"
        )
    texts[0] = texts[0].replace(IMAGE, "").strip()
    for number, text in enumerate(texts):
        if not text:
            raise UserError(f"{where}: turn {number + 1} is empty; give it text, or remove the record")
    return [Exchange(q, a) for q, a in zip(texts[::2], texts[1::2], strict=True)]


def _text(turn: Any, number: int, where: str) -> str:
    speaker = ("human", "gpt")[number % 2]
    if not isinstance(turn, dict) or turn.get("from") != speaker:
        said = turn.get("from") if isinstance(turn, dict) else None
        raise UserError(
            f"{where}: turn {number + 1} is from {said!r}, not {speaker!r}; turns must alternate, human first"
        )
    if not isinstance(turn.get("value"), str):
        raise UserError(f"{where}: turn {number + 1} has no text in `value`; mend the record")
    return str(turn["value"]).strip()


def _name(record: Any, number: int) -> str:
    return str(record.get("id", number)) if isinstance(record, dict) else str(number)
