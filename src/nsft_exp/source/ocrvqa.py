"""OCR-VQA (Mishra et al. 2019): questions about book covers, from its own file or from LLaVA's mix.

    dataset.json             {key: {imageURL, questions [..], answers [..] (parallel), title, authorName,
                             genre, split: 1 train, 2 validation, 3 test}}
    llava_v1_5_mix665k.json  its records with an image under `ocr_vqa/`: a cover's questions as a conversation

An image is `<key><extension of imageURL>` in `image_folder`; LLaVA keeps all of them as `.jpg`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from nsft_exp.records import Exchange, Sample, UserError
from nsft_exp.source.file import FileSource, one_of
from nsft_exp.source.image_path import image_path
from nsft_exp.source.llava_json import Aligned, LlavaForm, TurnChoice, whole_text
from nsft_exp.source.reading import JsonFile, Records

SPLITS = {"train": 1, "validation": 2, "test": 3}


class OcrVqa(FileSource):
    """A source of short answers about book covers.

    `file` is either of the two above. `split`, `image_folder` (beneath `image_root`) and `extension` (None:
    imageURL's) are for OCR-VQA's own file, `image_prefix` is for the mix. `history: false` asks each question
    alone. The other arguments are LlavaJson's.
    """

    def __init__(
        self,
        file: str,
        image_root: str,
        image_folder: str = "ocr_vqa/images",
        image_prefix: str = "ocr_vqa/",
        extension: str | None = None,
        split: Literal["train", "validation", "test", "all"] = "train",
        size: int | None = None,
        seed: int = 0,
        turn: TurnChoice = "random",
        history: bool = False,
        prompt_suffix: str = "",
        exif: str = "apply",
        check: bool = True,
        broken: Literal["refuse", "drop"] = "refuse",
        exclude: Any = None,
    ) -> None:
        """Raises UserError for an unknown choice."""
        one_of("source.split", split, (*SPLITS, "all"))
        mix = LlavaForm(Aligned(turn, history, prompt_suffix, seed), image_root, image_prefix=image_prefix)
        form = OcrVqaForm(mix, image_folder, extension, SPLITS.get(split))
        super().__init__(form, file, size, seed, exif, check, broken, exclude)


@dataclass(frozen=True)
class OcrVqaForm:
    """OCR-VQA's format, or (records with `conversations`) LLaVA's."""

    mix: LlavaForm
    image_folder: str
    extension: str | None
    split: int | None
    """None: all."""

    def records(self, file: Path) -> Records:
        """The members of `dataset.json`, or the items of the mix."""
        return JsonFile(file, "members")

    def name(self, key: str | None, record: Any, number: int) -> str:
        """The record's key (ISBN), in the mix its id."""
        return self.mix.name(key, record, number) if key is None else key

    def once(self, record: Any) -> bool:
        """False."""
        return False

    def samples(self, name: str, record: Any) -> list[Sample]:
        """The samples of a cover. Raises UserError for anything but these formats."""
        if isinstance(record, dict) and "conversations" in record:
            return self.mix.samples(name, record)
        if not isinstance(record, dict) or "imageURL" not in record:
            raise UserError("has no `imageURL`; give OCR-VQA's dataset.json or LLaVA's mix")
        if record.get("split") not in SPLITS.values():
            raise UserError(f"`split` is {record.get('split')!r}, not 1, 2 or 3; mend the record")
        if self.split not in (None, record["split"]):
            return []
        image = os.path.join(self.image_folder, self._file(name, record["imageURL"]))
        meta = {k: record[k] for k in ("title", "authorName", "genre", "split") if k in record}
        talk, path = read_questions(record), image_path(self.mix.image_root, image)
        return self.mix.aligned.samples(name, talk, path, image, meta)

    def _file(self, name: str, url: Any) -> str:
        """The image's file name; a key that the file has twice was numbered (`key~2`)."""
        key = name.partition("~")[0]
        if self.extension is not None:
            return key + self.extension
        if not isinstance(url, str) or not os.path.splitext(urlsplit(url).path)[1]:
            raise UserError("`imageURL` has no extension; mend it, or set source.extension=.jpg")
        return key + os.path.splitext(urlsplit(url).path)[1]


def read_questions(record: dict[str, Any]) -> list[Exchange]:
    """Return a cover's questions with their answers; UserError where the lists are not parallel, or empty."""
    questions, answers = record.get("questions"), record.get("answers")
    if not isinstance(questions, list) or not isinstance(answers, list) or not questions:
        raise UserError("has no list of `questions` with `answers`; mend or remove the record")
    if len(questions) != len(answers):
        raise UserError(
            f"has {len(questions)} questions but {len(answers)} answers; mend or remove the record"
        )
    talk = []
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True), 1):
        texts = [
            whole_text(question, f"question {number}", "questions"),
            whole_text(answer, f"answer {number}", "answers"),
        ]
        if not all(texts):
            raise UserError(f"question {number} or its answer is empty; give it text, or remove it")
        talk.append(Exchange(*texts))
    return talk
