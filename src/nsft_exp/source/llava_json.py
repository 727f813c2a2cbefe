"""Samples from a file in LLaVA's conversation format (LLaVA-Instruct-150k, mix665k, the toy world's).

    [{"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
      "conversations": [{"from": "human", "value": "<image>\\nQ"}, {"from": "gpt", "value": "A"}, ...]}, ...]

`<image>` stands once, in the first human turn, before or after its text; a record without `image` has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from nsft_exp.records import Exchange, Sample, UserError
from nsft_exp.source.file import FileSource, MakesFiles, one_of
from nsft_exp.source.image_path import image_path
from nsft_exp.source.reading import JsonFile, Records

IMAGE = "<image>"
TurnChoice = Literal["first", "last", "random", "all"]
SPEAKERS = ("human", "gpt")
TURNS: tuple[str, ...] = ("first", "last", "random", "all")


class LlavaJson(FileSource):
    """A source in LLaVA's format.

    `turn` says which answer of a conversation is aligned (`all`: every one, each its own sample); the
    exchanges before it become the sample's history, unless `history` is false. `images`: `with`, `without` or
    `all` records. `image_prefix` keeps only records whose image path starts so (`textvqa/`: mix665k's part
    from TextCaps). `prompt_suffix` is appended to the aligned question unless that, or a question in its
    history, ends so already. The other arguments are FileSource's.
    """

    def __init__(
        self,
        file: str,
        image_root: str,
        size: int | None = None,
        seed: int = 0,
        turn: TurnChoice = "last",
        images: Literal["all", "with", "without"] = "all",
        image_prefix: str = "",
        prompt_suffix: str = "",
        exif: str = "apply",
        check: bool = True,
        files_from: MakesFiles | None = None,
        history: bool = True,
        broken: Literal["refuse", "drop"] = "refuse",
        exclude: Any = None,
    ) -> None:
        """Raises UserError for an unknown choice."""
        one_of("source.images", images, ("all", "with", "without"))
        aligned = Aligned(turn, history, prompt_suffix, seed)
        form = LlavaForm(aligned, image_root, images, image_prefix)
        super().__init__(form, file, size, seed, exif, check, broken, exclude, files_from)


@dataclass(frozen=True)
class Aligned:
    """Which exchanges of a conversation become samples, and how their questions are put."""

    turn: TurnChoice = "last"
    history: bool = True
    prompt_suffix: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("source.turn", self.turn, TURNS)

    def samples(
        self, name: str, talk: list[Exchange], image: str | None, cluster: str, meta: dict[str, Any]
    ) -> list[Sample]:
        """Return the samples of a conversation; with `turn=all` their ids are numbered."""
        return [
            Sample(
                id=f"{name}#{turn}" if self.turn == "all" else name,
                image=image,
                question=self._asked(talk, turn),
                answer=talk[turn].answer,
                history=tuple(talk[:turn]) if self.history else (),
                cluster=cluster,
                meta=meta,
            )
            for turn in self._picks(name, len(talk))
        ]

    def _picks(self, name: str, count: int) -> range:
        if self.turn == "all":
            return range(count)
        last = count - 1
        pick = {"first": 0, "last": last}.get(self.turn)
        if pick is None:
            pick = Random(f"{self.seed}/{name}").randint(0, last)
        return range(pick, pick + 1)

    def _asked(self, talk: list[Exchange], turn: int) -> str:
        """The question with the suffix, unless it or an earlier one has it: the mix has it once."""
        shown = talk[: turn + 1] if self.history else talk[turn : turn + 1]
        if any(exchange.question.endswith(self.prompt_suffix) for exchange in shown):
            return talk[turn].question
        return talk[turn].question + self.prompt_suffix


@dataclass(frozen=True)
class LlavaForm:
    """LLaVA's format (see above); `images` and `image_prefix` say which records are of interest."""

    aligned: Aligned
    image_root: str
    images: str = "all"
    image_prefix: str = ""

    def records(self, file: Path) -> Records:
        """The items of a JSON list."""
        return JsonFile(file)

    def name(self, key: str | None, record: Any, number: int) -> str:
        """The record's `id`, else its number."""
        return str(record.get("id", number)) if isinstance(record, dict) else str(number)

    def once(self, record: Any) -> bool:
        """False: the records of one id are different conversations about an image."""
        return False

    def samples(self, name: str, record: Any) -> list[Sample]:
        """The record's samples. Raises UserError for anything but LLaVA's format."""
        if not isinstance(record, dict):
            raise UserError("is not an object with `conversations`; correct it")
        if not self._wanted(record):
            return []
        talk, image = read_conversation(record), image_path(self.image_root, record.get("image"))
        meta = {k: v for k, v in record.items() if k not in ("id", "image", "conversations")}
        return self.aligned.samples(name, talk, image, str(record.get("image") or name), meta)

    def _wanted(self, record: dict[str, Any]) -> bool:
        image = record.get("image")
        if (self.images == "with" and image is None) or (self.images == "without" and image is not None):
            return False
        return not self.image_prefix or str(image or "").startswith(self.image_prefix)


def read_conversation(record: dict[str, Any]) -> list[Exchange]:
    """Return a record's exchanges, `<image>` taken out; UserError for anything but LLaVA's format."""
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise UserError("has no `conversations`; give it a human and a gpt turn, or remove it")
    if len(turns) % 2:
        raise UserError("the last human turn has no answer; add the gpt turn, or remove the record")
    texts = [_text(turn, number) for number, turn in enumerate(turns)]
    wanted = int(record.get("image") is not None)
    first, *later = [text.count(IMAGE) for text in texts]
    if first != wanted or any(later):
        raise UserError(
            f"`{IMAGE}` occurs {first + sum(later)} times"
            f"{' and not only in the first turn' if any(later) else ''}; it must stand "
            f"{'once, in the first human turn' if wanted else 'nowhere, since the record has no image'}"
        )
    if wanted:
        texts[0] = texts[0].replace(IMAGE, "").strip()
    if not all(texts):
        raise UserError(f"turn {texts.index('') + 1} is empty; give it text, or remove the record")
    return [Exchange(q, a) for q, a in zip(texts[::2], texts[1::2], strict=True)]


def _text(turn: Any, number: int) -> str:
    speaker = SPEAKERS[number % 2]
    if not isinstance(turn, dict) or turn.get("from") != speaker:
        said = turn.get("from") if isinstance(turn, dict) else None
        raise UserError(
            f"turn {number + 1} is from {said!r}, not {speaker!r}; turns must alternate, human first"
        )
    return whole_text(turn.get("value"), f"turn {number + 1}", "value")


def whole_text(value: Any, what: str, key: str) -> str:
    """Return a stripped text; UserError where it is none, or holds half of a two-part character."""
    if not isinstance(value, str):
        raise UserError(f"{what} has no text in `{key}`; mend the record")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{what} holds half a character (a lone surrogate); mend the text") from None
    return value.strip()
