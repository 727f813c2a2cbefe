"""What a server of the OpenAI protocol wraps a reply in: read leniently, validated by pydantic."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message = _Message()
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Fault(BaseModel):
    message: str = ""
    code: str | int | None = None


class _Completion(BaseModel):
    model: str = ""
    choices: list[_Choice]
    usage: _Usage | None = None


class _Failure(BaseModel):
    error: _Fault


_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]+")


@dataclass(frozen=True)
class Envelope:
    """The parts of a reply that are read: its text, and how and by whom it was written."""

    text: str | None
    """None where the server sent no choice at all."""
    refusal: str | None = None
    finish: str | None = None
    """`stop`, `length`, `content_filter`, or what else the server says."""
    model: str = ""
    usage: tuple[int, int] | None = None
    """Tokens of the prompt and of the reply; None where the server does not say."""


def read_envelope(raw: str) -> Envelope | None:
    """Return what the body of a response says; None if it is no reply of this protocol (torn, or no JSON).

    The body of a refusal by the server itself (a content filter's) is a reply without text.
    """
    fault = read_fault(raw)
    if fault is not None:
        return Envelope("", refusal=fault.message or "refused by the server") if is_filtered(fault) else None
    try:
        value = _Completion.model_validate_json(_paired(raw))
    except ValidationError:
        return None
    usage = (value.usage.prompt_tokens, value.usage.completion_tokens) if value.usage else None
    if not value.choices:
        return Envelope(None, model=value.model, usage=usage)
    first = value.choices[0]
    text = first.message.content or ""
    return Envelope(text, first.message.refusal, first.finish_reason, value.model, usage)


def read_fault(raw: str) -> _Fault | None:
    """Return the error that a body reports, if it reports one (some servers do with code 200)."""
    try:
        return _Failure.model_validate_json(_paired(raw)).error
    except ValidationError:
        return None


def is_filtered(fault: Any) -> bool:
    """Whether a reported error is the verdict of a content filter, final for this request."""
    return str(fault.code) in ("content_filter", "content_policy_violation")


def _paired(raw: str) -> bytes:
    """The same JSON without lone surrogates, which pydantic refuses; other text as it is."""
    try:
        return json.dumps(json.loads(raw), ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, RecursionError):
        return raw.encode("utf-8", "replace")


def clean(text: str) -> str:
    """Return a text without control characters and lone surrogates, stripped."""
    return _UNPRINTABLE.sub(" ", text).strip()
