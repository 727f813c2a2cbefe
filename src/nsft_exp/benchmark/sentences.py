"""SHR's counts of a description, as in HA-DPO's shr_utils.py: judged sentences and words, n-grams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from nsft_exp.records import ItemScore

LABELS = ("hallucination", "correct", "cannot judge")
"""What the judge may call a sentence; sentences that it calls anything else are in no ratio."""
MARKS = {"hallucination": "wrong", "correct": "right"}
GRAMS = (1, 2, 3, 4)

DROPPED = str.maketrans("", "", ".:\n?,")
"""What is taken out before n-grams are counted; a line's end leaves no blank, so two words become one."""


def sentences(description: str) -> list[str]:
    """Return the texts between full stops, without one that an earlier one contains or equals."""
    found: list[str] = []
    for part in description.split("."):
        text = part.strip()
        if text and not any(text in earlier for earlier in found):
            found.append(text)
    return found


def judgements(reply: str, description: str) -> list[str] | None:
    """Return the class of each sentence, in lower case; None unless the reply has one for each.

    Read are the lines after the first with "Judgement:": without their first word, up to a colon.
    """
    lines = [line for line in reply.split("\n") if line]
    place = next((number for number, line in enumerate(lines) if "Judgement:" in line), None)
    if place is None:  # officially an error
        return None
    texts = [line.partition(" ")[2].strip() for line in lines[place + 1 :]]
    labels = [text.partition(":")[0].lower() for text in texts if text]
    return labels if len(labels) == len(sentences(description)) else None


def repetition(description: str, n: int) -> float | None:
    """Return distinct n-grams / all n-grams of a description's words; None where it has none."""
    words = description.translate(DROPPED).split()
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else None


def scored(key: str, answer: str, labels: Mapping[str, Sequence[str] | None]) -> ItemScore:
    """The counts of one image: its n-grams, and by run its sentences and words, and how they are judged."""
    parts = [f"{text}." for text in sentences(answer)]
    grams = {f"gram{n}": repetition(answer, n) for n in GRAMS}
    counts: dict[str, float] = {"images": 1, "skipped": int(not labels), "short": int(None in grams.values())}
    counts |= {name: value or 0.0 for name, value in grams.items()}
    for run, found in labels.items():
        pairs = list(zip(parts, found, strict=True)) if found is not None else []
        known = [part for part, label in pairs if label in LABELS]
        wrong = [part for part, label in pairs if label == LABELS[0]]
        counts |= {f"{run}/images": 1, f"{run}/void": int(found is None)}
        groups = (("sentences", "words", parts), ("labelled", "labelled_words", known))
        for sentence_key, word_key, some in (*groups, ("hallucinated", "hallucinated_words", wrong)):
            counts[f"{run}/{sentence_key}"] = len(some)
            counts[f"{run}/{word_key}"] = sum(len(part.split(" ")) for part in some)
    shown = "; ".join("void" if found is None else ", ".join(found) for found in labels.values())
    first = next(iter(labels.values()), None) or []
    return ItemScore(
        key,
        key,
        counts,
        parsed=shown or "skipped",
        marks=tuple(_marks(answer, parts, first)),
        unparseable=None in labels.values(),
    )


def _marks(answer: str, parts: Sequence[str], labels: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Where the sentences stand in the description that the first run calls correct or hallucinated."""
    start = 0
    for part, label in zip(parts, labels, strict=False):
        start = answer.find(part[:-1], start)
        if label in MARKS:
            yield start, start + len(part) - 1, MARKS[label]
        start += len(part) - 1
