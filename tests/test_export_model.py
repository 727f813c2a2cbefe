"""`nsft export-model`: merged weights under the hub's names, proven by reading them back."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from conftest import run_nsft
from nsft_exp import config as configs
from nsft_exp.cell_run import build
from nsft_exp.export.agreement import ROUNDING, agree, summary
from nsft_exp.export.finding import MARKER
from nsft_exp.export.merge import MergedModel
from nsft_exp.export.probe import GreedyAnswer
from nsft_exp.export.vllm import vllm_answers
from nsft_exp.images import open_image
from nsft_exp.method.sft import SFT
from nsft_exp.records import Item, Turn, UserError
from nsft_exp.vlm.loaded import LoadedHF
from nsft_exp.vlm.template import exact_template, messages, writes_the_same
from nsft_exp.vlm.vllm_process import one_image_token
from tiny_training import make_items, train


def vlm_node(name: str = "tiny_random", **changes: Any) -> dict[str, Any]:
    """The config node of a random model."""
    return configs.resolved(configs.compose_config([f"vlm={name}"]))["vlm"] | {"device": "cpu"} | changes


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return make_items(tmp_path_factory.mktemp("items"), 5)


def trained(items: list[Item], folder: Path, vlm: dict[str, Any], **changes: Any) -> Path:
    """The folder of a short training of a random model."""
    train(SFT(), items, folder, vlm=build(vlm), epochs=1, **changes)
    return folder


@pytest.fixture(scope="module")
def with_projector(items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of an adapter together with the projector."""
    return trained(items, tmp_path_factory.mktemp("train"), vlm_node(), train_projector=True)


def merged(folder: Path, vlm: dict[str, Any], run: Path | None, items: list[Item]) -> dict[str, Any]:
    folder.mkdir(parents=True)
    return MergedModel(folder, vlm, run, items).write()


