"""Every family of models trains and answers as its Hugging Face class does, whatever the pictures' sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nsft_exp.batching import Batch, collate
from nsft_exp.cell_run import build
from nsft_exp.config import compose_config, resolved
from nsft_exp.conversation import PROMPT, VICUNA_V1
from nsft_exp.encoding import encode_examples
from nsft_exp.images import image_size
from nsft_exp.method.sft import SFT
from nsft_exp.records import Conversation, Decoding, Example, Item, Request, Turn, UserError
from nsft_exp.reference import row_features, token_scores
from nsft_exp.store import replace_folder
from nsft_exp.sums import term_weights
from nsft_exp.vlm.hf import HFModel
from nsft_exp.vlm.llava_next import AnyRes, LlavaNext, LlavaNextFamily
from nsft_exp.vlm.loaded import LoadedHF
from nsft_exp.vlm.qwen25_vl import NativeResolution, Qwen25VL, Qwen25VLFamily
from nsft_exp.vlm.scratch import ScratchLlava
from nsft_exp.vlm.scratch_next import ScratchLlavaNext
from nsft_exp.vlm.scratch_qwen import ScratchQwen25VL
from tiny_training import adapter, make_items, rows, train

SCRATCH: dict[str, Any] = {
    "llava": ScratchLlava,
    "llava_next": ScratchLlavaNext,
    "qwen2_5_vl": ScratchQwen25VL,
}
SAVED: dict[str, Any] = {"llava": HFModel, "llava_next": LlavaNext, "qwen2_5_vl": Qwen25VL}
SIZES = [
    (336, 336), (640, 480), (480, 640), (1344, 336), (1000, 1000), (40, 40), (333, 500), (500, 333),
    (1920, 1080), (101, 700), (700, 101), (672, 336), (337, 336), (17, 900), (1008, 336),
]  # fmt: skip
"""(width, height)."""
SMALL = [(w // 12 + 1, h // 12 + 1) for w, h in SIZES]


@pytest.fixture(scope="module", params=list(SCRATCH))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def loaded(name: str) -> LoadedHF:
    """A random model whose answers are not all alike: its head is sharpened."""
    torch.set_num_threads(1)
    model: LoadedHF = SCRATCH[name](device="cpu").load()
    model.model.lm_head.weight.data *= 6
    return model


def draw_sizes(folder: Path, sizes: list[tuple[int, int]]) -> list[str]:
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True, parents=True)
    paths = [str(folder / f"{number}.png") for number in range(len(sizes))]
    for path, (width, height) in zip(paths, sizes, strict=True):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return draw_sizes(tmp_path_factory.mktemp("sizes"), SMALL)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return make_items(tmp_path_factory.mktemp("items"), 4)


# --- pictures --------------------------------------------------------------------------------------


def hub_next() -> LlavaNextFamily:
    from transformers import LlavaNextConfig

    return LlavaNextFamily(LlavaNextConfig())


def hub_qwen(max_pixels: int = 12_845_056) -> Qwen25VLFamily:
    from transformers import Qwen2_5_VLConfig

    return Qwen25VLFamily(Qwen2_5_VLConfig(), 3136, max_pixels)


def test_llava_nexts_image_tokens_are_those_of_its_processor_and_of_the_published_table() -> None:
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    sizes = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(**sizes), ScratchLlavaNext(device="cpu").load().tokenizer,
        patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    family = hub_next()
    counted = [family.layout(size).tokens for size in SIZES]
    assert counted == processor._get_num_multimodal_tokens([[h, w] for w, h in SIZES]).num_image_tokens
    assert counted[:5] == [1176, 2340, 2352, 1890, 2928]


def test_qwens_image_tokens_are_those_of_its_processor_and_of_the_published_table() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    for limit in (12_845_056, 1_003_520, 100_000):
        processor = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=limit)
        family = hub_qwen(limit)
        for width, height in SIZES:
            patches = processor.get_number_of_image_patches(height, width)
            layout = family.layout((width, height))
            assert layout.tokens == patches // 4
            assert np.prod(layout.grid) == patches
    published = {(336, 336): 144, (640, 480): 391, (1024, 768): 999, (40, 40): 4, (8000, 6000): 16170}
    assert {size: hub_qwen().layout(size).tokens for size in published} == published
    assert hub_qwen().layout((1920, 1080)).tokens == 2691
    assert hub_qwen(1_003_520).layout((1920, 1080)).tokens == 1222
    with pytest.raises(UserError, match="too narrow"):
        hub_qwen().layout((10, 2001))


@pytest.mark.parametrize("size", SMALL)
def test_pixels_equal_those_of_transformers_processors_bit_for_bit(size: tuple[int, int]) -> None:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    rng = np.random.default_rng(2)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    grids = ((28, 56), (56, 28), (56, 56), (84, 28), (28, 84))
    sides = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    theirs = LlavaNextImageProcessorPil(**sides, image_grid_pinpoints=[list(g) for g in grids])
    expected = theirs(image, return_tensors="np")
    assert np.array_equal(AnyRes(28, grids)(image), expected["pixel_values"][0])
    assert tuple(expected["image_sizes"][0]) == image.size[::-1]
    native = Qwen2VLImageProcessorPil(min_pixels=784, max_pixels=5000)(image, return_tensors="np")
    assert np.array_equal(NativeResolution(14, 2, 2, 784, 5000)(image), native["pixel_values"])


def test_image_tokens_equal_vision_features_for_every_size(loaded: LoadedHF, images: list[str]) -> None:
    layouts = [loaded.layout(image) for image in images]
    features = loaded.features(loaded.pictures([(image, "clean") for image in images]))
    assert [len(part) for part in features.parts] == [layout.tokens for layout in layouts]
    alone = [loaded.features(loaded.pictures([(image, "clean")])).parts[0] for image in images]
    for one, other in zip(alone, features.parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    if loaded.num_image_tokens is None:
        assert len({layout.tokens for layout in layouts}) > 4


def test_a_pictures_size_is_read_from_the_head_of_its_file_and_turned_as_it_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (6, 2)).save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (2, 6)
    assert image_size(tmp_path / "turned.jpg", "ignore") == (6, 2)
    (tmp_path / "text.png").write_text("no image")
    for bad in ("text.png", "gone.png"):
        with pytest.raises(UserError, match=bad):
            image_size(tmp_path / bad)


# --- answers ---------------------------------------------------------------------------------------


def ask(number: int, image: str | None, **changes: Any) -> Request:
    turns = (Turn("prompt", "Is there a " + "cat " * number + "?"),)
    decoding = Decoding(**{"max_new_tokens": 6 + number % 3, **changes.pop("decoding", {})})
    return Request(f"r{number}", image, turns, decoding=decoding, **changes)


def answers(loaded: LoadedHF, requests: list[Request], batch_size: int) -> dict[str, Any]:
    before, loaded.batch_size = loaded.batch_size, batch_size
    try:
        return dict(loaded.generate(requests))
    finally:
        loaded.batch_size = before


@pytest.mark.parametrize("distinct", [5, 2])
def test_batched_greedy_answers_equal_unbatched_ones(
    loaded: LoadedHF, images: list[str], distinct: int
) -> None:
    """Five pictures of as many sizes are run whole; two that are asked about often share their prompt."""
    requests = [
        ask(n, images[n % distinct] if n % 4 else None, candidates=("Yes", "No, a")) for n in range(8)
    ]
    alone, together = answers(loaded, requests, 1), answers(loaded, requests, 8)
    for key in alone:
        (one,), (other,) = alone[key], together[key]
        assert one.ids == other.ids
        assert one.logps == pytest.approx(other.logps, abs=1e-4)
        assert one.candidate_logps == pytest.approx(other.candidate_logps, abs=1e-3)


def their_inputs(loaded: LoadedHF, ids: torch.Tensor, images: list[str]) -> dict[str, Any]:
    """What the Hugging Face class is given, by its own image processor."""
    kind = loaded.model.config.model_type
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pictures = [Image.open(image).convert("RGB") for image in images]
    if not pictures:
        return inputs
    if kind == "llava":
        return inputs | {"pixel_values": torch.stack([loaded.pixels(image) for image in images])}
    if kind == "llava_next":
        from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

        sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        processor = LlavaNextImageProcessorPil(
            **sides, image_grid_pinpoints=loaded.model.config.image_grid_pinpoints
        )
        return inputs | dict(processor(pictures, return_tensors="pt"))
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(patch_size=4, min_pixels=256, max_pixels=4096)
    types = (ids == loaded.chat.image_token_id).int()
    return inputs | dict(processor(pictures, return_tensors="pt")) | {"mm_token_type_ids": types}


@pytest.mark.parametrize("beams", [1, 5])
def test_a_greedy_or_beam_answer_equals_hugging_faces(
    loaded: LoadedHF, images: list[str], beams: int
) -> None:
    for number in (1, 3, 9):
        request = ask(number, images[number], decoding={"num_beams": beams})
        reply = answers(loaded, [request], 1)[request.id][0]
        prompt = torch.tensor([loaded.chat.prompt(request.turns, loaded.layout(images[number]).tokens)])
        theirs = loaded.model.generate(
            **their_inputs(loaded, prompt, [images[number]]), do_sample=False, pad_token_id=0,
            eos_token_id=loaded.chat.end, max_new_tokens=request.decoding.max_new_tokens, num_beams=beams,
        )  # fmt: skip
        assert list(reply.ids) == theirs[0, prompt.shape[1] :].tolist()


def test_batched_beam_answers_equal_unbatched_ones_with_greedy_ones_between_them(
    loaded: LoadedHF, images: list[str]
) -> None:
    requests = [
        ask(
            n,
            images[n % 5] if n % 4 else None,
            decoding={"num_beams": 1 + 3 * (n % 3 > 0), "max_new_tokens": 9},
        )
        for n in range(9)
    ]
    alone, together = answers(loaded, requests, 1), answers(loaded, requests, 32)
    assert {key: reply.ids for key, (reply,) in alone.items()} == {
        key: reply.ids for key, (reply,) in together.items()
    }


def test_qwens_positions_are_those_of_transformers(images: list[str]) -> None:
    loaded = ScratchQwen25VL(device="cpu").load()
    turns = [Turn("prompt", "Is there?"), Turn("chosen", "Yes, there is a cat.")]
    for image in images:
        layout = loaded.layout(image)
        ids = torch.tensor([loaded.chat.encode(turns, layout.tokens).ids])
        theirs, _ = loaded.model.model.get_rope_index(
            ids, (ids == loaded.chat.image_token_id).int(), image_grid_thw=torch.tensor([layout.grid])
        )
        assert torch.equal(loaded.positions(ids, [layout.grid]), theirs)
    text = torch.tensor([loaded.chat.encode(turns).ids])
    assert torch.equal(loaded.positions(text, [None])[1, 0], torch.arange(text.shape[1]))


# --- training --------------------------------------------------------------------------------------


def make_batch(loaded: LoadedHF, images: list[str]) -> Batch:
    """Three pictures of different sizes, one of them twice, and a conversation without one."""
    pictures = [images[1], images[3], images[1], None, images[8]]
    examples = [
        Example(
            str(n), (Conversation(p, (Turn("prompt", "Is " * n + "it?"), Turn("chosen", "Yes. " * (5 - n)))),)
        )
        for n, p in enumerate(pictures)
    ]
    encoded, _ = encode_examples(examples, loaded.chat, loaded.layout, 512)
    return collate(encoded, range(5), loaded.pixels, loaded.pad_id)


def test_the_training_loss_equals_hugging_faces_with_labels(loaded: LoadedHF, images: list[str]) -> None:
    batch, method = make_batch(loaded, images), SFT()
    assert batch.pixels is not None
    assert len(batch.pixels) == 3
    weights = term_weights(method, [batch])
    terms = method.loss(token_scores(loaded, batch), None)
    ours = sum(float(total.detach() / weights[term]) for term, (total, _) in terms.items())
    shown = [images[1], images[3], images[1], images[8]]
    inputs = their_inputs(loaded, batch.ids, shown)
    inputs["attention_mask"] = (batch.weight > 0).long()
    labels = batch.ids.masked_fill(~batch.where, -100)
    theirs = loaded.model(**inputs, labels=labels).loss
    assert ours == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_model_trains_and_what_was_trained_survives(
    name: str, kind: str, items: list[Item], tmp_path: Path
) -> None:
    """With the projector, beside LoRA in `modules_to_save`; the tower stays as it was."""
    vlm = SCRATCH[name](device="cpu")
    options = {"kind": kind, "train_projector": True, "learning_rate": 1e-2, "epochs": 3}
    train(SFT(), items, tmp_path / "run", vlm=vlm, **options)
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    assert losses[-1] < losses[0]
    base, tuned = vlm.load(), vlm.load([tmp_path / "run"])
    before, after = base.model.state_dict(), tuned.model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    projector = {key for key in before if "multi_modal_projector" in key or "visual.merger" in key}
    assert projector <= moved
    tower = {key for key in before if key.startswith(f"model.{base.family.tower}.")} - projector
    assert tower
    assert not moved & tower
    assert ("lm_head.weight" in moved) == (kind == "full")
    assert any(".language_model." in key for key in moved)
    request = ask(3, items[0].sample.image)
    assert answers(base, [request], 1)["r3"][0].logps != answers(tuned, [request], 1)["r3"][0].logps


def test_lora_names_are_the_language_models_seven_linear_maps_and_no_others(
    name: str, items: list[Item], tmp_path: Path
) -> None:
    train(SFT(), items, tmp_path / "run", vlm=SCRATCH[name](device="cpu"), epochs=1)
    names = {key.rpartition(".lora_")[0] for key in adapter(tmp_path / "run")}
    parts = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    assert names == {
        f"base_model.model.model.language_model.layers.{layer}.{part}" for layer in (0, 1) for part in parts
    }


def test_image_newline_is_trained_with_the_projector_in_full_training(
    items: list[Item], tmp_path: Path
) -> None:
    vlm = ScratchLlavaNext(device="cpu")
    base = vlm.load().model.model.image_newline
    for projector in (False, True):
        train(SFT(), items, tmp_path / str(projector), vlm=vlm, kind="full", train_projector=projector)
        moved = not torch.equal(vlm.load([tmp_path / str(projector)]).model.model.image_newline, base)
        assert moved == projector


def gradients(loaded: LoadedHF, batch: Batch) -> dict[str, torch.Tensor]:
    loaded.model.zero_grad()
    token_scores(loaded, batch).logp.sum().backward()
    return {key: p.grad.clone() for key, p in loaded.model.named_parameters() if p.grad is not None}


def test_activation_checkpointing_is_the_language_models_and_gives_the_same_gradients(
    name: str, images: list[str]
) -> None:
    loaded = SCRATCH[name](device="cpu").load()
    batch = make_batch(loaded, images)
    for key, parameter in loaded.model.named_parameters():
        parameter.requires_grad_(not key.startswith(f"model.{loaded.family.tower}."))
    loaded.model.train()
    plain = gradients(loaded, batch)
    loaded.model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    assert loaded.model.model.language_model.is_gradient_checkpointing
    assert not loaded.tower.is_gradient_checkpointing
    again = gradients(loaded, batch)
    assert plain.keys() == again.keys()
    for key in plain:
        torch.testing.assert_close(plain[key], again[key], rtol=1e-4, atol=1e-5)


def test_the_tower_is_frozen_in_evaluation_mode_and_leaves_no_graph(
    name: str, images: list[str], items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool, bool]] = []
    features = LoadedHF.features

    def watched(loaded: LoadedHF, pictures: Any) -> Any:
        found = features(loaded, pictures)
        frozen = not any(p.requires_grad for p in loaded.tower.parameters())
        seen.append((loaded.tower.training, frozen, any(part.requires_grad for part in found.parts)))
        return found

    monkeypatch.setattr(LoadedHF, "features", watched)
    train(SFT(), items, tmp_path / "run", vlm=SCRATCH[name](device="cpu"), epochs=1)
    assert seen
    assert set(seen) == {(False, True, False)}


def test_features_are_shared_by_the_rows_that_show_one_picture(
    loaded: LoadedHF, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    features = loaded.features
    monkeypatch.setattr(loaded, "features", lambda p: (counted.append(len(p)), features(p))[1])
    batch = make_batch(loaded, images)
    shown = row_features(loaded, batch)
    assert counted == [3]
    assert shown is not None
    assert len(shown) == 4
    assert shown.parts[0] is shown.parts[2]


# --- files -----------------------------------------------------------------------------------------

HUB_NAMES = {
    "llava": {"vision_tower.vision_model.", "multi_modal_projector.linear_", "language_model.model.",
              "language_model.lm_head."},
    "llava_next": {"vision_tower.vision_model.", "multi_modal_projector.linear_", "language_model.model.",
                   "language_model.lm_head.", "image_newline"},
    "qwen2_5_vl": {"visual.patch_embed.", "visual.blocks.", "visual.merger.", "model.embed_tokens.",
                   "model.layers.", "model.norm.", "lm_head."},
}  # fmt: skip


def weight_names(folder: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_a_model_is_saved_under_the_hubs_names_and_loads_and_answers_the_same(
    name: str, loaded: LoadedHF, images: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "a model"
    replace_folder(folder, loaded.save)
    found = weight_names(folder)
    assert {head for key in found for head in HUB_NAMES[name] if key.startswith(head)} == HUB_NAMES[name]
    assert all(key.startswith(tuple(HUB_NAMES[name])) for key in found)
    options = {"min_pixels": 256, "max_pixels": 4096} if name == "qwen2_5_vl" else {}
    again = SAVED[name](str(folder), device="cpu", **options).load()
    left, right = loaded.model.state_dict(), again.model.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    replace_folder(tmp_path / "again", again.save)
    assert weight_names(tmp_path / "again") == found
    request = ask(3, images[3])
    assert answers(loaded, [request], 1)["r3"][0].ids == answers(again, [request], 1)["r3"][0].ids


def test_the_saved_llava_next_processor_gives_the_same_pixels_and_image_tokens(
    images: list[str], tmp_path: Path
) -> None:
    from transformers import AutoProcessor

    loaded = ScratchLlavaNext(device="cpu").load()
    loaded.save(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path, backend="pil")
    for image in images:
        theirs = processor(text="USER: <image>\nHi ASSISTANT:", images=Image.open(image), return_tensors="pt")
        assert torch.equal(theirs["pixel_values"][0], loaded.pixels(image))
        ids = theirs["input_ids"][0].tolist()
        assert ids.count(loaded.chat.image_token_id) == loaded.layout(image).tokens
        assert ids.count(loaded.tokenizer.bos_token_id) == 1


def test_the_saved_templates_write_the_ids_that_are_trained(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    loaded = SCRATCH[name](device="cpu").load()
    loaded.save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = tokenizer.chat_template or (tmp_path / "chat_template.jinja").read_text()
    talk = [
        {"role": "user", "content": [{"type": "text", "text": "Q1 "}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A1 "}]},
        {"role": "user", "content": "Q2"},
        {"role": "assistant", "content": [{"type": "text", "text": "A2"}]},
    ]
    turns = tuple(
        Turn("chosen" if n % 2 else "prompt", text) for n, text in enumerate(("Q1", "A1", "Q2", "A2"))
    )
    for count in (1, 3, 4):
        out = tokenizer.apply_chat_template(talk[:count], return_dict=True, return_assistant_tokens_mask=True)
        ours = loaded.chat.encode(turns[:count], 1)
        assert tuple(out["input_ids"]) == ours.ids
        assert out["assistant_masks"] == [int(role != PROMPT) for role in ours.roles]
    text = tokenizer.apply_chat_template([{"role": "system", "content": "S"}, *talk[2:3]], tokenize=False)
    with_own = tokenizer.apply_chat_template(talk[2:3], tokenize=False)
    own = VICUNA_V1.system.strip() if "llava" in name else "You are a helpful assistant."
    assert own in with_own
    assert text == with_own.replace(own, "S")


def test_a_folder_whose_template_is_not_exact_is_written_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = ScratchLlava(device="cpu").load()
    assert loaded.save_processor(tmp_path / "exact")
    assert not caplog.records
    loaded.chat.bos = loaded.chat.bos * 2
    assert not loaded.save_processor(tmp_path / "inexact")
    assert "no chat template gives training's ids" in caplog.text
    assert "A chat between" in (tmp_path / "inexact" / "chat_template.jinja").read_text()


def test_a_folder_of_another_family_is_refused_with_both_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UserError, match=r"'llava' is not supported by this vlm; it must be llava_next"):
        LlavaNext(str(tmp_path)).load()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LlavaNext("x", preprocessing="pad"), "take anyres"),
        (lambda: Qwen25VL("x", prompt_style="vicuna_v1"), "take chatml"),
        (lambda: Qwen25VL("x", min_pixels=10, max_pixels=5), "vlm.max_pixels=5"),
        (lambda: HFModel("a/b").folder(), r"vlm\.revision=None is no commit"),
        (lambda: HFModel("a/b", revision="main").folder(), r"vlm\.revision=main is no commit"),
    ],
)
def test_a_model_that_cannot_be_is_refused(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


REAL = ["llava15_7b", "llava15_13b", "llava_next_7b", "llava_next_13b", "qwen25_vl_7b"]


@pytest.mark.parametrize("vlm", REAL)
def test_a_real_model_asks_for_bfloat16_and_a_commit_and_checkpoints_activations(vlm: str) -> None:
    config = resolved(compose_config([f"vlm={vlm}"]))
    model = build(config["vlm"])
    assert model.dtype == "bfloat16"
    assert len(model.revision) == 40
    assert model.preprocessing in model.preprocessings
    assert config["tuning"]["activation_checkpointing"]
    if "next" in vlm:
        assert config["recipe"]["max_length"] == 4096
