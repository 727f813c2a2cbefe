"""Which option letter an answer gives: VLMEvalKit's rules for multiple choice, without its LLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
NOTHING = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A")
) | {"NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
"""Answers that pandas reads back from the upload file as no value; the official rule then reads "nan"."""
Rules = Literal["2024-03", "2025-08"]


def read_letter(text: str, options: Mapping[str, str], rules: Rules = "2024-03") -> str:
    """Return the option letter of an answer by VLMEvalKit's rules, Z for a refusal, "" if none reads it."""
    if "Failed to obtain answer via API" not in text:
        letter = _option_letter(text, options, rules)
        if letter:
            return letter
    lower = text.lower()
    if rules != "2024-03" and len(lower) > 2 * sum(map(len, options.values())):
        return ""
    named = [letter for letter, option in options.items() if option.lower() in lower]
    return named[0] if len(named) == 1 else ""


def _option_letter(text: str, options: Mapping[str, str], rules: Rules) -> str:
    if any(refusal in text for refusal in REFUSALS):
        return "Z"
    words = "".join(" " if c in ".()[],:;!*#{}" else c for c in text).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and (rules == "2024-03" or words.index(letters[0]) > len(words) - 5):
        return letters[0]
    return "Z" if not letters and "Z" in words else ""