def inputs_of(folder: Path, item: Item) -> dict[str, Any]:
    turns = (Turn("prompt", item.sample.question), Turn("chosen", item.sample.answer))
    return AutoProcessor.from_pretrained(folder).apply_chat_template(
        messages(turns, open_image(str(item.sample.image))),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


@torch.inference_mode()
def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return model.eval()(**inputs).logits


@pytest.fixture(scope="module")
def exported(items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, exported."""
    folder = tmp_path_factory.mktemp("exported") / "base"
    merged(folder, vlm_node(), None, items)
    return folder


@pytest.fixture(scope="module")
def folder(with_projector: Path, items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model, exported."""
    folder = tmp_path_factory.mktemp("exported") / "merged"
    merged(folder, vlm_node(), with_projector, items)
    return folder


def test_peft_and_transformers_load_the_adapter_and_the_merged_folder_with_equal_logits(
    with_projector: Path, exported: Path, folder: Path, items: list[Item]
) -> None:
    base = AutoModelForImageTextToText.from_pretrained(exported)
    inputs = inputs_of(folder, items[1])
    before = logits(base, inputs)
    beside = logits(PeftModel.from_pretrained(base, str(with_projector / "adapter")), inputs)
    after = logits(AutoModelForImageTextToText.from_pretrained(folder), inputs)
    scale = float(beside.abs().max())
    assert float((beside - after).abs().max()) / scale < 1e-5
    assert float((before - after).abs().max()) / scale > 1e-3


def test_a_trained_projector_survives_and_the_tower_is_the_bases(with_projector: Path, folder: Path) -> None:
    found = load_file(folder / "model.safetensors")
    base = build(vlm_node()).load().model.state_dict()
    adapter = load_file(with_projector / "adapter" / "adapter_model.safetensors")
    name = "multi_modal_projector.linear_1.weight"
    (kept,) = [tensor for key, tensor in adapter.items() if key.endswith(name)]
    assert torch.equal(found[name], kept)
    assert not torch.equal(found[name], base[f"model.{name}"])
    tower = "vision_tower.vision_model.embeddings.patch_embedding.weight"
    assert torch.equal(found[tower], base["model.vision_tower.embeddings.patch_embedding.weight"])


def test_weights_have_the_hubs_names(folder: Path) -> None:
    names = load_file(folder / "model.safetensors").keys()
    groups = ("vision_tower.vision_model.", "multi_modal_projector.linear_", "language_model.model.")
    assert all(name.startswith((*groups, "language_model.lm_head.")) for name in names)
    assert not any("lora" in name or "base_layer" in name or "modules_to_save" in name for name in names)


@pytest.mark.parametrize("name", ["tiny_random_next", "tiny_random_qwen"])
def test_every_family_is_merged_and_read_back(name: str, items: list[Item], tmp_path: Path) -> None:
    vlm = vlm_node(name)
    run = trained(items, tmp_path / "train", vlm)
    found = merged(tmp_path / "merged", vlm, run, items)
    assert found["chat template"] == "its ids and its mask of answers are those of training"
    assert found["dtype"] == "float32"


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_bfloat16_is_merged_in_float32_and_answers_agree(
    kind: str, items: list[Item], tmp_path: Path
) -> None:
    vlm = vlm_node(dtype="bfloat16")
    run = trained(items, tmp_path / "train", vlm, kind=kind)
    found = merged(tmp_path / "merged", vlm, run, items)
    assert found["dtype"] == "bfloat16"
    assert found["greedy answers against the trained model's"].startswith("5 of 5 agree")
    assert (
        AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype="auto").dtype == torch.bfloat16
    )


def changed_adapter(run: Path, folder: Path, change: Callable[[str, Any], tuple[str, Any]]) -> Path:
    """A copy of a training's folder with other weights in its adapter."""
    shutil.copytree(run, folder)
    file = folder / "adapter" / "adapter_model.safetensors"
    save_file(dict(change(name, tensor) for name, tensor in load_file(file).items()), file)
    return folder


@pytest.mark.parametrize("fault", ["zero", "renamed"])
def test_an_adapter_that_changes_nothing_is_an_error(
    fault: str, items: list[Item], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    run = trained(items, tmp_path / "train", vlm_node())
    changes: dict[str, Callable[[str, Any], tuple[str, Any]]] = {
        "zero": lambda name, tensor: (name, tensor * ("lora_B" not in name)),
        "renamed": lambda name, tensor: (name.replace("language_model.layers", "layers"), tensor),
    }
    run = changed_adapter(run, tmp_path / "changed", changes[fault])
    with pytest.raises(UserError, match=r"changed: what was trained changes nothing \(largest relative"):
        merged(tmp_path / "merged", vlm_node(), run, items)


def test_a_folder_whose_weights_are_not_the_trained_ones_is_refused(
    with_projector: Path, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = LoadedHF.save

    def lossy(self: LoadedHF, folder: Path) -> None:
        save(self, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["language_model.model.layers.0.mlp.up_proj.weight"] *= 1.01
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(LoadedHF, "save", lossy)
    with pytest.raises(UserError, match=r"the folder's logits are not the trained model's"):
        merged(tmp_path / "merged", vlm_node(), with_projector, items)


def test_a_folder_that_lacks_a_weight_is_refused(
    with_projector: Path, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = LoadedHF.save

    def forgetful(self: LoadedHF, folder: Path) -> None:
        save(self, folder)
        tensors = load_file(folder / "model.safetensors")
        del tensors["multi_modal_projector.linear_2.bias"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(LoadedHF, "save", forgetful)
    with pytest.raises(UserError, match=r"the written weights do not fit the model .*linear_2\.bias"):
        merged(tmp_path / "merged", vlm_node(), with_projector, items)


# --- the chat template -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("has_image", "texts"),
    [
        (True, ("What?", "A cat.")),
        (True, ("  Spaces  around \n", " A  cat. ")),
        (True, ("", "An image without a question.")),
        (
            True,
            ("Zählt 42 Bäume – 日本 🙂?", "\n7 Bäume", "Und 100?", "Nein.\n\nNie.", "", "Gut.", "5?", "6"),
        ),
        (False, ("Only text, 3 of it?", "Yes.", " and  more ", "No.")),
    ],
)
def test_the_template_gives_trainings_ids_and_mask(
    has_image: bool, texts: tuple[str, ...], items: list[Item], exported: Path
) -> None:
    loaded = build(vlm_node()).load()
    processor = AutoProcessor.from_pretrained(exported)
    template = processor.chat_template
    assert writes_the_same(processor, loaded.chat, has_image, texts, template, size=(30, 40))


def test_a_system_message_takes_the_place_of_the_styles_own(exported: Path) -> None:
    processor = AutoProcessor.from_pretrained(exported)
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    text = processor.apply_chat_template(asked, tokenize=False)
    assert text == "<s> Be brief. USER: Why? ASSISTANT:"


def test_a_tokenizer_for_which_no_template_is_exact_gets_none(exported: Path) -> None:
    processor = AutoProcessor.from_pretrained(exported)
    chat = copy.copy(build(vlm_node()).load().chat)
    chat.bos = [chat.bos[0]] * 2
    assert exact_template(processor, chat) is None


# --- answers ---------------------------------------------------------------------------------------


def answer(*tokens: tuple[int, float]) -> GreedyAnswer:
    return GreedyAnswer(tuple(t for t, _ in tokens), tuple(p for _, p in tokens))


def test_answers_agree_where_they_part_at_a_near_tie_only() -> None:
    ours = answer((5, -0.5), (6, -0.9), (7, -0.1))
    assert agree(ours, answer((5, -3.0), (6, -3.0), (7, -3.0)))  # equal
    assert agree(ours, answer((5, -0.5), (8, -0.9 + ROUNDING / 2), (9, -5.0)))  # a tie at the second token
    assert not agree(ours, answer((5, -0.5), (8, -0.9 - 2 * ROUNDING)))  # no tie
    assert not agree(ours, answer((5, -0.5 - 2 * ROUNDING), (8, -0.9)))  # another model already at the first
    assert not agree(ours, answer((5, -0.5), (6, -0.9)))  # one goes on where the other ends


def test_too_few_agreeing_answers_are_an_error() -> None:
    same, other = answer((1, -0.1)), answer((2, -2.0))
    assert summary("vLLM", [same, same], [same, same]) == "2 of 2 agree (2 to the last token)"
    with pytest.raises(UserError, match=r"greedy answers against vLLM: only 1 of 2 agree \(1 to the last"):
        summary("vLLM", [same, same], [same, other])


def test_an_answer_ends_with_its_end_token() -> None:
    assert answer((4, -0.1), (2, -0.2), (9, -0.3)).until({2}) == answer((4, -0.1), (2, -0.2))


def test_each_run_of_image_tokens_becomes_one_for_vllm() -> None:
    assert one_image_token([1, 9, 9, 9, 5, 9, 9], 9) == [1, 9, 5, 9]


def test_an_interpreter_without_vllm_is_refused_with_its_last_words(exported: Path) -> None:
    config = AutoConfig.from_pretrained(exported)
    with pytest.raises(
        UserError, match=r"vLLM does not answer \(code 1: .*No module named 'vllm'.*python=none"
    ):
        vllm_answers(sys.executable, exported, [[1]], [None], config)


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_gives_transformers_answers(
    with_projector: Path, items: list[Item], tmp_path: Path, vllm_python: str
) -> None:
    (tmp_path / "merged").mkdir()
    found = MergedModel(tmp_path / "merged", vlm_node(), with_projector, items, python=vllm_python).write()
    assert found["vLLM against transformers"].startswith("5 of 5 agree")


# --- the command -----------------------------------------------------------------------------------

ONLY_POPE = ("~benchmark.chair", "~benchmark.chair_t1", "~benchmark.vqa")
CELL = ("method=cont_sft", "preset=debug", "source.size=4", "limit=1", "launch=inline")


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """The folder in which a cell has been run."""
    root = tmp_path_factory.mktemp("cell")
    assert run_nsft(root, toy_data, *CELL, *ONLY_POPE) == 0
    return root


def test_a_finished_cell_is_exported_with_a_card_and_a_second_time_not_again(
    cell: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("export-model", *CELL, *ONLY_POPE, "to=exports/m")
    assert run_nsft(cell, toy_data, *words) == 0
    assert "vLLM: not compared (not installed here" in capsys.readouterr().out
    folder = cell / "exports" / "m"
    marker = json.loads((folder / MARKER).read_text("utf-8"))
    (run,) = (cell / "runs" / "train").iterdir()
    assert run.name.endswith(marker["made_from"]["train"])
    card = (folder / "README.md").read_text("utf-8")
    for part in ("recipe.learning_rate", "| samples | 4 |", "pope/", "read back by transformers", "cont_sft"):
        assert part in card
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert run_nsft(cell, toy_data, *words) == 0
    assert "written and proven already" in capsys.readouterr().out
    assert (folder / "model.safetensors").stat().st_mtime_ns == made


def test_a_cell_that_is_not_trained_is_refused_with_the_command_to_run(
    cell: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_nsft(cell, toy_data, "export-model", *CELL, "seed=7", "to=exports/other") == 2
    message = capsys.readouterr().err
    assert "holds no finished training of cont_sft on toy_instruct (4) with tiny_random, seed 7" in message
    assert f"run it first: nsft {' '.join(CELL)} seed=7" in message
    assert not (cell / "exports" / "other").exists()


def test_a_folder_of_someone_elses_is_not_written_over(
    cell: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cell / "mine").mkdir(exist_ok=True)
    (cell / "mine" / "notes.txt").write_text("precious")
    assert run_nsft(cell, toy_data, "export-model", *CELL, "to=mine") == 2
    assert "mine: is not empty and was not written by nsft export-model" in capsys.readouterr().err
    assert (cell / "mine" / "notes.txt").read_text() == "precious"


def test_the_file_for_other_interpreters_imports_nothing_of_ours() -> None:
    script = Path(get_object("nsft_exp.vlm.vllm_process").__file__).with_name("vllm_child.py")
    assert "nsft_exp" not in script.read_text("utf-8")
