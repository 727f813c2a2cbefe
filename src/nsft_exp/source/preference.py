"""Preference files that exist already: pairs of a chosen and a rejected answer about an image.

    TRL            {images, prompt: [messages], chosen: [message], rejected: [message]}, or texts; without
                   `prompt` it is what chosen and rejected begin alike with
    LLaMA-Factory  {conversations: [{from, value}], chosen: {from, value}, rejected: {from, value}, images}
    RLHF-V         {image {bytes, path}, text: '{"question", "chosen", "rejected"}', image_path, idx};
                   RLAIF-V the same with question, chosen and rejected as columns of their own
    SeVa           {question, chosen, reject, image_id: "x.jpg"}; HA-DPO's yes/no pairs the same with a number
                   as image_id (Visual Genome's), those with `correct: true` being no pair

As .json (a list), .jsonl, .parquet, or a folder: `nsft export`'s, parquet files, one that `datasets` saved.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from nsft_exp.records import Exchange, Sample, UserError
from nsft_exp.source.file import FileSource
from nsft_exp.source.image_path import image_path
from nsft_exp.source.llava_json import IMAGE, whole_text
from nsft_exp.source.preference_files import UNPACKED, open_records
from nsft_exp.source.reading import Records

ANSWERS = ("chosen", "rejected", "reject")
NAMES_OF_IMAGES = (
    "images",
    "image_path",
    "image",
    "image_id",
    "images_file_names",
    "file_names",
    "file_name",
)
"""Where an image is named, the first one that is there counts."""
BEGUN = ("prompt", "conversations", "question")
"""Where the conversation is that the answers end."""
USED = {*ANSWERS, *NAMES_OF_IMAGES, *BEGUN, "text", "id"}


class Preferences(FileSource):
    """A source whose samples bring their rejected answer (`pairing=given` takes it).

    `image_root` None: beside the file. Images that are inside the file (parquet) are written to `folder`.
    `prompt_suffix` is appended to the question unless it ends so. The other arguments are FileSource's.
    """

    def __init__(
        self,
        file: str,
        folder: str,
        image_root: str | None = None,
        prompt_suffix: str = "",
        size: int | None = None,
        seed: int = 0,
        exif: str = "apply",
        check: bool = True,
        broken: Literal["refuse", "drop"] = "refuse",
        exclude: Any = None,
    ) -> None:
        """Raises UserError for an unknown choice."""
        root = image_root or str(Path(file) if Path(file).is_dir() else Path(file).parent)
        form = PreferenceForm(root, folder, prompt_suffix)
        super().__init__(form, file, size, seed, exif, check, broken, exclude)


@dataclass(frozen=True)
class PreferenceForm:
    """The formats above, told apart record by record."""

    image_root: str
    folder: str
    prompt_suffix: str = ""

    def records(self, file: Path) -> Records:
        """The rows of a file or folder."""
        return open_records(file, Path(self.folder))

    def name(self, key: str | None, record: Any, number: int) -> str:
        """The record's `id` or `idx`, else its number."""
        named = record if isinstance(record, dict) else {}
        given = [named[key] for key in ("id", "idx") if named.get(key) is not None]
        return str(given[0] if given else number)

    def once(self, record: Any) -> bool:
        """False."""
        return False

    def samples(self, name: str, record: Any) -> list[Sample]:
        """The sample of a pair, its rejected answer with it; none for a row that says that it is no pair."""
        if not isinstance(record, dict):
            raise UserError("is not an object with `chosen` and `rejected`; correct it")
        if record.get("correct") is True:
            return []
        record = _unfolded(record)
        history, question, chosen, rejected = read_pair(record)
        unpacked, image = _image(record)
        return [
            Sample(
                id=name,
                image=unpacked or image_path(self.image_root, image),
                question=question if question.endswith(self.prompt_suffix) else question + self.prompt_suffix,
                answer=chosen,
                history=history,
                cluster=image or os.path.basename(unpacked) or name,
                meta={k: v for k, v in record.items() if k not in USED and isinstance(v, (str, int, float))},
                rejected=rejected,
            )
        ]


def _unfolded(record: dict[str, Any]) -> dict[str, Any]:
    """The record with RLHF-V's `text`, a JSON object written as a string, in its place."""
    text = record.get("text")
    if not isinstance(text, str) or "chosen" in record:
        return record
    try:
        inner = json.loads(text)
    except ValueError:
        inner = None
    if not isinstance(inner, dict):
        raise UserError("`text` is not a JSON object with question, chosen and rejected; mend the record")
    return {**record, **inner}


