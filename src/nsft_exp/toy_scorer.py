"""Trains the toy world's image-text scorer and puts it where `vlm=toy` finds it: `make toy-scorer`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from nsft_exp.store import replace_folder
from nsft_exp.toy.card import CARD
from nsft_exp.toy.files import version
from nsft_exp.toy.two_tower import ScorerRecipe, accuracy, held_out, train
from nsft_exp.toy.world import FOLDER

SCORER = FOLDER / "scorer"

TEXT = """
# The toy scorer

A `CLIPModel` of {parameters:,} parameters that tells how well a sentence fits a drawing of `nsft_exp.toy`.
Its vision tower is the toy base's up to the layer that LLaVA reads, frozen but for the last layer; the text
tower has two layers. It is of no use outside that world.

Made by `make toy-scorer`; the files that decide the world's content have the hash `{world}`.

## Recipe

Half of the drawings hold anything anywhere, half are scenes of the pretraining split. Each step tells a true
sentence from the same one with one error, and, with less weight, from the other images' sentences.

| | |
| --- | --- |
{recipe}

## Scores

In how many % of 600 scenes of the validation split (seed 0) a true sentence scores higher than the same with
one error, by kind of error. Chance is 50.

| error | score |
| --- | ---: |
{scores}
"""


def write_card(folder: Path, parameters: int, recipe: Mapping[str, Any], scores: Mapping[str, float]) -> None:
    """Write the scorer's card; its head holds the scores, where `card_scores` reads them."""
    rounded = {name: round(score, 2) for name, score in scores.items()}
    head = {"license": "apache-2.0", "world": version(), "parameters": parameters, "scores": rounded}
    body = TEXT.format(
        parameters=parameters,
        world=version(),
        recipe="\n".join(f"| {name} | {value} |" for name, value in recipe.items()),
        scores="\n".join(f"| {name} | {score:.2f} |" for name, score in scores.items()),
    )
    (folder / CARD).write_text(f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{body}", encoding="utf-8")


def main(recipe: ScorerRecipe | None = None, folder: Path = SCORER) -> None:
    """Train, score and install the scorer; the folder is replaced at the end only."""
    recipe = recipe or ScorerRecipe()
    torch.set_num_threads(1)
    model, tokenizer = train(recipe)
    scores = accuracy(model, tokenizer, held_out())
    parameters = sum(p.numel() for p in model.parameters())

    def write(to: Path) -> None:
        model.save_pretrained(to)
        tokenizer.save_pretrained(to)
        write_card(to, parameters, asdict(recipe), scores)

    replace_folder(folder, write)
    print({name: round(score, 1) for name, score in scores.items()})


if __name__ == "__main__":
    main()
