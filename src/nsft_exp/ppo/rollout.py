"""Prompts and the policy's answers to them, as the sequences that its models read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nsft_exp.batching import global_batches
from nsft_exp.conversation import PROMPT
from nsft_exp.encoding import EncodedConversation, EncodedExample
from nsft_exp.interfaces import LoadedVLM
from nsft_exp.records import ROLES, Decoding, Example, Request, Turn, UserError
from nsft_exp.vlm.loaded import LoadedHF

log = logging.getLogger(__name__)

ANSWER = ROLES.index("chosen")


@dataclass(frozen=True)
class Prompt:
    """A question to the policy, and the ids between which the reward model reads the answer to it."""

    id: str
    image: str | None
    view: str
    turns: tuple[Turn, ...]
    grid: tuple[int, ...]
    ids: tuple[int, ...]
    before: tuple[int, ...]
    """What the reward model reads before the answer: facts may be in it."""
    after: tuple[int, ...]
    """From the answer's end token on; the score is read at its last token."""

    def room(self, max_length: int) -> int:
        """How many tokens an answer may have within a sequence's `max_length`."""
        return max_length - max(len(self.ids), len(self.before) + len(self.after))


@dataclass(frozen=True)
class Answer:
    """What the policy said to the prompt of this number; `logps` are those of the engine that made it."""

    number: int
    ids: tuple[int, ...]
    logps: tuple[float, ...]
    text: str
    ended: bool
    """Its last id is an end token."""


def encode_prompts(
    examples: Sequence[Example], loaded: LoadedHF, max_length: int
) -> tuple[list[Prompt], dict[str, int]]:
    """Return the examples' prompts and how many were `dropped`, as they leave no room for an answer."""
    prompts = [_encode(example, loaded) for example in examples]
    kept = [prompt for prompt in prompts if prompt.room(max_length) > 0]
    dropped = len(prompts) - len(kept)
    if dropped:
        log.warning("%d prompts of %d tokens or more dropped; raise recipe.max_length", dropped, max_length)
    return kept, {"dropped": dropped}


def _encode(example: Example, loaded: LoadedHF) -> Prompt:
    asked, judged = example.conversations
    turn = len(asked.turns)
    try:
        layout = loaded.layout(asked.image, asked.view) if asked.image else None
        tokens = layout.tokens if layout else None
        ids = loaded.chat.encode(asked.turns, tokens).ids
        before = loaded.chat.encode(judged.turns[:turn], tokens).ids
        empty = (*judged.turns[:turn], replace(judged.turns[turn], text=""), *judged.turns[turn + 1 :])
        whole = loaded.chat.encode(empty, tokens).ids
    except UserError as error:
        raise UserError(f"example {example.id}: {error}") from None
    grid = layout.grid if layout else ()
    return Prompt(example.id, asked.image, asked.view, asked.turns, grid, ids, before, whole[len(before) :])


class Iterations:
    """A stateful loader: the numbers of each iteration's prompts, `epochs` passes over all of them."""

    def __init__(self, num_prompts: int, size: int, epochs: int, seed: int) -> None:
        self.parts = global_batches(num_prompts, size, epochs, seed)
        self.position = 0

    def __len__(self) -> int:
        """Iterations from the beginning, whatever the position."""
        return len(self.parts)

    def __iter__(self) -> Iterator[list[int]]:
        for part in self.parts[self.position :]:
            self.position += 1
            yield part

    def state_dict(self) -> dict[str, int]:
        """Where the loader is."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position."""
        self.position = state["position"]

    def num_steps(self, batch_size: int, inner_epochs: int) -> int:
        """The optimizer steps of all iterations."""
        return sum(inner_epochs * -(-len(part) // batch_size) for part in self.parts)


def ask(
    engine: LoadedVLM,
    prompts: Sequence[Prompt],
    numbers: Sequence[int],
    decoding: Decoding,
    max_length: int,
    image_token: int,
) -> list[Answer]:
    """Have the engine answer the prompts of these numbers; in their order.

    An answer with an image token in it can be read by no model: it is left out.
    """
    requests = [_request(prompts[n], n, decoding, max_length) for n in numbers]
    replies = {key: reply for key, (reply, *_) in engine.generate(requests)}
    found = [
        Answer(n, reply.ids, reply.logps, reply.text, reply.finish == "stop")
        for n, request in zip(numbers, requests, strict=True)
        for reply in (replies[request.id],)
    ]
    return [answer for answer in found if image_token not in answer.ids]


def _request(prompt: Prompt, number: int, decoding: Decoding, max_length: int) -> Request:
    limit = min(decoding.max_new_tokens, prompt.room(max_length))
    name = f"{prompt.id}|{number}"  # two samples may have the same id
    return Request(
        name, prompt.image, prompt.turns, prompt.view, decoding=replace(decoding, max_new_tokens=limit)
    )


def spoken(prompt: Prompt, answer: Answer) -> EncodedExample:
    """The sequence that policy, reference and value read: every token of the answer is supervised."""
    roles = [PROMPT] * len(prompt.ids) + [ANSWER] * len(answer.ids)
    return _sequence(prompt, (*prompt.ids, *answer.ids), roles)


def judged(prompt: Prompt, answer: Answer) -> EncodedExample:
    """The sequence that the reward model reads, its last token supervised. An answer without end gets one."""
    said = answer.ids[:-1] if answer.ended else answer.ids
    ids = (*prompt.before, *said, *prompt.after)
    return _sequence(prompt, ids, [PROMPT] * (len(ids) - 1) + [ANSWER])


def _sequence(prompt: Prompt, ids: Sequence[int], roles: Sequence[int]) -> EncodedExample:
    arrays = np.array(ids, dtype=np.int32), np.array(roles, dtype=np.int8)
    return EncodedExample(
        prompt.id, (EncodedConversation(*arrays, None, prompt.image, prompt.view, prompt.grid),)
    )
