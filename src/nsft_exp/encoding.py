"""From examples to arrays of tokens.

An example without a supervised token is refused here, image tokens are never cut, and what had to be trimmed
or dropped is counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from nsft_exp.conversation import PROMPT, ChatEncoder, Encoded, cut
from nsft_exp.images import Layout
from nsft_exp.records import Conversation, Example, UserError

log = logging.getLogger(__name__)

LayoutReader = Callable[[str, str], Layout]
"""(image, view) to its number of image tokens and its grid."""


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as compact arrays [T]; `weights` is None where all are 1."""

    ids: np.ndarray
    roles: np.ndarray
    weights: np.ndarray | None
    image: str | None
    view: str
    grid: tuple[int, ...] = ()
    """The grid of the image's features, where the model's pictures have one (see Layout)."""
    image_end: int = 0
    """Its tokens up to the last one of its image."""


@dataclass(frozen=True)
class EncodedExample:
    """An example's conversations as arrays."""

    id: str
    conversations: tuple[EncodedConversation, ...]

    @property
    def length(self) -> int:
        """Tokens of its longest conversation."""
        return max(len(c.ids) for c in self.conversations)

    @property
    def supervised(self) -> int:
        """Tokens that a loss can find."""
        return sum(int((c.roles != PROMPT).sum()) for c in self.conversations)


def encode_examples(
    examples: Iterable[Example], chat: ChatEncoder, images: LayoutReader | int, max_length: int
) -> tuple[list[EncodedExample], dict[str, int]]:
    """Return the encoded examples and the counts `trimmed` (answers cut at `max_length`) and `dropped`.

    `images` tells each image's layout; a number stands for that many tokens an image. An example is dropped
    when cutting would take its image or every supervised token of a conversation, and the log says which.
    Raises UserError, naming the example, for one that has no supervised token to begin with or an image that
    cannot be read.
    """
    counts = {"trimmed": 0, "dropped": 0}
    kept: list[EncodedExample] = []
    for example in examples:
        layouts = [_layout(example, c, images) for c in example.conversations]
        whole = [_encode(example, *pair, chat) for pair in zip(example.conversations, layouts, strict=True)]
        if not any(encoded.supervised for encoded in whole):
            raise UserError(f"example {example.id}: no token is supervised; give it an answer to learn")
        short = [cut(encoded, max_length, chat.image_token_id) for encoded in whole]
        if None in short:
            counts["dropped"] += 1
            _tell_why(example, whole[short.index(None)], chat, max_length)
            continue
        counts["trimmed"] += any(len(a.ids) != len(b.ids) for a, b in zip(whole, short, strict=True) if b)
        parts = zip(example.conversations, layouts, short, strict=True)
        token = chat.image_token_id
        kept.append(EncodedExample(example.id, tuple(_compact(c, of, e, token) for c, of, e in parts if e)))
    return kept, counts


def _tell_why(example: Example, encoded: Encoded, chat: ChatEncoder, max_length: int) -> None:
    """Write the reason why an example is dropped to the log."""
    lost = "its image" if chat.image_token_id in encoded.ids[max_length:] else "its whole answer"
    log.warning(
        "example %s: dropped: of its %d tokens %d are kept, which would cut %s; raise recipe.max_length",
        example.id,
        len(encoded.ids),
        max_length,
        lost,
    )


def _layout(example: Example, conversation: Conversation, images: LayoutReader | int) -> Layout | None:
    if conversation.image is None:
        return None
    if isinstance(images, int):
        return Layout(images)
    try:
        return images(conversation.image, conversation.view)
    except UserError as error:
        raise UserError(f"example {example.id}: {error}") from None


def _encode(
    example: Example, conversation: Conversation, layout: Layout | None, chat: ChatEncoder
) -> Encoded:
    try:
        return chat.encode(conversation.turns, layout.tokens if layout else None)
    except UserError as error:
        raise UserError(f"example {example.id}: {error}") from None


def _compact(
    conversation: Conversation, layout: Layout | None, encoded: Encoded, image_token: int
) -> EncodedConversation:
    plain = encoded.weights.count(1.0) == len(encoded.weights)
    ids = np.array(encoded.ids, dtype=np.int32)
    return EncodedConversation(
        ids=ids,
        roles=np.array(encoded.roles, dtype=np.int8),
        weights=None if plain else np.array(encoded.weights, dtype=np.float32),
        image=conversation.image,
        view=conversation.view,
        grid=layout.grid if layout else (),
        image_end=int(np.flatnonzero(ids == image_token)[-1]) + 1 if layout else 0,
    )
