"""What can go wrong with one request to a server of the OpenAI protocol, and what to do about each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from nsft_exp.llm.envelope import clean

LONGEST = 300
"""Characters of a server's own words that an error line repeats."""


@dataclass(frozen=True)
class Fault:
    """One failed request."""

    kind: str
    """What is counted: `connection`, `broken`, `timeout`, `reported`, or the HTTP status."""
    words: str = ""
    """What the server said, in one line."""
    wait: float | None = None
    """Seconds that the server asks to wait."""
    used: bool = False
    """Whether the server may have worked (and charged) for it."""
    final: str = ""
    """Not empty where asking again is no use: what to do instead."""
    refused: bool = False
    """Whether nothing listens at the address: no such server, or one that is down."""


def fault_of(error: BaseException, key_env: str | None, body: Mapping[str, Any], where: str) -> Fault:
    """Return what an exception of the openai client means. Words of a refused key are never repeated.

    `where` is the config's node, for messages.
    """
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return _fault_of_status(error, status, key_env, body, where)
    name, cause = type(error).__name__, type(error.__cause__).__name__
    if isinstance(error, TimeoutError) or name == "APITimeoutError":
        return Fault("timeout", "no reply in time", used=cause != "ConnectTimeout")
    if cause in ("ConnectError", "ConnectionRefusedError", "UnsupportedProtocol", "InvalidURL"):
        if _is_refused(error):
            return Fault("connection", "nothing listens there", refused=True)
        return Fault("connection", _one_line(str(error.__cause__)) or "cannot connect")
    return Fault("broken", "the connection broke off before the reply was whole", used=True)


def _fault_of_status(
    error: BaseException, status: int, key_env: str | None, body: Mapping[str, Any], where: str
) -> Fault:
    words, code = _one_line(_words(error)), str(getattr(error, "code", None))
    if status in (401, 403):
        return Fault(
            str(status), final=f"the key in the environment variable {key_env} was refused ({status})"
        )
    if status == 404:
        return Fault("404", words, final=f"the server knows no model {body['model']!r} (404: {words})")
    if status == 429 and code == "insufficient_quota":
        return Fault("429", words, final=f"the account's quota is used up (429: {words})")
    if status in (408, 409, 429) or status >= 500:
        return Fault(str(status), words, wait_of(getattr(error, "response", None)))
    hint = f"; a server without guided decoding needs {where}.guided=none" * ("response_format" in body)
    return Fault(str(status), words, final=f"the server refuses the request ({status}: {words}){hint}")


def _is_refused(error: BaseException | None) -> bool:
    """Whether an address refused the connection; a name may stand for several of them."""
    if error is None or isinstance(error, ConnectionRefusedError):
        return error is not None
    group = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return any(map(_is_refused, (*group, error.__cause__ or error.__context__)))


def wait_of(response: Any, now: float | None = None) -> float | None:
    """Return the seconds that a response's Retry-After asks for (a number or a date), None without one."""
    headers = getattr(response, "headers", None) or {}
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) / unit)
        except ValueError:
            pass
        try:
            when = parsedate_to_datetime(value).timestamp()
        except (ValueError, TypeError):
            continue
        return max(0.0, when - (time.time() if now is None else now))
    return None


def _words(error: BaseException) -> str:
    """The server's own message, wherever its body has it."""
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        inner = body.get("error", body)
        return str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    return str(body or "")


def _one_line(text: str) -> str:
    return " ".join(clean(text).split())[:LONGEST]
