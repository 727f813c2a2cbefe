"""What bites with the real checkpoints, one test each; and QLoRA."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from nsft_exp.batching import Batch, collate
from nsft_exp.conversation import VICUNA_V1
from nsft_exp.encoding import encode_examples
from nsft_exp.images import Preprocessing
from nsft_exp.method.dpo import DPO
from nsft_exp.recipe import LANGUAGE_LINEARS, Tuning
from nsft_exp.records import Conversation, Decoding, Example, Request, Turn, UserError
from nsft_exp.reference import token_scores
from nsft_exp.vlm.hf import HFModel
from nsft_exp.vlm.llava_next import LlavaNext
from nsft_exp.vlm.loaded import LoadedHF
from nsft_exp.vlm.qwen25_vl import Qwen25VL
from nsft_exp.vlm.scratch import ScratchLlava
from nsft_exp.vlm.scratch_next import ScratchLlavaNext
from nsft_exp.vlm.scratch_qwen import ScratchQwen25VL
from tiny_training import draw, make_items, rows, train

FAMILIES: dict[str, tuple[Any, Any]] = {
    "llava": (ScratchLlava, HFModel),
    "llava_next": (ScratchLlavaNext, LlavaNext),
    "qwen2_5_vl": (ScratchQwen25VL, Qwen25VL),
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return draw(tmp_path_factory.mktemp("image"), 1)[0]


def make_batch(loaded: LoadedHF, image: str) -> Batch:
    talks = [(image, "Yes."), (None, "No, there is a dog."), (image, "It is a red box in the image.")]
    examples = [
        Example(str(n), (Conversation(i, (Turn("prompt", "Is it?"), Turn("chosen", a))),))
        for n, (i, a) in enumerate(talks)
    ]
    encoded, _ = encode_examples(examples, loaded.chat, loaded.layout, 512)
    return collate(encoded, range(3), loaded.pixels, loaded.pad_id)


@pytest.mark.parametrize("name", FAMILIES)
def test_1_no_result_tells_padding_by_its_id(name: str, image: str) -> None:
    """LLaVA-NeXT pads with `<unk>`, id 0, which a text may hold; another id gives the same."""
    loaded = FAMILIES[name][0](device="cpu").load()
    if name == "llava_next":
        assert (loaded.pad_id, loaded.tokenizer.unk_token_id) == (0, 0)
    requests = [
        Request(f"r{n}", image if n else None, (Turn("prompt", "cat " * n + "?"),), decoding=Decoding(5))
        for n in range(4)
    ]
    found = []
    for pad in (loaded.pad_id, loaded.chat.end, 7):
        loaded.pad_id = pad
        batch = make_batch(loaded, image)
        replies = {key: reply.ids for key, (reply,) in loaded.generate(requests)}
        found.append(
            (replies, float(token_scores(loaded, batch).logp.detach().sum()), int(batch.where.sum()))
        )
    assert found[0][0] == found[1][0] == found[2][0]
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6) == pytest.approx(found[2][1], rel=1e-6)
    assert found[0][2] == found[1][2] == found[2][2]


def test_2_bos_the_system_sentence_and_the_end_of_every_answer_are_written() -> None:
    chat = ScratchLlava(device="cpu").load().chat
    turns = [Turn("prompt", "Hi"), Turn("chosen", "Yes. "), Turn("prompt", "a?"), Turn("chosen", "No.")]
    ids = chat.encode(turns, 3).ids
    assert (ids[0], ids.count(1), ids.count(2), ids[-1]) == (1, 1, 2, 2)
    assert list(ids[1:]).index(chat.image_token_id) == len(chat.text(VICUNA_V1.system + "USER: "))


def test_3_the_next_turns_first_piece_is_not_supervised() -> None:
    loaded = ScratchLlava(device="cpu").load()
    turns = [Turn("prompt", "Hi"), Turn("chosen", "Yes."), Turn("prompt", "a?"), Turn("chosen", "No.")]
    encoded = loaded.chat.encode(turns, 3)
    after = encoded.ids.index(2) + 1
    assert encoded.roles[after - 1] != 0
    assert encoded.roles[after] == 0
    assert "US" in loaded.tokenizer.decode(encoded.ids[after : after + 2])


def test_4_plain_string_content_is_not_lost_by_the_template_that_is_written(tmp_path: Path) -> None:
    loaded = ScratchLlava(device="cpu").load()
    loaded.save(tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text()
    talk = [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}]
    text = loaded.tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False)
    assert text == f"<s> {VICUNA_V1.system}USER: Q1 ASSISTANT: A1</s>"


def test_5_padding_keeps_the_sides_of_a_wide_picture_that_cropping_loses() -> None:
    picture = Image.new("RGB", (90, 30), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 20, 30))
    red = [float(Preprocessing(30, mode)(picture)[0].max()) > 1.5 for mode in ("pad", "crop")]
    assert red == [True, False]
    assert HFModel("x").preprocessing == "pad"


@pytest.mark.parametrize("name", FAMILIES)
def test_6_anchored_lora_names_leave_out_the_tower_whose_layers_are_named_alike(name: str) -> None:
    model = FAMILIES[name][0](device="cpu").load().model
    linear = [key for key, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    hit = {key for key in linear if re.fullmatch(LANGUAGE_LINEARS, key)}
    assert hit == {key for key in linear if key.startswith("model.language_model.")}
    bare = {key for key in linear if key.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "gate_proj")}
    assert bare - hit, "bare names would have done; this test shows nothing"


def test_7_qwens_positions_are_given_and_not_left_to_a_silent_fallback(image: str) -> None:
    loaded = ScratchQwen25VL(device="cpu").load()
    batch = make_batch(loaded, image)
    right = token_scores(loaded, batch).logp
    loaded.family.positions = lambda ids, grids: None  # type: ignore[method-assign]
    counted = token_scores(loaded, batch).logp
    assert torch.allclose(right[1], counted[1])  # text only
    assert not torch.allclose(right[2], counted[2], atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_9_a_float16_file_is_loaded_in_the_type_that_is_asked_for(name: str, tmp_path: Path) -> None:
    """8 (the hub's names of weights) is in test_vlm_families and test_vlm."""
    scratch, kind = FAMILIES[name]
    loaded = scratch(device="cpu").load()
    loaded.model.half()
    loaded.save(tmp_path)
    for dtype in ("bfloat16", "float32"):
        model = kind(str(tmp_path), dtype=dtype, device="cpu").load().model
        assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_10_the_space_after_the_image_is_there_with_every_tokenizer_json(scheme: str) -> None:
    import json

    from tokenizers import Tokenizer

    from nsft_exp.conversation import ChatEncoder
    from nsft_exp.vlm.tokenizer import wrap

    content = json.loads(ScratchLlava(device="cpu").load().tokenizer.backend_tokenizer.to_str())
    content["pre_tokenizer"]["prepend_scheme"] = scheme
    tokenizer = wrap(Tokenizer.from_str(json.dumps(content)))
    ids = ChatEncoder(tokenizer).prompt((Turn("prompt", "Hi"),), 2)
    after = len(ids) - list(ids)[::-1].index(tokenizer.convert_tokens_to_ids("<image>"))
    assert tokenizer.convert_ids_to_tokens(ids[after : after + 2]) == ["▁", "<0x0A>"]


# --- QLoRA -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_language_models_linear_maps_would_be_held_in_four_bits(name: str) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    scratch, kind = FAMILIES[name]
    model = scratch(device="cpu").load().model
    linear = [key for key, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    hit = {key for key in linear if should_convert_module(key, list(kind.unquantized))}
    assert hit == {key for key in linear if key.startswith("model.language_model.")}


def test_qlora_without_bitsandbytes_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsft_exp.recipe.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        Tuning(quantization="nf4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int3"}, "tuning.quantization=int3"),
        ({"quantization": "nf4", "kind": "full"}, "take tuning.kind=lora"),
    ],
)
def test_a_quantization_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tuning(**options)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("name", FAMILIES)
def test_qlora_trains_adapters_on_a_four_bit_model(name: str, tmp_path: Path) -> None:
    scratch, kind = FAMILIES[name]
    small = scratch(device="cpu", width=64)  # bitsandbytes takes blocks of 64
    small.load().save(tmp_path / "model")
    items = make_items(tmp_path / "items", 4)
    options = {"min_pixels": 256, "max_pixels": 4096} if name == "qwen2_5_vl" else {}
    vlm = kind(str(tmp_path / "model"), dtype="bfloat16", device="cpu", **options)
    train(DPO(), items, tmp_path / "run", vlm=vlm, quantization="nf4", epochs=4, train_projector=True)
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < 0.5 * losses[0]
    model = vlm.load(quantization="nf4").model
    held = {type(module).__name__ for key, module in model.named_modules() if key.endswith("gate_proj")}
    assert "Linear4bit" in held
