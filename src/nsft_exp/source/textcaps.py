"""TextCaps (Sidorov et al. 2020): one-sentence captions that read the image's text, or LLaVA's mix of them.

TextCaps_0.1_{train,val}.json         {data: [{image_id, image_path, caption_id, caption_str,
                                      reference_strs [..], ...}]}, a row for each caption of an image
TextVQA_Rosetta_OCR_v0.2_train.json   {data: [{image_id, ocr_tokens [..], ocr_info}]}
llava_v1_5_mix665k.json               its records with an image under `textvqa/`, which are these captions
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, Literal

from nsft_exp.records import Sample, UserError
from nsft_exp.source.file import FileSource, one_of
from nsft_exp.source.image_path import image_path
from nsft_exp.source.llava_json import Aligned, LlavaForm, TurnChoice, whole_text
from nsft_exp.source.reading import BrokenFile, JsonFile, Records, version

PROMPT = "Provide a one-sentence caption for the provided image."
"""What LLaVA's mix asks."""
OCR_LINE = "Reference OCR token: "


class TextCaps(FileSource):
    """A source of captions.

    `file` is TextCaps' own or the mix. For TextCaps' own: `caption` is the `first` of an image, a `random`
    one of its references, or `all` (each its own sample); the question is `prompt` and, where `ocr_file` is
    named, a line with the image's OCR tokens; images are in `image_folder` beneath `image_root`. For the mix:
    `image_prefix` and `turn`. The other arguments are FileSource's.
    """

    def __init__(
        self,
        file: str,
        image_root: str,
        ocr_file: str | None = None,
        image_folder: str = "textvqa/train_images",
        image_prefix: str = "textvqa/",
        caption: Literal["first", "random", "all"] = "first",
        prompt: str = PROMPT,
        prompt_suffix: str = "",
        turn: TurnChoice = "last",
        size: int | None = None,
        seed: int = 0,
        exif: str = "apply",
        check: bool = True,
        broken: Literal["refuse", "drop"] = "refuse",
        exclude: Any = None,
    ) -> None:
        """Raises UserError for an unknown choice."""
        one_of("source.caption", caption, ("first", "random", "all"))
        aligned = Aligned(turn, prompt_suffix=prompt_suffix, seed=seed)
        mix = LlavaForm(aligned, image_root, image_prefix=image_prefix)
        form = TextCapsForm(mix, image_folder, prompt + prompt_suffix, caption, ocr_file)
        self.ocr_file = ocr_file
        super().__init__(form, file, size, seed, exif, check, broken, exclude)

    def files(self) -> list[Path]:
        """The captions' file, and the OCR tokens' where there is one (the mix needs none)."""
        tokens = [Path(self.ocr_file)] if self.ocr_file else []
        return [*super().files(), *(file for file in tokens if file.exists())]


@dataclass(frozen=True)
class TextCapsForm:
    """TextCaps' format, or (records with `conversations`) LLaVA's."""

    mix: LlavaForm
    image_folder: str
    prompt: str
    caption: str
    ocr_file: str | None

    def records(self, file: Path) -> Records:
        """The rows of `data`, or the items of the mix."""
        return JsonFile(file, "data")

    def name(self, key: str | None, record: Any, number: int) -> str:
        """The image's id (`caption=all`: with the caption's), in the mix the record's id."""
        if not isinstance(record, dict) or "image_id" not in record:
            return self.mix.name(key, record, number)
        caption = f"#{record.get('caption_id', number)}" if self.caption == "all" else ""
        return f"{record['image_id']}{caption}"

    def once(self, record: Any) -> bool:
        """True unless every caption is wanted: an image's rows have the same references."""
        return self.caption != "all" and isinstance(record, dict) and "conversations" not in record

    def samples(self, name: str, record: Any) -> list[Sample]:
        """The sample of a caption. Raises UserError for anything but these formats."""
        if isinstance(record, dict) and "conversations" in record:
            return self.mix.samples(name, record)
        if not isinstance(record, dict) or not isinstance(record.get("image_id"), str):
            raise UserError("has no `image_id`; give TextCaps' own file or LLaVA's mix")
        key = record["image_id"]
        name_of_file = os.path.basename(str(record.get("image_path") or f"{key}.jpg"))
        image = os.path.join(self.image_folder, name_of_file)
        references = record.get("reference_strs", [])
        return [
            Sample(
                id=name,
                image=image_path(self.mix.image_root, image),
                question=self._question(key),
                answer=self._caption(record, references),
                cluster=image,
                meta={"references": references},
            )
        ]

    def _caption(self, record: dict[str, Any], references: Any) -> str:
        caption = record.get("caption_str")
        if self.caption == "random":
            if not isinstance(references, list) or not references:
                raise UserError("has no `reference_strs` to draw from; take source.caption=first")
            caption = Random(f"{self.mix.aligned.seed}/{record['image_id']}").choice(references)
        text = whole_text(caption, "the caption (the test split has none)", "caption_str")
        if not text:
            raise UserError("the caption is empty; give it text, or remove the row")
        return text

    def _question(self, image_id: str) -> str:
        if self.ocr_file is None:
            return self.prompt
        tokens = ocr_tokens(self.ocr_file, version(Path(self.ocr_file), "source.ocr_file")).get(image_id)
        if tokens is None:
            raise UserError(f"has no row in {self.ocr_file}; give the OCR file of the same split")
        return f"{self.prompt}\n{OCR_LINE}{', '.join(tokens)}"


@lru_cache(maxsize=2)
def ocr_tokens(file: str, content: str) -> dict[str, list[str]]:
    """Return the OCR tokens of every image of a Rosetta file, remembered for as long as `content` stays."""
    found: dict[str, list[str]] = {}
    for number, (_, row) in enumerate(JsonFile(Path(file), "data", "source.ocr_file")):
        tokens = row.get("ocr_tokens") if isinstance(row, dict) and "image_id" in row else None
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise BrokenFile(f"{file}: record {number}: has no `image_id` with `ocr_tokens`; fetch it again")
        found[str(row["image_id"])] = tokens
    return found
