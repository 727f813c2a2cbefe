"""The sentences that LLaVA-1.5 adds to a benchmark's questions."""

from __future__ import annotations

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
OPTION_LETTER = "\nAnswer with the option's letter from the given choices directly."
