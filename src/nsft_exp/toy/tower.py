"""The toy base's vision tower, taught to see before it meets the language model, as LLaVA's CLIP tower was.

It learns from drawings without a prior: every cell holds any object, sign or nothing, each as likely as
the next, and every patch must tell what its cell holds. Whatever the toy base expects of a place, it has
from the language model's texts alone. LLaVA uses the features before the last layer; so the heads read them
there, and the last layer stays as it was made. The projector learns with it to say the same in the language
model's words (`PatchWords`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, get_args

import lightning as L
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPVisionModel

from nsft_exp.checkpoint import AtomicCheckpointIO, Checkpoints
from nsft_exp.images import Preprocessing
from nsft_exp.progress import StepBar
from nsft_exp.records import UserError
from nsft_exp.running import quiet
from nsft_exp.store import replace_folder
from nsft_exp.toy.draw import SIZE, draw_scene
from nsft_exp.toy.patch_words import PatchWords
from nsft_exp.toy.plain import random_scene
from nsft_exp.toy.world import COLUMNS, Scene, View, lexicon
from nsft_exp.vlm.reading import silently
from nsft_exp.vlm.scratch import PROJECTOR, read_projector, words_digest

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


def train_tower(folder: Path, model: Any, tokenizer: Any, recipe: TowerRecipe) -> None:
    """Train a new LLaVA model's tower and projector into `folder`, if that is not there.

    A killed call goes on at its checkpoint. Raises UserError where the folder holds what another recipe made.
    """
    words = PatchWords(model.get_input_embeddings().weight, tokenizer)
    made = {"recipe": asdict(recipe), "words": words_digest(model)}
    if folder.is_dir():
        check_made(folder, made)
        return
    checkpoint = folder.with_suffix(".ckpt")
    quiet()
    torch.set_num_threads(recipe.threads)
    L.seed_everything(recipe.seed, verbose=False)
    module = TowerTraining(model.model.vision_tower, model.model.multi_modal_projector, words, recipe)
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
        replace_folder(folder, partial(module.write, made=made))
    checkpoint.unlink()


def check_made(folder: Path, made: dict[str, Any]) -> None:
    """Raise UserError unless the folder's tower and projector were made so."""
    found, _ = read_projector(folder / PROJECTOR)
    for name, wanted in made.items():
        if found[name] != wanted:
            raise UserError(f"{folder}: made with other {name} ({found[name]}, not {wanted}); remove it")


class TowerTraining(L.LightningModule):
    """Reads from patches' features: linearly what each shows and, from their mean, the place; and words."""

    def __init__(
        self, tower: CLIPVisionModel, projector: nn.Module, words: PatchWords, recipe: TowerRecipe
    ) -> None:
        super().__init__()
        self.tower, self.projector, self.words, self.recipe = tower, projector, words, recipe
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
        """The summed cross-entropies of all aspects, and the projector's squared distance from its words."""
        optimizer: Any = self.optimizers()
        for group in optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.global_step)
        pixels, labels, kinds = batch
        *aspects, place, said = self(pixels)
        told = labels[:, self.cells]  # images x patches x aspects
        losses = [
            cross_entropy(logits.float().flatten(0, 1), told[..., n].flatten(), ignore_index=NOTHING)
            for n, logits in enumerate(aspects)
        ]
        distance = (said - self.wanted(told, kinds)).square().sum(-1).mean()
        return torch.stack([*losses, 0.3 * cross_entropy(place.float(), kinds), distance]).sum()

    def wanted(self, told: Tensor, kinds: Tensor) -> Tensor:
        """What the projector is to say: images x patches x width, of labels [images, patches, aspects]."""
        what, color, view, glyph = told.unbind(-1)
        size = torch.where(view < 0, NOTHING, (view != view_names().index("small")).long())
        place, scene = self.cells.expand_as(what), kinds[:, None].expand_as(what)
        return self.words(
            what=what, plural=what, color=color, size=size, glyph=glyph, place=place, scene=scene
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Logits of every aspect (images x patches x names) and of the place (images x places); the words."""
        features = self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        *aspects, place = self.heads(features).split([*self.sizes, len(lexicon()["scenes"])], dim=-1)
        return *aspects, place.mean(dim=1), self.projector(features)

    def write(self, folder: Path, made: dict[str, Any]) -> None:
        """Save the tower and, with how both were made, the projector."""
        self.tower.save_pretrained(folder)
        # one entry: several are written in any order
        save_file(self.projector.state_dict(), folder / PROJECTOR, metadata={"made": json.dumps(made)})

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
