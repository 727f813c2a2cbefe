"""The sentences that LLaVA-1.5 adds to a benchmark's questions."""

from __future__ import annotations

from nsft_exp.records import UserError

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
OPTION_LETTER = "\nAnswer with the option's letter from the given choices directly."


def short_answer(prompt: str, title: str) -> str:
    """Return what a question gets: `llava15` LLaVA's short-answer sentence, `official` nothing.

    Raises UserError, naming the benchmark by its title, for any other `prompt`.
    """
    if prompt not in ("llava15", "official"):
        raise UserError(f"benchmark.prompt: `{prompt}` is not known to {title}; use llava15 or official")
    return SHORT_ANSWER if prompt == "llava15" else ""
