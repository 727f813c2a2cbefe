"""Methods in rounds: which steps they are, whose model answers, and what each round starts from."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from conftest import DEBUG, POPE_ONLY, run_nsft
from nsft_exp.export.model import export_model
from nsft_exp.plan import make_plan
from nsft_exp.records import Decoding, Request, Turn, UserError
from nsft_exp.store import StageFolder

Run = Callable[..., int]
QUICK = (*DEBUG, *POPE_ONLY, "source.size=6")


def config(**changes: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"source": {"size": 4}, "trainer": {"held_out": 0}, "seed": 0}
    nodes: dict[str, Any] = {"vlm": {"v": 1}, "pairing": {"p": 1}, "critic": {"c": 1}, "codebook": {}}
    training: dict[str, Any] = {"method": {"beta": 0.1}, "recipe": {"epochs": 1}, "tuning": {}}
    return empty | nodes | training | {"benchmark": {"_target_": "x.Pope", "name": "pope"}} | changes


CHOICES = {g: g[0] for g in ("source", "vlm", "pairing", "critic", "codebook", "method")}


def shape(**changes: Any) -> list[tuple[Any, ...]]:
    steps = make_plan(config(**changes), CHOICES, "correction")
    return [(s.name, s.label, s.inputs, s.init) for s in steps]


def test_without_rounds_a_cell_is_one_line_of_steps() -> None:
    line = [
        ("respond", "s-v-p", (), ()),
        ("critique", "s-v-c-c", ("respond",), ()),
        ("train", "s-v-m-seed0", ("respond", "critique"), ()),
        ("evaluate:pope", "pope-s-v-m-seed0", (), ("train",)),
    ]
    assert shape() == shape(rounds=1) == line


def test_a_round_starts_from_the_trainings_before_it() -> None:
    second, third = "s-v-m-seed0-round2", "s-v-m-seed0-round3"
    assert shape(rounds=3) == [
        ("respond:1", "s-v-p", (), ()),
        ("critique:1", "s-v-c-c", ("respond:1",), ()),
        ("train:1", "s-v-m-seed0", ("respond:1", "critique:1"), ()),
        ("respond:2", second, (), ("train:1",)),
        ("critique:2", second, ("respond:2",), ("train:1",)),
        ("train:2", second, ("respond:2", "critique:2"), ("train:1",)),
        ("respond", third, (), ("train:1", "train:2")),
        ("critique", third, ("respond",), ("train:1", "train:2")),
        ("train", third, ("respond", "critique"), ("train:1", "train:2")),
        ("evaluate:pope", f"pope-{third}", (), ("train:1", "train:2", "train")),
    ]


def test_a_round_can_change_values() -> None:
    rounds = [{"recipe": {"epochs": 3}}, {"method": {"beta": 0.5}}]
    steps = make_plan(config(rounds=rounds), CHOICES, "correction")
    nodes = {s.name: s.nodes for s in steps}
    assert (nodes["train:1"]["recipe"]["epochs"], nodes["train:1"]["method"]["beta"]) == (3, 0.1)
    assert (nodes["train"]["recipe"]["epochs"], nodes["train"]["method"]["beta"]) == (1, 0.5)


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        (0, "rounds=0: take a number from 1 on"),
        ([], "take a number"),
        ("two", "rounds=two"),
        ([{"recipe": {"epoch": 2}}], r"rounds: recipe\.epoch: there is no such key; there are epochs"),
    ],
)
def test_rounds_that_make_no_sense_are_refused(rounds: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(config(rounds=rounds), CHOICES, "correction")


# --- run on a random model -------------------------------------------------------------------------


def outcome(root: Path) -> dict[str, StageFolder]:
    (row,) = json.loads((root / "runs" / "studies" / "sweep" / "cells.json").read_text("utf-8"))
    assert row["status"] == "ok", row["error"]
    return {name: StageFolder(root / path) for name, path in row["folders"].items()}


@pytest.fixture(scope="module")
def spun(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> tuple[Path, dict[str, StageFolder]]:
    """Two rounds of self-play."""
    root = tmp_path_factory.mktemp("spun")
    assert run_nsft(root, toy_data, "-m", "method=spin", "rounds=2", *QUICK, "pairing.max_new_tokens=8") == 0
    return root, outcome(root)


def test_a_later_round_answers_with_the_model_that_was_trained_before(
    spun: tuple[Path, dict[str, StageFolder]], toy_data: Path
) -> None:
    from nsft_exp.cell_run import build

    folders = spun[1]
    nodes = folders["respond"].read_config()["nodes"]
    first, second = ({r["id"]: r["rejected"] for r in folders[n].records()} for n in ("respond:1", "respond"))
    assert set(first) == set(second)
    assert first != second
    vlm = build(nodes["vlm"]).load([folders["train:1"].path])
    decoding = Decoding(8, temperature=1.0, seed=nodes["pairing"]["seed"])
    for sample in build(nodes["source"]).samples()[:2]:
        turns = [Turn("prompt", t) for e in sample.history for t in (e.question, e.answer)]
        asked = (*turns, Turn("prompt", sample.question))
        ((_, (reply,)),) = vlm.generate([Request(sample.id, sample.image, asked, decoding=decoding)])
        assert reply.text == second[sample.id]


def test_a_rounds_reference_is_the_model_that_it_starts_from(
    spun: tuple[Path, dict[str, StageFolder]],
) -> None:
    for name in ("train:1", "train"):  # nothing trained yet: a margin of 0, whose loss is log 2
        row = next(iter(spun[1][name].records("metrics.jsonl")))
        assert row["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert spun[1]["train"].manifest()["models_held"] == 1


def test_what_is_done_is_shared_with_fewer_rounds_and_not_done_again(
    spun: tuple[Path, dict[str, StageFolder]], toy_data: Path
) -> None:
    root, folders = spun
    times = {p: p.stat().st_mtime_ns for p in (root / "runs").rglob("manifest.json")}
    for rounds in (2, 1):
        words = ("-m", "method=spin", f"rounds={rounds}", *QUICK, "pairing.max_new_tokens=8")
        assert run_nsft(root, toy_data, *words) == 0
    one = outcome(root)
    assert [one[n].path for n in ("respond", "train")] == [
        folders[f"{n}:1"].path for n in ("respond", "train")
    ]
    assert {p: p.stat().st_mtime_ns for p in times} == times
    new = {p.parents[1].name for p in (root / "runs").rglob("manifest.json")} - {
        p.parents[1].name for p in times
    }
    assert not new & {"respond", "train"}


def test_a_round_that_was_killed_goes_on_to_the_same_bytes(
    spun: tuple[Path, dict[str, StageFolder]], toy_data: Path, tmp_path: Path
) -> None:
    root, folders = spun
    shutil.copytree(root / "runs", tmp_path / "runs")
    respond, train = (tmp_path / folders[name].path.relative_to(root) for name in ("respond", "train"))
    lines = (respond / "records.jsonl").read_bytes().splitlines(keepends=True)
    (respond / "records.jsonl").write_bytes(b"".join(lines[:2]) + b'{"half": ')
    (respond / "manifest.json").unlink()
    shutil.rmtree(train)
    assert run_nsft(tmp_path, toy_data, "method=spin", "rounds=2", *QUICK, "pairing.max_new_tokens=8") == 0
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (train / name).read_bytes() == (folders["train"].path / name).read_bytes()
    assert sorted((respond / "records.jsonl").read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_a_model_of_several_rounds_is_exported_whole(
    spun: tuple[Path, dict[str, StageFolder]], toy_data: Path
) -> None:
    from nsft_exp.vlm.scratch import ScratchLlava

    root, folders = spun
    words = ("method=spin", "rounds=2", *QUICK, "pairing.max_new_tokens=8")
    with chdir(root):
        assert export_model([*words, "to=model", "python=none", f"paths.data={toy_data}"]) == 0
    ids = torch.arange(5, 15)[None]
    trained = [folders[name].path for name in ("train:1", "train")]
    one, two = (ScratchLlava(device="cpu").load(trained[:n]).model for n in (1, 2))
    written = AutoModelForImageTextToText.from_pretrained(root / "model").eval()
    with torch.no_grad():
        first, second, read = (m(input_ids=ids).logits for m in (one, two, written))
    assert torch.allclose(read, second, atol=1e-4)
    assert not torch.allclose(read, first, atol=1e-2)


def test_nsft_in_rounds_criticises_the_newest_answers_with_one_model_in_memory(
    nsft: Run, tmp_path: Path
) -> None:
    assert nsft("-m", "method=nsft_iter", "rounds=2", *QUICK, "pairing.max_new_tokens=8") == 0
    folders = outcome(tmp_path)
    assert folders["critique"].path != folders["critique:1"].path
    rows = {r["id"]: r for r in folders["critique"].records()}
    assert set(rows) == {r["id"] for r in folders["respond"].records()}
    for name in ("train:1", "train"):
        manifest = folders[name].manifest()
        assert manifest
        assert (manifest["models_held"], manifest["reference"]) == (1, "none")


def test_in_low_precision_earlier_rounds_stay_beside_the_weights_and_out_of_reach(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from nsft_exp.recipe import LANGUAGE_LINEARS
    from nsft_exp.vlm.scratch import ScratchLlava
    from nsft_exp.vlm.stacked import is_stacked

    lora = LoraConfig(r=2, lora_alpha=4, target_modules=LANGUAGE_LINEARS, init_lora_weights=False)
    scratch = ScratchLlava(device="cpu", dtype="bfloat16")
    ids = torch.arange(5, 15)[None]
    folders: list[Path] = []
    logits: list[torch.Tensor] = []
    for number in range(2):  # each round is trained on the model of those before
        model = get_peft_model(scratch.load(folders).model, lora).eval()
        model.save_pretrained(str(tmp_path / str(number) / "adapter"))
        folders.append(tmp_path / str(number))
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
            with model.disable_adapter():
                before = model(input_ids=ids).logits
    both = scratch.load(folders).model
    assert is_stacked(both)
    with torch.no_grad():
        assert torch.equal(before, logits[0])
        loaded = both(input_ids=ids).logits
        merged = ScratchLlava(device="cpu").load(folders).model(input_ids=ids).logits

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        return (a.float() - b.float()).abs().mean().item()

    assert apart(logits[0], logits[1]) > 0.5  # the second round has changed the model
    assert apart(loaded, logits[1]) < 0.02  # what comes back is the two of them, up to rounding
    assert apart(merged, logits[1]) < 0.05