def read_pair(record: dict[str, Any]) -> tuple[tuple[Exchange, ...], str, str, str]:
    """Return (history, question, chosen, rejected), images' marks taken out.

    Raises UserError for anything but a question with two answers of one turn each.
    """
    chosen, rejected = (_messages(record, names) for names in (ANSWERS[:1], ANSWERS[1:]))
    begun = next((record[key] for key in BEGUN if record.get(key) is not None), None)
    if begun is None:
        same = [a for a, _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))]
        prompt, chosen, rejected = same, chosen[len(same) :], rejected[len(same) :]
        if chosen == rejected == []:  # an equal pair
            prompt, chosen, rejected = same[:-1], same[-1:], same[-1:]
    else:
        prompt = _said(begun, "user", "the prompt")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if [who for who, _ in answer] != ["assistant"]:
            raise UserError(f"`{name}` is not one answer of the assistant; mend or remove the record")
    history, question = _turns(prompt)
    if not chosen[0][1]:
        raise UserError("the chosen answer is empty; give it text, or remove the record")
    return history, question, chosen[0][1], rejected[0][1]


Said = list[tuple[str, str]]
"""(role, text) of each turn."""
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


def _messages(record: dict[str, Any], names: tuple[str, ...]) -> Said:
    value = next((record[name] for name in names if record.get(name) is not None), None)
    if value is None:
        raise UserError(f"has no `{names[0]}` answer; this must be a file of preferences")
    return _said(value, "assistant", f"`{names[0]}`")


def _said(value: Any, role: str, what: str) -> Said:
    """Turns from a text (spoken by `role`), a message, or a list of messages."""
    if isinstance(value, str):
        return [(role, whole_text(value, what, "text"))]
    messages = value if isinstance(value, list) else [value]
    found = []
    for message in messages:
        if not isinstance(message, dict):
            raise UserError(f"{what} is neither text nor messages; mend the record")
        who = ROLES.get(str(message.get("role", message.get("from"))), "")
        if who not in ("user", "assistant"):
            raise UserError(
                f"{what} has a turn of {who or 'an unknown role'}; only user and assistant can be kept"
            )
        found.append((who, _content(message.get("content", message.get("value")), what)))
    return found


def _content(content: Any, what: str) -> str:
    """A message's text, of a string or of typed parts; image parts leave LLaVA's mark."""
    if not isinstance(content, list):
        return whole_text(content, what, "content")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "image"):
            raise UserError(f"{what} has a part of type {kind!r}; only text and one image can be read")
        parts.append(IMAGE if kind == "image" else whole_text(part.get("text"), what, "text"))
    return "\n".join(parts)


def _turns(prompt: Said) -> tuple[tuple[Exchange, ...], str]:
    roles = [who for who, _ in prompt]
    if not roles:
        raise UserError("has no question; give it a `prompt` or a `question`, or remove the record")
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise UserError("the prompt's turns do not alternate from user to user; mend or remove the record")
    marks = [text.count(IMAGE) for _, text in prompt]
    if sum(marks) > 1 or any(marks[1:]):
        raise UserError(f"the prompt has {sum(marks)} images; one, in the first turn, can be read")
    texts = [text.replace(IMAGE, "").strip() for _, text in prompt]
    if not all(texts):
        raise UserError("a turn of the prompt is empty; give it text, or remove the record")
    pairs = zip(texts[:-1:2], texts[1::2], strict=True)
    return tuple(Exchange(q, a) for q, a in pairs), texts[-1]


def _image(record: dict[str, Any]) -> tuple[str, str | None]:
    """The file to which the record's image was written (empty: none was), and the first name that it has."""
    values = [_one(record[key], key) for key in NAMES_OF_IMAGES if record.get(key) not in (None, [], "")]
    unpacked = [str(value[UNPACKED]) for value in values if isinstance(value, dict) and UNPACKED in value]
    names = [name for value in values if (name := value.get("path") if isinstance(value, dict) else value)]
    return unpacked[0] if unpacked else "", names[0] if names else None


def _one(value: Any, key: str) -> Any:
    if isinstance(value, list):
        if len(value) > 1:
            raise UserError(f"`{key}` names {len(value)} images; one can be read")
        value = value[0]
    return f"{value}.jpg" if isinstance(value, int) and key == "image_id" else value
