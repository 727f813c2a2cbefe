"""The toy world's image-text scorer: a CLIP of two small towers, taught true sentences against one error.

The vision tower is the toy base's own up to the layer that it sees with. All layers but that one stay as
they are; of that one only the class token's reading is used, so it alone is computed in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPConfig, CLIPModel, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from nsft_exp.images import Preprocessing
from nsft_exp.toy.draw import SIZE, draw_scene
from nsft_exp.toy.plain import random_scene
from nsft_exp.toy.text import caption, honest, phrase, with_article
from nsft_exp.toy.world import FOLDER, Scene, lexicon, make_scene

KINDS = ("object", "color", "place", "sign", "scene")
"""What is wrong in a false sentence."""
WEIGHTS = (35, 22, 18, 20, 5)
"""How often each is asked in training; not all scenes have a sign."""
MAX_TOKENS = 64


@dataclass(frozen=True)
class ScorerRecipe:
    """AdamW with a linear warm-up over 5 % of the steps, then a cosine to 0."""

    steps: int = 1500
    batch_size: int = 64
    scenes: int = 6000
    errors: int = 3
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.01
    in_batch: float = 0.2
    """The weight of telling one's own sentence from the other images'."""
    temperature: float = 0.07
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0)."""
        warmup = math.ceil(0.05 * self.steps)
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * min(1.0, (step + 1) / warmup) * cosine


# --- sentences -------------------------------------------------------------------------------------


def sentences(scene: Scene, kind: str, errors: int, rng: Random) -> list[str] | None:
    """Return a true sentence, then `errors` false ones with one word of that kind exchanged.

    None where the scene has nothing of the kind.
    """
    lines, words = lexicon()["sentences"]["detailed"], lexicon()
    if kind == "scene":
        others = rng.sample([s for s in words["scenes"] if s != scene.kind], errors)
        return [lines["opening"].format(a_scene=with_article(s)) for s in (scene.kind, *others)]
    if kind == "sign":
        if scene.sign is None:
            return None
        others = rng.sample([g for g in words["glyphs"] if g != scene.sign.glyph], errors)
        return [lines["sign"].format(glyph=g) for g in (scene.sign.glyph, *others)]
    if not scene.things:
        return None
    number = rng.randrange(len(scene.things))
    thing = scene.things[number]
    same = [t for t in scene.things if t.category == thing.category]
    if kind == "object":
        names = [n for n in words["categories"] if n not in scene.categories()]
        wrong = [replace(thing, category=name) for name in rng.sample(names, errors)]
    elif kind == "color":
        colors = [c for c in words["colors"] if c not in [t.color for t in same]]
        wrong = [replace(thing, color=rng.choice(colors)) for _ in range(errors)]
    else:
        cells = [c for c in range(len(words["places"])) if c not in [t.cell for t in same]]
        wrong = [replace(thing, cell=rng.choice(cells)) for _ in range(errors)]
    if kind == "place" or rng.random() < 0.7:
        return [lines["object"].format(a=phrase(t, size=True), place=t.place) for t in (thing, *wrong)]
    rows = [(*scene.things[:number], t, *scene.things[number + 1 :]) for t in (thing, *wrong)]
    complete = rng.random() < 0.5
    return [caption(replace(honest(scene), things=row), complete) for row in rows]


def any_sentences(scene: Scene, errors: int, rng: Random) -> list[str]:
    """Return `sentences` of a kind that the scene has."""
    while True:
        kind = rng.choices(KINDS, WEIGHTS)[0]
        if found := sentences(scene, kind, errors, rng):
            return found


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of the words that such sentences are made of, in lower case."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    split, rng = pre_tokenizers.Whitespace(), Random("words")
    scenes = [random_scene(rng) for _ in range(2000)]
    texts = [text for s in scenes for text in any_sentences(s, 3, rng)]
    found = {word for text in texts for word, _ in split.pre_tokenize_str(text.lower())}
    special = ["<pad>", "<unk>", "<s>", "</s>"]  # CLIP reads an end token of id 2 in another way
    words = {word: number for number, word in enumerate([*special, *sorted(found)])}
    raw = Tokenizer(models.WordLevel(words, "<unk>"))
    raw.normalizer, raw.pre_tokenizer = normalizers.Lowercase(), split
    raw.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


# --- the model -------------------------------------------------------------------------------------


