"""`nsft check vlm=...`: a good folder passes without a network, and what differs is told by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nsft_exp.check import vlm as check
from nsft_exp.check.speaking import LLAVA_HUB
from nsft_exp.records import UserError
from nsft_exp.vlm.reading import read_model
from nsft_exp.vlm.scratch import ScratchLlava
from nsft_exp.vlm.scratch_next import ScratchLlavaNext
from nsft_exp.vlm.scratch_qwen import ScratchQwen25VL

TARGETS = {
    "llava": ("nsft_exp.vlm.hf.HFModel", ScratchLlava, {}),
    "llava_next": ("nsft_exp.vlm.llava_next.LlavaNext", ScratchLlavaNext, {}),
    "qwen2_5_vl": (
        "nsft_exp.vlm.qwen25_vl.Qwen25VL",
        ScratchQwen25VL,
        {"min_pixels": 256, "max_pixels": 4096},
    ),
}
HUB_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}"
    "{% endif %}{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Written from the rules of the original conversation code."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    for name, (_, scratch, _) in TARGETS.items():
        scratch(device="cpu").load().save(folder / name)
    return folder


def node(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    target, _, options = TARGETS[name]
    return {"_target_": target, "path": str(folder / name), "device": "cpu", **options, **changes}


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """The LLaVA folder, to be damaged."""
    shutil.copytree(saved / "llava", tmp_path / "llava")
    return tmp_path


def findings(vlm: dict[str, Any]) -> dict[str, check.Finding]:
    return {finding.what: finding for finding in check.examine(vlm)}


@pytest.mark.parametrize("name", TARGETS)
def test_a_saved_model_passes(saved: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.check_vlm({"vlm": node(saved, name)}) == 0
    said = capsys.readouterr().out
    assert "nothing differs" in said
    for what in ("names of the tensors", "greedy answer", "supervised text", "chat template", "pixels"):
        assert f"ok      {what}" in said


def test_the_command_checks_a_model(nsft: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    from nsft_exp.__main__ import main

    with pytest.raises(SystemExit) as ended:
        main(["check", "vlm=tiny_random_next"])
    assert ended.value.code == 0
    assert "nothing differs" in capsys.readouterr().out


def test_a_processor_that_counts_one_token_too_few_differs(copied: Path) -> None:
    path = copied / "llava" / "processor_config.json"
    content = json.loads(path.read_text())
    del content["num_additional_image_tokens"]
    path.write_text(json.dumps(content))
    found = findings(node(copied, "llava"))["image tokens of 640x480, by the processor"]
    assert found.verdict == "differs"
    assert found.said.startswith("3, not 4")
    assert check.check_vlm({"vlm": node(copied, "llava")}) == 1


def test_the_hubs_template_is_recognised_and_one_that_loses_text_differs(copied: Path) -> None:
    path = copied / "llava" / "chat_template.jinja"
    path.write_text(HUB_TEMPLATE)
    found = findings(node(copied, "llava"))["chat template"]
    assert (found.verdict, "no end of answer" in found.said) == ("note", True)
    path.write_text("{% for message in messages %}{{ message['role'] }}: {% endfor %}")
    lost = findings(node(copied, "llava"))["chat template, two turns"]
    assert lost.verdict == "differs"
    assert "loses the text" in lost.said


def test_the_hubs_five_renderings_are_those_of_the_template_by_its_rules() -> None:
    from nsft_exp.check.speaking import rendered

    assert rendered(ScratchLlava(device="cpu").load().tokenizer, HUB_TEMPLATE) == LLAVA_HUB


def test_other_names_of_tensors_differ(copied: Path) -> None:
    path = copied / "llava" / "model.safetensors"
    tensors = load_file(path)
    new = {name.replace("vision_tower.vision_model.", "vision_tower."): t for name, t in tensors.items()}
    save_file(new, path, metadata={"format": "pt"})
    found = findings(node(copied, "llava"))["names of the tensors"]
    assert found.verdict == "differs"
    assert "unknown (vision_tower.embeddings" in found.said


def test_missing_weights_are_refused_and_not_drawn_at_random(copied: Path) -> None:
    path = copied / "llava" / "model.safetensors"
    tensors = load_file(path)
    del tensors["multi_modal_projector.linear_2.bias"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing \(model\.multi_modal_projector\.linear_2"):
        read_model(copied / "llava", "float32")


def test_a_model_trained_with_padding_tells_that_its_processor_crops(saved: Path) -> None:
    found = findings(node(saved, "llava", preprocessing="crop"))["pixels of the image processor"]
    assert found.verdict == "note"
    assert "mode='crop'" in found.said


def test_a_known_shape_with_other_numbers_differs(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(check.PUBLISHED, ("llava", 32, 2), check.Published(93408, 64, 385, 5))
    found = findings(node(saved, "llava"))
    assert found["parameters"].verdict == found["tensors"].verdict == found["padding id"].verdict == "ok"
    assert found["image tokens of 640x480"].verdict == "differs"


def test_a_folder_of_another_family_or_without_weights_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a llava_next, not a llava"):
        findings({**node(saved, "llava"), "path": str(saved / "llava_next")})
    with pytest.raises(UserError, match="has no configuration"):
        findings({**node(saved, "llava"), "path": str(tmp_path)})


def shapes() -> dict[tuple[str, int, int], Any]:
    """The published configurations, from the hub's config files and the classes' defaults."""
    from transformers import LlavaConfig, LlavaNextConfig, Qwen2_5_VLConfig

    vision = {
        "model_type": "clip_vision_model", "hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14,
        "num_attention_heads": 16, "intermediate_size": 4096, "image_size": 336, "projection_dim": 768,
    }  # fmt: skip
    sizes = {7: {}, 13: {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40,
                         "num_key_value_heads": 40, "intermediate_size": 13824}}  # fmt: skip
    found: dict[tuple[str, int, int], Any] = {}
    for kind in (LlavaConfig, LlavaNextConfig):
        for size in sizes.values():
            text = {"model_type": "llama", "vocab_size": 32064, **size}
            config = kind(vision_config=vision, text_config=text)
            found[config.model_type, config.text_config.hidden_size, config.text_config.num_hidden_layers] = (
                config
            )
    eye = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584}
    text = {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "vocab_size": 152064,
            "num_key_value_heads": 4, "intermediate_size": 18944}  # fmt: skip
    found["qwen2_5_vl", 3584, 28] = Qwen2_5_VLConfig(text_config=text, vision_config=eye)
    return found


def test_the_published_sizes_are_those_of_their_configurations() -> None:
    from transformers import AutoModelForImageTextToText

    for key, config in shapes().items():
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        assert sum(p.numel() for p in model.parameters()) == check.PUBLISHED[key].parameters, key
        assert len(list(model.parameters())) == check.PUBLISHED[key].tensors, key
