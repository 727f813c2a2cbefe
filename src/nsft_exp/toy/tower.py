"""The toy base's vision tower, taught to see before it meets the language model, as LLaVA's CLIP tower was.

It learns from drawings without a prior: every cell holds any object, sign or nothing, each as likely as
the next, and every patch must tell what its cell holds. Whatever the toy base expects of a place, it has
from the language model's texts alone. LLaVA uses the features before the last layer; so the heads read them
there, and the last layer stays as it was made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, get_args

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPVisionConfig, CLIPVisionModel

from nsft_exp.checkpoint import AtomicCheckpointIO, Checkpoints
from nsft_exp.images import Preprocessing
from nsft_exp.progress import StepBar
from nsft_exp.running import quiet
from nsft_exp.store import replace_folder
from nsft_exp.toy.draw import SIZE, draw_scene
from nsft_exp.toy.world import COLUMNS, FAINT, Scene, Sign, Thing, View, lexicon
from nsft_exp.vlm.reading import silently

ASPECTS = ("what", "color", "view", "glyph")
NOTHING = -100  # cross_entropy's ignore_index


@dataclass(frozen=True)
class TowerRecipe:
    """How the tower is trained: AdamW, a linear warm-up over 5 % of the steps, then a cosine to 0."""

    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0
    threads: int = 1

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0)."""
        warmup = math.ceil(0.05 * self.steps)
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * min(1.0, (step + 1) / warmup) * cosine


def train_tower(folder: Path, config: CLIPVisionConfig, recipe: TowerRecipe) -> None:
    """Train a tower into `folder`, if that is not there; a killed call goes on at its checkpoint."""
    if folder.is_dir():
        return
    checkpoint = folder.with_suffix(".ckpt")
    quiet()
    torch.set_num_threads(recipe.threads)
    L.seed_everything(recipe.seed, verbose=False)
    module = TowerTraining(CLIPVisionModel(config), recipe)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=recipe.steps,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=folder.parent,
        plugins=[AtomicCheckpointIO()],
        callbacks=[Checkpoints(checkpoint, 100, recipe.steps), StepBar(recipe.steps)],
    )
    done = checkpoint if checkpoint.exists() else None
    trainer.fit(module, Drawings(recipe), ckpt_path=done, weights_only=True)
    with silently():
        replace_folder(folder, module.tower.save_pretrained)
    checkpoint.unlink()


class TowerTraining(L.LightningModule):
    """A linear reading of every patch's features, and of their mean for the kind of place."""

    def __init__(self, tower: CLIPVisionModel, recipe: TowerRecipe) -> None:
        super().__init__()
        self.tower, self.recipe = tower, recipe
        self.sizes = [len(names()) for names in (what_names, color_names, view_names, glyph_names)]
        width, outputs = tower.config.hidden_size, sum(self.sizes) + len(lexicon()["scenes"])
        self.heads = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))
        self.cells = patch_cells(int(tower.config.patch_size))  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; weight decay on matrices only."""
        matrices = [p for p in self.parameters() if p.dim() >= 2]
        others = [p for p in self.parameters() if p.dim() < 2]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        decay = self.recipe.weight_decay
        return torch.optim.AdamW(groups, lr=self.recipe.learning_rate, betas=(0.9, 0.98), weight_decay=decay)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], index: int) -> Tensor:
        """The summed cross-entropies of all aspects."""
        optimizer: Any = self.optimizers()
        for group in optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.global_step)
        pixels, labels, kinds = batch
        *aspects, place = self(pixels)
        told = labels[:, self.cells]  # images x patches x aspects
        losses = [
            cross_entropy(logits.float().flatten(0, 1), told[..., n].flatten(), ignore_index=NOTHING)
            for n, logits in enumerate(aspects)
        ]
        return torch.stack([*losses, 0.3 * cross_entropy(place.float(), kinds)]).sum()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Logits of every aspect (images x patches x names), and of the place (images x places)."""
        features = self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        *aspects, place = self.heads(features).split([*self.sizes, len(lexicon()["scenes"])], dim=-1)
        return *aspects, place.mean(dim=1)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip the gradient's norm at 1."""
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)


class Drawings:
    """A stateful loader: batch n is pixels (images x 3 x 64 x 64), labels (images x cells x aspects), kinds.

    `state_dict` carries its position over a restart, so that training goes on at the next batch.
    """

    def __init__(self, recipe: TowerRecipe) -> None:
        self.recipe, self.preprocessing = recipe, Preprocessing(size=SIZE)
        self.position = 0

    def __len__(self) -> int:
        """Batches from the beginning, whatever the position."""
        return self.recipe.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for step in range(self.position, self.recipe.steps):
            self.position += 1
            yield self[step]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = Random(f"tower/{self.recipe.seed}/{step}")
        scenes = [random_scene(rng) for _ in range(self.recipe.batch_size)]
        pixels = torch.stack([torch.from_numpy(self.preprocessing(draw_scene(scene))) for scene in scenes])
        kinds = [lexicon()["scenes"].index(scene.kind) for scene in scenes]
        return pixels, torch.tensor([cell_labels(scene) for scene in scenes]), torch.tensor(kinds)

    def state_dict(self) -> dict[str, int]:
        """Where the loader is."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position."""
        self.position = state["position"]


def random_scene(rng: Random) -> Scene:
    """A drawing in which nothing follows from anything else."""
    words = lexicon()
    cells = list(range(len(words["places"])))
    sign = None
    if rng.random() < 0.6:
        sign = Sign(rng.choice(words["glyphs"]), rng.choice(cells), rng.random() < 0.4)
        cells.remove(sign.cell)
    things = tuple(_random_thing(cell, rng) for cell in cells if rng.random() < 0.75)
    return Scene(rng.choice(words["scenes"]), things, sign, rng.randrange(3))


def _random_thing(cell: int, rng: Random) -> Thing:
    words = lexicon()
    view: View = rng.choice(FAINT) if rng.random() < 0.5 else "clear"
    category, color = rng.choice(list(words["categories"])), rng.choice(words["colors"])
    size = "small" if view == "small" else "large"
    return Thing(category, color, size, cell, view, rng.randint(-1, 1), rng.randint(-1, 1))


def what_names() -> list[str]:
    """What a cell may hold."""
    return ["nothing", "sign", *lexicon()["categories"]]


def color_names() -> Sequence[str]:
    """The colors of objects."""
    return list(lexicon()["colors"])


def view_names() -> Sequence[str]:
    """How well an object can be seen."""
    return get_args(View)


def glyph_names() -> Sequence[str]:
    """What a sign may read."""
    return list(lexicon()["glyphs"])


def cell_labels(scene: Scene) -> list[list[int]]:
    """For every cell the number of what it holds, and of its color, view and glyph (or NOTHING)."""
    labels = [[0, NOTHING, NOTHING, NOTHING] for _ in lexicon()["places"]]
    for thing in scene.things:
        what, color = what_names().index(thing.category), color_names().index(thing.color)
        labels[thing.cell] = [what, color, view_names().index(thing.view), NOTHING]
    if scene.sign:
        labels[scene.sign.cell] = [1, NOTHING, NOTHING, glyph_names().index(scene.sign.glyph)]
    return labels


def patch_cells(patch: int) -> Tensor:
    """The cell of every patch's centre, row by row."""
    centres = [(patch * n + patch / 2) / SIZE for n in range(SIZE // patch)]
    return torch.tensor([int(y * 2) * COLUMNS + int(x * COLUMNS) for y in centres for x in centres])