def make_model(vocabulary: int, base: Path = FOLDER / "base") -> CLIPModel:
    """Return the CLIP before training: the base's tower without its unused last layer, a new text tower."""
    source = LlavaForConditionalGeneration.from_pretrained(base, local_files_only=True).model.vision_tower
    vision = source.config.to_dict()
    vision["num_hidden_layers"] -= 1
    text = {
        "vocab_size": vocabulary, "max_position_embeddings": MAX_TOKENS, "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
    last = f"encoder.layers.{vision['num_hidden_layers']}."
    state = {key.removeprefix("vision_model."): value for key, value in source.state_dict().items()}
    model.vision_model.load_state_dict({k: v for k, v in state.items() if last not in k})
    return model


@torch.no_grad()
def early_features(model: CLIPModel, scenes: list[Scene]) -> Tensor:
    """Return what the frozen layers make of the scenes' drawings, [N, patches + 1, width] in bfloat16."""
    preprocessing, found = Preprocessing(SIZE, "crop"), []
    for start in range(0, len(scenes), 100):
        some = scenes[start : start + 100]
        pixels = torch.stack([torch.from_numpy(preprocessing(draw_scene(s))) for s in some])
        with torch.autocast("cpu", torch.bfloat16):
            states = model.vision_model(pixels, output_hidden_states=True).hidden_states
        found.append(states[-2].bfloat16())
    return torch.cat(found)


def image_vectors(model: CLIPModel, features: Tensor) -> Tensor:
    """Return the images' unit vectors [N, D] from `early_features`: the last layer, at the class token."""
    layer = model.vision_model.encoder.layers[-1]
    states, attention = layer.layer_norm1(features), layer.self_attn
    rows, _, width = states.shape
    heads = [
        part.view(rows, -1, attention.num_heads, width // attention.num_heads).transpose(1, 2)
        for part in (attention.q_proj(states[:, :1]), attention.k_proj(states), attention.v_proj(states))
    ]
    read = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(rows, width)
    token = features[:, 0] + attention.out_proj(read)
    token = token + layer.mlp(layer.layer_norm2(token))
    return normalize(model.visual_projection(model.vision_model.post_layernorm(token)), dim=-1)


def text_vectors(model: CLIPModel, tokenizer: Any, texts: list[str]) -> Tensor:
    """Return the texts' unit vectors, [N, D]."""
    words = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    out = model.text_model(input_ids=words.input_ids, attention_mask=words.attention_mask)
    return normalize(model.text_projection(out.pooler_output), dim=-1)


def contrast(images: Tensor, texts: Tensor, temperature: float, in_batch: float) -> Tensor:
    """Cross-entropy of the true sentence among an image's own, and among all images' true ones.

    `images` [N, D], `texts` [N, 1 + errors, D] with the true one first, all of length 1.
    """
    own = torch.einsum("nd,nkd->nk", images, texts) / temperature
    across = images @ texts[:, 0].T / temperature
    here = torch.arange(len(images))
    return cross_entropy(own, torch.zeros_like(here)) + in_batch * cross_entropy(across, here)


def train(recipe: ScorerRecipe, report: int = 50) -> tuple[CLIPModel, Any]:
    """Train a scorer; the same recipe gives the same one on the same machine."""
    torch.manual_seed(recipe.seed)
    rng = Random(f"scorer/{recipe.seed}")
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    half = recipe.scenes // 2
    scenes = [random_scene(rng) for _ in range(half)]
    scenes += [make_scene("pretrain", recipe.seed, number) for number in range(recipe.scenes - half)]
    features = early_features(model.eval(), scenes)
    print(f"{len(scenes)} drawings seen", flush=True)
    layer, vision = model.vision_model.encoder.layers[-1], model.vision_model
    parts = (layer, vision.post_layernorm, model.visual_projection, model.text_model, model.text_projection)
    learnt = [p for part in parts for p in part.parameters()]
    optimizer = torch.optim.AdamW(
        learnt, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        some = rng.sample(range(len(scenes)), recipe.batch_size)
        texts = [text for n in some for text in any_sentences(scenes[n], recipe.errors, rng)]
        told = text_vectors(model, tokenizer, texts).view(recipe.batch_size, 1 + recipe.errors, -1)
        shown = image_vectors(model, features[some].float())
        loss = contrast(shown, told, recipe.temperature, recipe.in_batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        if step % report == 0:
            print(f"step {step}/{recipe.steps}: loss {loss.item():.3f}", flush=True)
    return model.eval(), tokenizer


# --- its score -------------------------------------------------------------------------------------


def held_out(count: int = 600, seed: int = 0) -> list[tuple[str, Scene, list[str]]]:
    """Return (kind of error, scene of the validation split, true and false sentence), `count` scenes."""
    rng, found = Random(f"scorer/held-out/{seed}"), []
    for number in range(count):
        scene = make_scene("validation", seed, number)
        for kind in KINDS:
            if texts := sentences(scene, kind, 1, rng):
                found.append((kind, scene, texts))
    return found


@torch.no_grad()
def accuracy(model: CLIPModel, tokenizer: Any, cases: list[tuple[str, Scene, list[str]]]) -> dict[str, float]:
    """Return by kind of error in how many % of the cases the true sentence scores higher (a tie counts 0)."""
    scenes = list(dict.fromkeys(scene for _, scene, _ in cases))
    preprocessing, rows = Preprocessing(SIZE, "crop"), {scene: n for n, scene in enumerate(scenes)}
    pixels = torch.stack([torch.from_numpy(preprocessing(draw_scene(scene))) for scene in scenes])
    shown = normalize(model.visual_projection(model.vision_model(pixels).pooler_output), dim=-1)
    told = text_vectors(model, tokenizer, [text for _, _, texts in cases for text in texts])
    own = shown[[rows[scene] for _, scene, _ in cases]]
    scores = torch.einsum("nd,nkd->nk", own, told.view(len(cases), 2, -1))
    right = (scores[:, 0] > scores[:, 1]).tolist()
    by_kind = {kind: [r for r, case in zip(right, cases, strict=True) if case[0] == kind] for kind in KINDS}
    return {kind: 100 * sum(values) / len(values) for kind, values in by_kind.items() if values}
