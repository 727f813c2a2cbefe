"""A critic whose replies are in a file: an LLM's answers of an earlier run, or written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from nsft_exp.critic.codebook import Codebook
from nsft_exp.critic.dialogue import uncorrected
from nsft_exp.critic.prompt import parse_reply
from nsft_exp.critic.soundness import sound
from nsft_exp.records import Correction, Preference, Sample, UserError


class Replay:
    """Reads replies from a JSONL file, one `{"id": ..., "reply": ...}` a line; the last of an id counts.

    A sample without a reply is `unparseable` with that reason. Dialogues are checked, and balanced if
    `balance` says so, as a live critic's are (soundness.py). The file is opened on first use; raises
    UserError with file and line for one that cannot be read.
    """

    def __init__(self, replies: str, codebook: Codebook, max_turns: int = 5, balance: bool = True) -> None:
        self.path = Path(replies)
        self.codebook = codebook
        self.max_turns = max_turns
        self.balance = balance

    def corrections(self, pairs: Iterable[tuple[Sample, Preference]]) -> Iterator[Correction]:
        """Yield one Correction for every pair, in order."""
        replies = read_replies(self.path)
        for sample, preference in pairs:
            if preference.status != "ok":
                yield uncorrected(sample.id, "no_error", f"no pair: {preference.status}")
            elif sample.id not in replies:
                yield uncorrected(sample.id, "unparseable", f"{self.path.name} has no reply")
            else:
                read = parse_reply(
                    sample.id, preference.rejected, replies[sample.id], self.codebook, self.max_turns
                )
                yield sound(read, sample.question, preference.chosen, self.balance)


def read_replies(path: Path) -> dict[str, str]:
    """Return the replies of a JSONL file by sample id; a reply given as JSON becomes its text."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"{path}: cannot read the replies ({reason}); give critic.replies=<file.jsonl>"
        ) from error
    replies: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            key, reply = _reply(path, number, line)
            replies[key] = reply
    return replies


def _reply(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        key, reply = row["id"], row["reply"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f'{path}: line {number}: not a reply; it must be {{"id": ..., "reply": ...}}'
        ) from error
    return str(key), reply if isinstance(reply, str) else json.dumps(reply)
