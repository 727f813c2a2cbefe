"""Samples, and what the respond and critique stages made of them: read back by id, matched by content.

A record counts only where it was made from what the sample is now: each carries a hash of its input, so an
edited answer or a replaced image is answered and criticised anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nsft_exp.keys import digest
from nsft_exp.records import Correction, Example, Item, Preference, Sample, UserError, from_json, to_json
from nsft_exp.store import StageFolder, Store


def sample_digest(sample: Sample, store: Store) -> str:
    """Return a hash of all that a sample is: its text, history and the content of its image."""
    image = store.fingerprint(sample.image) if sample.image and Path(sample.image).exists() else sample.image
    given = [] if sample.rejected is None else [sample.rejected]
    return digest([sample.id, image, sample.question, sample.answer, to_json(sample.history), *given])


def sample_digests(samples: Iterable[Sample], store: Store) -> dict[str, str]:
    """Return the samples' hashes by id."""
    return {sample.id: sample_digest(sample, store) for sample in samples}


def correction_input(sample_hash: str, preference: Preference) -> str:
    """Return a hash of all that a correction is made from: the sample, by its own hash, and the pair."""
    return digest([sample_hash, to_json(preference)])


def correction_inputs(hashes: Mapping[str, str], preferences: Mapping[str, Preference]) -> dict[str, str]:
    """Return the hashes of what corrections are made from, by id, in the samples' order."""
    return {key: correction_input(hashes[key], preferences[key]) for key in hashes if key in preferences}


def example_digest(example: Example, store: Store) -> str:
    """Return a hash of a training example: its text, roles and the content of its images."""
    rows = to_json(example)
    for conversation in rows["conversations"]:
        image = conversation["image"]
        if image and Path(image).exists():
            conversation["image"] = store.fingerprint(image)
    return digest(rows)


def read_preferences(folder: StageFolder | None, hashes: Mapping[str, str]) -> dict[str, Preference]:
    """Return the respond stage's records of these samples (hashes by id), by id."""
    return _read(folder, Preference, hashes)


def _read(folder: StageFolder | None, kind: Any, inputs: Mapping[str, str]) -> dict[str, Any]:
    if folder is None:
        return {}
    rows = {row["id"]: row for row in folder.records() if inputs.get(row["id"]) == row["input"]}
    return {key: from_json(kind, {k: v for k, v in row.items() if k != "input"}) for key, row in rows.items()}


def read_items(
    samples: Iterable[Sample],
    hashes: Mapping[str, str],
    responses: StageFolder | None,
    critiques: StageFolder | None,
) -> list[Item]:
    """Return each sample with its preference and correction from these folders, in the samples' order.

    `hashes`: what `sample_digests` says of the samples.
    """
    preferences = read_preferences(responses, hashes)
    corrections = _read(critiques, Correction, correction_inputs(hashes, preferences))
    return [Item(s, preferences.get(s.id), corrections.get(s.id)) for s in samples]


def item_counts(items: list[Item]) -> dict[str, Any]:
    """What went into training: samples, pairs that differ, equal pairs, corrections by status."""
    pairs = Counter(i.preference.status for i in items if i.preference)
    corrections = Counter(i.correction.status for i in items if i.correction)
    counts: dict[str, Any] = {"samples": len(items)}
    if pairs:
        counts |= {
            "pairs": pairs["ok"],
            "equal": pairs["equal"],
            "pairs_by_status": dict(sorted(pairs.items())),
        }
    if corrections:
        counts["corrections"] = dict(sorted(corrections.items()))
    return counts


def split_items(items: list[Item], nodes: dict[str, Any]) -> tuple[list[Item], list[Item]]:
    """Return the items that are trained on, and the held-out ones (see `held_out_places`)."""
    first, end = held_out_places(len(items), nodes)
    return items[:first] + items[end:], items[first:end]


def held_out_places(number: int, nodes: dict[str, Any]) -> tuple[int, int]:
    """Return where the held-out of `number` samples begin and end.

    A method's spare samples stand at the end of the source, after the held-out ones, which are the same for
    every method so. Raises UserError where a whole source (`source.size=null`) leaves none to train on.
    """
    end = number - (nodes["method"].get("spare") or 0)
    first = end - held_out_size(nodes)
    if first < 1:
        raise UserError(
            f"trainer.held_out={held_out_size(nodes)}: the source has {end} samples, "
            "and none is left to train on; lower it"
        )
    return first, end


def held_out_size(nodes: dict[str, Any]) -> int:
    """How many samples after those of `source.size` are kept from training, for the validation loss."""
    return int(nodes["trainer"].get("held_out", 0) or 0)
