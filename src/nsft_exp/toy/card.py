"""The toy base's model card: what it is, how it was made, from which world, and what it scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nsft_exp.records import UserError
from nsft_exp.toy.files import version

CARD = "README.md"

TEXT = """
# The toy base

A `LlavaForConditionalGeneration` of {parameters:,} parameters for the drawn world of `nsft_exp.toy`. It sees
objects, colors, sizes, counts, places and signs, and names what usually is in a place where it sees badly:
the texts that it learnt from did so too. It is of no use outside that world.

Made by `{command}`; the files that decide the world's content have the hash `{world}`.

## Recipe

| | |
| --- | --- |
{recipe}

## Scores

{about}

| metric | score |
| --- | ---: |
{scores}
"""


def write_card(
    folder: Path,
    *,
    parameters: int,
    command: str,
    recipe: Mapping[str, Any],
    about: str,
    scores: Mapping[str, float],
) -> Path:
    """Write the card into the model's folder and return its path.

    `about` says what was scored (split, seed, images); the scores also stand in the card's head, where
    `card_scores` reads them.
    """
    head = {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "world": version(),
        "parameters": parameters,
        "scores": {name: round(float(score), 2) for name, score in scores.items()},
    }
    body = TEXT.format(
        parameters=parameters,
        command=command,
        world=version(),
        about=about,
        recipe="\n".join(f"| {name} | {value} |" for name, value in recipe.items()),
        scores="\n".join(f"| {name} | {score:.2f} |" for name, score in scores.items()),
    )
    file = folder / CARD
    file.write_text(f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{body}", encoding="utf-8")
    return file


def read_card(folder: Path) -> dict[str, Any]:
    """Return the head of a model card: `world`, `parameters`, `scores` ...; UserError if there is none."""
    file = folder / CARD
    parts = file.read_text(encoding="utf-8").split("---\n") if file.is_file() else []
    head = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None
    if not isinstance(head, dict):
        raise UserError(f"{file}: is no model card with a head; make the toy base again (make toy-base)")
    return head


def card_scores(folder: Path) -> dict[str, float]:
    """Return the scores in a model card, by metric name."""
    return {str(name): float(score) for name, score in (read_card(folder).get("scores") or {}).items()}
