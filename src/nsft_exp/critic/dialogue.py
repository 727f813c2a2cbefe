"""What every critic's result has in common: how a correction is put together and what is counted of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nsft_exp.records import Correction, Exchange, FoundError

_FIRST_WORD = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


def polarity(answer: str) -> str:
    """Return `yes` or `no` for an answer whose first word is that, else `open`."""
    match = _FIRST_WORD.match(answer)
    return match[1].lower() if match else "open"


def corrected(
    key: str, errors: Sequence[FoundError], dialogue: Sequence[Exchange], **details: Any
) -> Correction:
    """Return the correction of status `ok` for sample `key`, its answers counted by polarity."""
    answers = [polarity(exchange.answer) for exchange in dialogue]
    counts = {kind: answers.count(kind) for kind in ("yes", "no", "open")}
    return Correction(key, "ok", tuple(errors), tuple(dialogue), {**counts, **details})


def uncorrected(key: str, status: str, reason: str, errors: Sequence[FoundError] = ()) -> Correction:
    """Return a correction without a dialogue: its status and why."""
    return Correction(key, status, tuple(errors), (), {"reason": reason})
