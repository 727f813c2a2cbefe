"""Rows of a data set: neutral ones made from items or examples, and how TRL and LLaMA-Factory write them.

TRL's conversational vision formats (`messages`; `prompt` with `completion`; `prompt` with `chosen` and
`rejected`; each with `images`), and LLaMA-Factory's ShareGPT form with the roles `human` and `gpt`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nsft_exp.records import Example, Item, Sample, Turn, UserError

IMAGE = "<image>"
"""LLaMA-Factory's mark of where an image stands."""


@dataclass(frozen=True)
class Row:
    """One row: an image or none, turns of a conversation, and answers to it by their column's name.

    A row without `answers` is a whole conversation.
    """

    id: str
    image: str | None
    turns: tuple[Turn, ...]
    answers: dict[str, Turn] = field(default_factory=dict)


def preference_rows(items: Iterable[Item]) -> tuple[list[Row], Counter[str]]:
    """A row for every pair (`chosen`, `rejected`), and the counts of samples without one, by status."""
    rows, left_out = [], Counter[str]()
    for item in items:
        pair = item.preference
        if pair is None or pair.status != "ok":
            left_out[pair.status if pair else "no preference"] += 1
            continue
        others = [other["rejected"] for other in pair.details.get("others", ())]
        for number, rejected in enumerate((pair.rejected, *others)):
            answers = {"chosen": Turn("chosen", pair.chosen), "rejected": Turn("rejected", rejected)}
            name = f"{item.sample.id}#{number}" if number else item.sample.id
            rows.append(Row(name, item.sample.image, question_turns(item.sample), answers))
    return rows, left_out


def question_turns(sample: Sample) -> tuple[Turn, ...]:
    """A sample's earlier exchanges and its question."""
    turns = [Turn("prompt", text) for x in sample.history for text in (x.question, x.answer)]
    return (*turns, Turn("prompt", sample.question))


def conversation_rows(examples: Iterable[Example]) -> list[Row]:
    """A row for every conversation of the examples (`id/1` is an example's second).

    Raises UserError for an image under a view, which no file holds, and an answer that is trained against.
    """
    rows = []
    for example in examples:
        for number, conversation in enumerate(example.conversations):
            name = f"{example.id}/{number}" if number else example.id
            if any(turn.role in ("rejected", "mismatch") for turn in conversation.turns):
                raise UserError(
                    f"example {name}: the method trains against an answer, which plain conversations cannot "
                    "say; export its pairs with kind=preference"
                )
            if conversation.view != "clean":
                raise UserError(
                    f"example {name}: its image is seen through {conversation.view}, which no file holds; "
                    "only methods that train on images as they are can be exported"
                )
            rows.append(Row(name, conversation.image, conversation.turns))
    return rows


def completion_rows(examples: Iterable[Example]) -> list[Row]:
    """Conversation rows with the last answer apart, as the only one that is trained on.

    Raises UserError for a conversation in which an earlier answer is trained on too.
    """
    rows = []
    for row in conversation_rows(examples):
        if supervised(row)[:-1].count(True):
            raise UserError(
                f"example {row.id}: more than its last answer is trained on, which kind=prompt_completion "
                "cannot say; use kind=sft"
            )
        rows.append(Row(row.id, row.image, row.turns[:-1], {"completion": row.turns[-1]}))
    return rows


def supervised(row: Row) -> list[bool]:
    """Of each answer in a row's turns, whether the method trains on it."""
    return [turn.role != "prompt" for turn in row.turns[1::2]]


def trl_row(row: Row, images: list[str]) -> dict[str, Any]:
    """The row as TRL reads it: `images` are paths beside the file.

    `images_file_names` says them again: by that name `datasets` opens them, as the column `images`.
    """
    written = [_message(number, turn, bool(images)) for number, turn in enumerate(row.turns)]
    if row.answers:
        columns: dict[str, Any] = {"prompt": written}
        columns |= {name: [_message(1, turn, False)] for name, turn in row.answers.items()}
    else:
        columns = {"messages": written, "answer_roles": [turn.role for turn in row.turns[1::2]]}
    return {"id": row.id, "images": images, **columns, "images_file_names": images}


def _message(number: int, turn: Turn, has_image: bool) -> dict[str, Any]:
    image = [{"type": "image"}] if has_image and number == 0 else []
    return {
        "role": "assistant" if number % 2 else "user",
        "content": [*image, {"type": "text", "text": turn.text}],
    }


def llama_factory_row(row: Row, images: list[str]) -> dict[str, Any]:
    """The row in LLaMA-Factory's ShareGPT form; the image stands before the first question's text.

    Raises UserError where a text holds the mark of an image.
    """
    for turn in (*row.turns, *row.answers.values()):
        if IMAGE in turn.text:
            raise UserError(f"example {row.id}: the text {turn.text[:60]!r} holds {IMAGE}; take it out")
    turns = (*row.turns, *([row.answers["completion"]] if "completion" in row.answers else []))
    columns: dict[str, Any] = {
        "conversations": [_remark(number, turn, bool(images)) for number, turn in enumerate(turns)]
    }
    pair = {name: _remark(1, turn, False) for name, turn in row.answers.items() if name != "completion"}
    return {"id": row.id, **columns, **pair, "images": images}


def _remark(number: int, turn: Turn, has_image: bool) -> dict[str, str]:
    """A remark as training writes it: answers and the text beside an image are stripped."""
    if has_image and number == 0:
        return {"from": "human", "value": f"{IMAGE}\n{turn.text.strip()}"}
    return (
        {"from": "gpt", "value": turn.text.strip()} if number % 2 else {"from": "human", "value": turn.text}
    )


def dataset_info(name: str, kind: str) -> dict[str, Any]:
    """LLaMA-Factory's description of the data set for `dataset_info.json`."""
    columns = {"messages": "conversations", "images": "images"}
    entry: dict[str, Any] = {"file_name": "data.jsonl", "formatting": "sharegpt", "columns": columns}
    if kind == "preference":
        columns |= {"chosen": "chosen", "rejected": "rejected"}
        entry["ranking"] = True
    return {name: entry}
