"""From turns to token ids, with the role and the weight of every token.

One place decides how a conversation is written and tokenised; training, generation and scoring all use
it. For LLaVA the text is that of `vicuna_v1`, and the ids are those of its original code: the text is cut at
the image and each part is tokenised alone; an answer is its own tokens and the end token (as in LLaVA's
`preprocess_v1`). Where that code finds its token counts disagree and drops a sample with a printed warning
(an empty question, an answer that says ` ASSISTANT: `), the sample is kept here with the right mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nsft_exp.records import ROLES, Turn, UserError

IMAGE = "<image>"
PROMPT = ROLES.index("prompt")


@dataclass(frozen=True)
class PromptStyle:
    """The fixed text around the turns: `system user Q answer A end` and `between user Q answer A end` ...

    With an image the first question is `before_image <image> after_image Q`.
    """

    system: str
    user: str
    answer: str
    end: str
    between: str = ""
    before_image: str = ""
    after_image: str = "\n"
    answer_space: str = " "
    """What stands before an answer in the text; in the ids the tokenizer puts it there itself."""
    bos: bool = True
    system_start: str = ""
    system_end: str = " "
    """What stands around a system message that takes the place of `system`."""


VICUNA_V1 = PromptStyle(
    system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    ),
    user="USER: ",
    answer=" ASSISTANT:",
    end="</s>",
)
"""LLaVA 1.5 and LLaVA-NeXT on Vicuna, as they were trained and scored (LLaVA's `conv_vicuna_v1`)."""

CHATML = PromptStyle(
    system="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    user="<|im_start|>user\n",
    answer="<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
    between="\n",
    before_image="<|vision_start|>",
    after_image="<|vision_end|>",
    answer_space="",
    bos=False,
    system_start="<|im_start|>system\n",
    system_end="<|im_end|>\n",
)
"""Qwen2.5-VL's chat template with its default system message."""

PROMPT_STYLES = {"vicuna_v1": VICUNA_V1, "chatml": CHATML}


def prompt_style(name: str) -> PromptStyle:
    """Return the prompt style of this name; raises UserError for a name that does not exist."""
    if name not in PROMPT_STYLES:
        raise UserError(
            f"vlm.prompt_style={name}: there is no such style; there are {', '.join(PROMPT_STYLES)}"
        )
    return PROMPT_STYLES[name]


@dataclass(frozen=True)
class Encoded:
    """Token ids with, for each, its role (index in ROLES) and its weight in the loss."""

    ids: tuple[int, ...]
    roles: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def supervised(self) -> int:
        """How many tokens a loss can find (every role but `prompt`)."""
        return len(self.roles) - self.roles.count(PROMPT)


class ChatEncoder:
    """Writes conversations as token ids for one tokenizer and prompt style.

    `image_token_id` is repeated for every image feature. Parts of text are remembered, since questions and
    answers repeat.
    """

    def __init__(
        self, tokenizer: Any, style: PromptStyle = VICUNA_V1, image_token_id: int | None = None
    ) -> None:
        self.style = style
        self.image_token_id = (
            tokenizer.convert_tokens_to_ids(IMAGE) if image_token_id is None else image_token_id
        )
        self.bos = [tokenizer.bos_token_id] if style.bos else []
        self.end = tokenizer.convert_tokens_to_ids(style.end)
        self._backend = tokenizer.backend_tokenizer
        self._special = tuple(t.content for t in tokenizer.added_tokens_decoder.values() if t.special)
        self._known: dict[tuple[str, bool], list[int]] = {}

    def encode(self, turns: Sequence[Turn], num_image_tokens: int | None = None) -> Encoded:
        """Return the ids of a conversation, its answers with their end token under their turns' roles.

        `num_image_tokens` is the image's number of features; None: no image. Turns alternate, the user first.
        After a last user turn the ids end where the answer begins. Raises UserError for text that holds a
        special token, which would be read as one.
        """
        ids: list[int] = list(self.bos)
        roles = [PROMPT] * len(ids)
        weights = [1.0] * len(ids)
        for number, turn in enumerate(turns):
            if number % 2 == 0:
                part = self._question(turn.text, number == 0, num_image_tokens)
                role, weight = PROMPT, [1.0] * len(part)
            else:
                part, weight = self._answer(turn)
                role = ROLES.index(turn.role)
            ids += part
            roles += [role] * len(part)
            weights += weight
        return Encoded(tuple(ids), tuple(roles), tuple(weights))

    def prompt(
        self, turns: Sequence[Turn], num_image_tokens: int | None = None, answer_prefix: str = ""
    ) -> tuple[int, ...]:
        """Return the ids up to where the answer goes on: a last turn of the user, then `answer_prefix`."""
        return self.encode(turns, num_image_tokens).ids + tuple(self.text(answer_prefix.strip()))

    def answer(self, text: str) -> tuple[int, ...]:
        """Return the ids of a whole answer: its own tokens and the end token."""
        return (*self.text(text.strip()), self.end)

    def text(self, text: str) -> list[int]:
        """Return the ids of a text of the user's or the model's own, as the beginning of a text.

        Raises UserError where it holds a special token.
        """
        self._check(text)
        return self._ids(text)

    def _ids(self, text: str, follows_end: bool = False) -> list[int]:
        """The ids of a part of text that begins the text, or follows the end of an answer.

        The two differ: a tokenizer may put its space before the first piece of a text only.
        """
        if not text:
            return []
        key = (text, follows_end)
        if key not in self._known:
            if len(self._known) > 200_000:
                self._known.clear()
            whole = self.style.end + text if follows_end else text
            ids = self._backend.encode(whole, add_special_tokens=False).ids
            self._known[key] = ids[1:] if follows_end else ids
        return self._known[key]

    def _question(self, question: str, first: bool, num_image_tokens: int | None) -> list[int]:
        """The ids from the end of the answer before to where the next answer begins.

        As in the original, the text beside an image is stripped and other text is not; a turn that says
        nothing loses the space after its colon, and an image alone the line break after it.
        """
        self._check(question)
        style = self.style
        lead = (style.system if first else style.between) + style.user
        if first and num_image_tokens is not None:
            after = (style.after_image + question.strip()).rstrip() + style.answer
            image = [self.image_token_id] * num_image_tokens
            return self._ids(lead + style.before_image) + image + self._ids(after)
        if not question:
            return self._ids(lead.rstrip(" ") + style.answer.lstrip(" "), follows_end=not first)
        return self._ids(lead + question + style.answer, follows_end=not first)

    def _answer(self, turn: Turn) -> tuple[list[int], list[float]]:
        ids = [*self.text(turn.text.strip()), self.end]
        if not turn.spans:
            return ids, [1.0] * len(ids)
        return ids, [*self._weights(turn), 1.0]

    def _weights(self, turn: Turn) -> list[float]:
        """A token that overlaps a span has the span's weight (the last such span's); the others 1."""
        cut = len(turn.text) - len(turn.text.lstrip())
        offsets = self._backend.encode(turn.text.strip(), add_special_tokens=False).offsets
        weights = [1.0] * len(offsets)
        for start, end, weight in turn.spans:
            for number, (left, right) in enumerate(offsets):
                if left < end - cut and right > start - cut:
                    weights[number] = weight
        return weights

    def _check(self, text: str) -> None:
        if "<" not in text:
            return
        for token in self._special:
            if token in text:
                raise UserError(f"the text {text[:60]!r} holds the special token {token}; take it out")


def encode(
    tokenizer: Any, turns: Sequence[Turn], num_image_tokens: int | None, image_token_id: int | None = None
) -> Encoded:
    """Return the ids, roles and weights of one conversation (see ChatEncoder, which remembers text)."""
    return ChatEncoder(tokenizer, image_token_id=image_token_id).encode(turns, num_image_tokens)


def encode_prompt(
    tokenizer: Any,
    turns: Sequence[Turn],
    num_image_tokens: int | None,
    image_token_id: int | None = None,
    answer_prefix: str = "",
) -> tuple[int, ...]:
    """Return the ids of a conversation up to where its next answer goes on."""
    return ChatEncoder(tokenizer, image_token_id=image_token_id).prompt(
        turns, num_image_tokens, answer_prefix
    )


def cut(encoded: Encoded, max_length: int, image_token_id: int) -> Encoded | None:
    """Return the first `max_length` tokens, or None when that leaves nothing supervised or cuts the image.

    What is cut is always the end of the last answers: an image token is never lost silently.
    """
    if len(encoded.ids) <= max_length:
        return encoded
    if image_token_id in encoded.ids[max_length:]:
        return None
    short = Encoded(encoded.ids[:max_length], encoded.roles[:max_length], encoded.weights[:max_length])
    return short if short.supervised else None
