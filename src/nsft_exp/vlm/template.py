"""A prompt style as a chat template, for the programs that want one."""

from __future__ import annotations

import json

from nsft_exp.conversation import PromptStyle

TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{ raise_exception('this model has its own system message: leave yours out') }}
{%- endif -%}
{%- set words -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- endset -%}
{%- if loop.first -%}{{ SYSTEM }}{%- endif -%}
{%- if message['role'] == 'user' -%}
{%- if not loop.first -%}{{ BETWEEN }}{%- endif -%}
{{ USER }}
{%- if message['content'] is not string -%}
{%- for part in message['content'] if part['type'] == 'image' -%}
{{ BEFORE_IMAGE }}{{ IMAGE }}{%- if words | trim or not AFTER_IS_SPACE -%}{{ AFTER_IMAGE }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ words | trim }}{{ ANSWER }}
{%- else -%}
{{ ANSWER_SPACE }}{{ words | trim }}{{ END }}
{%- endif -%}
{%- endfor -%}
"""


def chat_template(style: PromptStyle, image: str) -> str:
    """Return the Jinja template that writes conversations in this style, `image` standing for a picture.

    Texts are stripped. BOS is the tokenizer's to add. A system message is refused.
    """
    values = {
        "SYSTEM": style.system,
        "BETWEEN": style.between,
        "USER": style.user,
        "BEFORE_IMAGE": style.before_image,
        "IMAGE": image,
        "AFTER_IS_SPACE": not style.after_image.strip(),
        "AFTER_IMAGE": style.after_image,
        "ANSWER_SPACE": style.answer_space,
        "ANSWER": style.answer,
        "END": style.end,
    }
    head = "".join("{%- set " + f"{name} = {json.dumps(value)}" + " -%}\n" for name, value in values.items())
    return head + TEMPLATE
