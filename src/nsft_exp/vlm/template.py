"""The chat template of a saved model: the one that makes other programs write training's token ids.

transformers, TRL and vLLM render a template to text and tokenise that as a whole, and take BOS from the
template. Training tokenises the parts around an image alone, so that a space (`▁`) begins each of them. Which
spaces say the same in one text depends on the tokenizer: the candidates are tried.
`{% generation %}` marks answers with their end token, what TRL's `assistant_only_loss` trains on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from nsft_exp.conversation import PROMPT, PromptStyle
from nsft_exp.records import Turn

TEMPLATE = (
    "{% for message in messages %}{% set said = namespace(text='', image=false) %}"
    "{% if message['content'] is string %}{% set said.text = message['content'] %}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% set said.image = true %}"
    "{% elif part['type'] == 'text' %}{% set said.text = said.text + part['text'] %}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if loop.first %}{{ BOS }}{% if message['role'] != 'system' %}{{ SYSTEM }}{% endif %}"
    "{% elif message['role'] == 'user' and loop.previtem['role'] != 'system' %}{{ BETWEEN }}{% endif %}"
    "{% if message['role'] == 'system' %}{{ SYSTEM_START + (said.text | trim) + SYSTEM_END }}"
    "{% elif message['role'] == 'user' %}"
    "{% if said.image %}{{ USER + IMAGE + (AFTER_IMAGE + (said.text | trim)).rstrip() + ANSWER }}"
    "{% elif said.text %}{{ USER + said.text + ANSWER }}"
    "{% else %}{{ USER.rstrip(' ') + ANSWER.lstrip(' ') }}{% endif %}"
    "{% else %}{% generation %}{{ GAP + (said.text | trim) + END }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
)
"""The capital words are set before it. A system message takes the place of the style's own."""
PROBES: tuple[tuple[bool, tuple[str, ...]], ...] = (
    (True, ("What is in the image?", "A cat, 12 é.")),
    (True, ("Is there a cat?\nAnswer yes or no.", "Yes.", "And 7 dogs?", "No\nnot one.")),
    (False, ("Hello there", "Hi", "", "1 Is this empty?")),
)
"""(has an image, texts of alternating turns) of the conversations on which ids and masks are compared."""
TRIAL_SIZE = (40, 30)
"""Width and height of the picture with which they are written."""


def chat_template(style: PromptStyle, bos: str, image: str, lead: str, after: str) -> str:
    """Return the template of a prompt style whose images are the token `image`.

    `lead` stands after BOS and `after` after the image: a space or nothing, as the tokenizer needs it.
    """
    words = {
        "BOS": (bos if style.bos else "") + lead,
        "SYSTEM": style.system,
        "SYSTEM_START": style.system_start,
        "SYSTEM_END": style.system_end,
        "BETWEEN": style.between,
        "USER": style.user,
        "IMAGE": style.before_image + image,
        "AFTER_IMAGE": after + style.after_image,
        "ANSWER": style.answer,
        "GAP": style.answer_space,
        "END": style.end,
    }
    set_words = "".join(f"{{% set {name} = {json.dumps(text)} %}}" for name, text in words.items())
    return set_words + TEMPLATE


def candidates(processor: Any, chat: Any) -> Iterator[str]:
    """Yield the templates in question for a tokenizer, the one without further spaces first."""
    bos = processor.tokenizer.bos_token or ""
    image = processor.tokenizer.convert_ids_to_tokens(chat.image_token_id)
    for lead, after in product(("", " "), repeat=2):
        yield chat_template(chat.style, bos, image, lead, after)


def exact_template(processor: Any, chat: Any) -> str | None:
    """Return the template under which this processor writes `chat`'s ids and marks its answers, else None."""
    for template in candidates(processor, chat):
        if all(writes_the_same(processor, chat, *probe, template=template) for probe in PROBES):
            return template
    return None


def writes_training_ids(processor: Any, chat: Any) -> bool:
    """True where the processor's own template gives the ids of training."""
    return all(writes_the_same(processor, chat, *probe) for probe in PROBES)


def writes_the_same(
    processor: Any,
    chat: Any,
    has_image: bool,
    texts: Sequence[str],
    template: str | None = None,
    size: tuple[int, int] = TRIAL_SIZE,
) -> bool:
    """True where the processor's ids of a conversation are `chat`'s, and it marks the answers as `chat` does.

    `size` is the picture's. With the processor's own template (`template` None) the marks are not asked for,
    and something may follow the last answer's end token.
    """
    from PIL import Image

    turns = tuple(Turn("chosen" if number % 2 else "prompt", text) for number, text in enumerate(texts))
    picture = Image.new("RGB", size, (90, 120, 150))
    out = processor.apply_chat_template(
        messages(turns, picture if has_image else None),
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=template is not None,
    )
    ids = list(out["input_ids"][0])
    ours = chat.encode(turns, ids.count(chat.image_token_id) if has_image else None)
    if template is None:
        return ids[: len(ours.ids)] == list(ours.ids)
    marks = [int(role != PROMPT) for role in ours.roles]
    return ids == list(ours.ids) and list(out["assistant_masks"][0]) == marks


def messages(turns: Sequence[Turn], picture: Any | None) -> list[dict[str, Any]]:
    """Turns as a processor's messages, the picture before the first question's text."""
    found = []
    for number, turn in enumerate(turns):
        image = [{"type": "image", "image": picture}] if picture is not None and number == 0 else []
        text = {"type": "text", "text": turn.text}
        found.append({"role": "assistant" if number % 2 else "user", "content": [*image, text]})
    return found
