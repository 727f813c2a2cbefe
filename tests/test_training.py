"""Training: no result depends on the cut into micro-batches, the way the reference is had, or a kill."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image

from nsft_exp import losses
from nsft_exp.losses import TokenScores
from nsft_exp.method.dpo import DPO
from nsft_exp.method.nsft import NSFT
from nsft_exp.method.sft import SFT, opening
from nsft_exp.recipe import Recipe, TrainerOptions, Tuning
from nsft_exp.records import Decoding, Item, Request, UserError
from nsft_exp.reference import reference_mode
from nsft_exp.resources import telling_out_of_memory
from nsft_exp.training import fit
from nsft_exp.vlm.scratch import ScratchLlava
from nsft_exp.vlm.stacked import is_stacked
from tiny_training import adapter, make_items, rows, train


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return make_items(tmp_path_factory.mktemp("items"))


def assert_same_run(left: Path, right: Path, tolerance: float = 1e-5) -> None:
    """Every logged number of both runs, and the trained weights, within a relative tolerance.

    The first step's accuracy is left out: it is the sign of margins that are zero but for rounding.
    """
    a, b = rows(left), rows(right)
    for first in (a[0], b[0]):
        first.pop("accuracy", None)
    assert [sorted(row) for row in a] == [sorted(row) for row in b]
    for one, other in zip(a, b, strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)
    x, y = adapter(left), adapter(right)
    assert x.keys() == y.keys()
    for name in x:
        torch.testing.assert_close(x[name], y[name], rtol=1e-3, atol=tolerance)


METHODS = {
    "sft": SFT(),
    "dpo": DPO(),
    "nsft": NSFT(),
    "nsft_per_example": NSFT(normalise="example", correction_as="examples"),
    "nsft_kl": NSFT(kl=0.3),
}


@pytest.mark.parametrize("name", METHODS)
def test_eight_by_one_is_four_by_two_is_one_by_eight(name: str, items: list[Item], tmp_path: Path) -> None:
    for micro in (8, 4, 1):
        train(METHODS[name], items, tmp_path / str(micro), batch_size=8, epochs=3, micro_batch=micro)
    assert_same_run(tmp_path / "8", tmp_path / "4")
    assert_same_run(tmp_path / "8", tmp_path / "1")


def test_nsft_with_weight_zero_is_continual_sft(items: list[Item], tmp_path: Path) -> None:
    train(SFT(), items, tmp_path / "sft")
    for correction_as in ("turns", "examples"):
        train(NSFT(weight=0.0, correction_as=correction_as), items, tmp_path / correction_as)
        for one, other in zip(rows(tmp_path / "sft"), rows(tmp_path / correction_as), strict=True):
            for name in ("loss", "nll/chosen", "grad_norm"):
                assert one[name] == pytest.approx(other[name], rel=1e-5)
        x, y = adapter(tmp_path / "sft"), adapter(tmp_path / correction_as)
        assert all(torch.allclose(x[name], y[name], atol=1e-5) for name in x)


@pytest.mark.parametrize("train_projector", [False, True])
def test_the_three_reference_modes_agree_and_start_at_log_two(
    train_projector: bool, items: list[Item], tmp_path: Path
) -> None:
    held = {}
    for mode in ("adapter_off", "cached", "copy"):
        folder = tmp_path / mode
        held[mode] = train(
            DPO(), items, folder, items[:3], reference=mode, train_projector=train_projector, validate_every=2
        )
    assert {mode: summary["models_held"] for mode, summary in held.items()} == {
        "adapter_off": 1,
        "cached": 1,
        "copy": 2,
    }
    assert_same_run(tmp_path / "adapter_off", tmp_path / "cached")
    assert_same_run(tmp_path / "adapter_off", tmp_path / "copy")
    first = rows(tmp_path / "cached")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["margin"] == pytest.approx(0, abs=1e-4)
    assert rows(tmp_path / "copy")[-1]["validation/margin"] != 0


def test_each_held_out_example_is_recorded_before_and_after(items: list[Item], tmp_path: Path) -> None:
    """A DPO margin is against the model before, so it is what the chosen-rejected gap has gained."""
    train(DPO(), items, tmp_path / "run", items[:3], validate_every=2)
    lines = (tmp_path / "run" / "held_out.jsonl").read_text("utf-8").splitlines()
    steps: dict[int, dict[str, float]] = {}
    for row in map(json.loads, lines):
        steps.setdefault(row["step"], {})[row["example"]] = row["margin"]
    assert list(steps) == [0, 2, 4]
    assert set(steps[0]) == set(steps[4]) == {"s0", "s1", "s2"}
    gained = sum(steps[4][name] - steps[0][name] for name in steps[0]) / 3
    assert gained == pytest.approx(rows(tmp_path / "run")[-1]["validation/margin"], abs=1e-4)
    assert not any(row["step"] == 0 for row in rows(tmp_path / "run"))


def test_what_a_method_moves_is_a_margin_or_the_answers_that_it_teaches() -> None:
    table = torch.tensor([[0.0, -1.0, -2.0], [0.0, -4.0, 0.0], [0.0, -3.0, -5.0], [0.0, -7.0, 0.0]])
    role = torch.tensor([[0, 1, 1], [0, 2, 0], [0, 1, 3], [0, 1, 0]])
    scores = TokenScores(table, torch.ones(4, 3), role, torch.tensor([0, 0, 1, 2]))
    nan = math.nan
    for reduction, margin in (("sum", 1.0), ("mean", 2.5)):
        found = {name: values.tolist() for name, values in losses.optimised(scores, reduction)}
        expected = {"margin": [margin, nan, nan], "correction": [nan, -5.0, nan], "chosen": [nan, nan, -7.0]}
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, nan_ok=True)


def test_an_exact_kl_is_the_same_beside_a_copy_and_zero_at_the_start(
    items: list[Item], tmp_path: Path
) -> None:
    for mode in ("adapter_off", "copy"):
        train(NSFT(kl=0.3, kl_direction="reverse"), items, tmp_path / mode, reference=mode)
    assert_same_run(tmp_path / "adapter_off", tmp_path / "copy")
    kl = [row["loss/kl"] for row in rows(tmp_path / "copy")]
    assert kl[0] == pytest.approx(0, abs=1e-7)
    assert kl[-1] > 1e-6


def test_full_tuning_takes_a_cached_reference_and_writes_a_model_that_answers(
    items: list[Item], tmp_path: Path
) -> None:
    for mode in ("cached", "copy"):
        summary = train(DPO(), items, tmp_path / mode, kind="full", reference=mode, learning_rate=1e-3)
    assert summary["models_held"] == 2
    for one, other in zip(rows(tmp_path / "cached"), rows(tmp_path / "copy"), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    base, trained = ScratchLlava(device="cpu").load(), ScratchLlava(device="cpu").load([tmp_path / "cached"])
    before, after = base.model.state_dict(), trained.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("language_model" in name for name in moved)
    assert not any("vision_tower" in name or "projector" in name for name in moved)


def test_lora_trains_the_language_model_only_and_the_adapter_changes_answers(
    items: list[Item], tmp_path: Path
) -> None:
    summary = train(SFT(), items, tmp_path / "run", epochs=6)
    names = list(adapter(tmp_path / "run"))
    assert all(".language_model." in name and ("lora_A" in name or "lora_B" in name) for name in names)
    assert len(names) == 2 * 7 * 2  # A and B of seven linear maps in two layers
    assert summary["trainable_parameters"] == sum(t.numel() for t in adapter(tmp_path / "run").values())
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    assert losses[-1] < 0.8 * losses[0]
    base, tuned = ScratchLlava(device="cpu").load(), ScratchLlava(device="cpu").load([tmp_path / "run"])
    ids = torch.tensor([base.chat.encode(SFT().examples(items[:1], None)[0].conversations[0].turns).ids])  # type: ignore[arg-type]
    assert not torch.allclose(base.hidden(ids), tuned.hidden(ids), atol=1e-3)


def test_a_trained_projector_is_kept_with_the_adapter(items: list[Item], tmp_path: Path) -> None:
    train(SFT(), items, tmp_path / "run", train_projector=True, lora_dropout=0.0)
    base, tuned = ScratchLlava(device="cpu").load(), ScratchLlava(device="cpu").load([tmp_path / "run"])
    left, right = (x.model.model.multi_modal_projector.linear_1.weight for x in (base, tuned))
    assert not torch.equal(left, right)


def test_a_second_training_goes_on_from_the_first(items: list[Item], tmp_path: Path) -> None:
    train(SFT(), items, tmp_path / "first", epochs=4)
    method, again = SFT(), tmp_path / "second"
    fit(
        vlm=ScratchLlava(device="cpu"),
        method=method,
        examples=method.examples(items, Random(0)),
        validation=[],
        folder=again,
        references=tmp_path / "reference",
        recipe=Recipe("t", 1e-3, 8, lora_rank=4, lora_alpha=8),
        tuning=Tuning(),
        trainer=TrainerOptions(accelerator="cpu", threads=1),
        seed=0,
        progress=False,
        parents=[tmp_path / "first"],
    )
    assert rows(again)[0]["loss"] < rows(tmp_path / "first")[0]["loss"]
    stacked = ScratchLlava(device="cpu").load([tmp_path / "first", again]).model.state_dict()
    single = ScratchLlava(device="cpu").load([tmp_path / "first"]).model.state_dict()
    assert any(not torch.equal(stacked[name], single[name]) for name in single)


class Stop(BaseException):
    """Ends a training at once (that of a cell is killed with SIGKILL in tests/test_cell.py)."""


class Stopped(DPO):
    """DPO that ends before its ninth loss with gradients: in the middle of a global batch."""

    calls = 0

    def loss(self, policy: TokenScores, reference: TokenScores | None) -> dict[str, tuple[Any, Any]]:
        self.calls += policy.logp.requires_grad
        if self.calls == 9:
            raise Stop
        return super().loss(policy, reference)


OPTIONS: dict[str, Any] = {
    "epochs": 4,
    "micro_batch": 3,
    "checkpoint_every": 2,
    "validate_every": 2,
    "sample_answers": 1,
    "lora_dropout": 0.2,
    "train_projector": True,
    "reference": "cached",
}


def test_a_run_stopped_in_the_middle_ends_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    items = make_items(tmp_path / "items")
    train(DPO(), items, tmp_path / "whole" / "run", items[:2], **OPTIONS)
    run = tmp_path / "stopped" / "run"
    with pytest.raises(Stop):
        train(Stopped(), items, run, items[:2], **OPTIONS)
    assert (run / "checkpoint" / "last.ckpt").exists()
    assert not (run / "adapter").exists()
    assert 0 < len(rows(run)) < len(rows(tmp_path / "whole" / "run"))
    train(DPO(), items, run, items[:2], **OPTIONS)
    for name in (
        "metrics.jsonl",
        "samples.jsonl",
        "held_out.jsonl",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
    ):
        assert (run / name).read_bytes() == (tmp_path / "whole" / "run" / name).read_bytes(), name
    train(DPO(), items, run, items[:2], **OPTIONS)  # nothing is left to do: the same again
    assert (run / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "run" / "metrics.jsonl").read_bytes()


def test_checkpoints_hold_only_what_is_trained_and_load_as_plain_weights(
    items: list[Item], tmp_path: Path
) -> None:
    train(SFT(), items, tmp_path / "run")
    checkpoint = torch.load(tmp_path / "run" / "checkpoint" / "last.ckpt", weights_only=True)
    assert all("lora_" in name for name in checkpoint["state_dict"])
    assert not list(tmp_path.rglob("lightning_logs"))


def test_the_weights_of_a_step_are_counted_over_the_global_batch(items: list[Item], tmp_path: Path) -> None:
    """The token mean over the last, smaller batch of an epoch is over that batch's own tokens."""
    summary = train(
        SFT(), items[:5], tmp_path / "run", batch_size=4, epochs=1, micro_batch=1, learning_rate=1e-9
    )
    assert summary["steps"] == 2
    one, two = rows(tmp_path / "run")
    train(SFT(), items[:5], tmp_path / "all", batch_size=5, epochs=1, learning_rate=1e-9)
    (whole,) = rows(tmp_path / "all")
    tokens = one["supervised_tokens"], two["supervised_tokens"]
    assert sum(tokens) == whole["supervised_tokens"] == summary["supervised_tokens"]
    assert whole["loss"] == pytest.approx(
        (one["loss"] * tokens[0] + two["loss"] * tokens[1]) / sum(tokens), rel=1e-5
    )


def test_full_tuning_moves_all_but_the_tower_and_its_model_has_the_hubs_names(
    items: list[Item], tmp_path: Path
) -> None:
    from safetensors import safe_open

    from nsft_exp.vlm.hf import HFModel

    train(SFT(), items, tmp_path / "run", kind="full", train_projector=True, learning_rate=1e-2)
    with safe_open(tmp_path / "run" / "model" / "model.safetensors", "pt") as file:
        parts = {name.rpartition(".layers.")[0] or name.split(".")[0] for name in list(file.keys())}
    assert {"vision_tower.vision_model.encoder", "language_model.model", "multi_modal_projector"} <= parts
    loaded = HFModel(str(tmp_path / "run" / "model"), device="cpu").load()
    before = ScratchLlava(device="cpu").load().model.state_dict()
    after = loaded.model.state_dict()
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert same == {name for name in after if "vision_tower" in name}


def test_a_gpu_out_of_memory_names_the_word_to_change() -> None:
    with pytest.raises(UserError, match=r"trainer\.micro_batch"), telling_out_of_memory(8):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_reference_mode_that_cannot_work_is_refused_with_one_that_can() -> None:
    with pytest.raises(UserError, match="adapter_off or copy"):
        reference_mode("distribution", Tuning(), "cached")
    with pytest.raises(UserError, match="cached or copy"):
        reference_mode("logp", Tuning(kind="full"), "adapter_off")
    assert reference_mode("nothing", Tuning(), "copy") == "none"
    assert reference_mode("logp", Tuning(), "auto") == "adapter_off"
    assert reference_mode("logp", Tuning(kind="full"), "auto") == "cached"
    assert reference_mode("distribution", Tuning(kind="full"), "auto") == "copy"


def test_the_rate_warms_up_and_falls_as_the_schedule_says() -> None:
    cosine = Recipe("r", 1.0, 8, warmup_ratio=0.2)
    assert [cosine.rate(step, 10) for step in range(3)] == [0.5, 1.0, 1.0]
    assert cosine.rate(6, 10) == pytest.approx(0.5)
    assert [Recipe("r", 1.0, 8, warmup_ratio=0, schedule="linear").rate(s, 4) for s in range(4)] == [
        1,
        0.75,
        0.5,
        0.25,
    ]
    assert Recipe("r", 1.0, 8, warmup_ratio=0, schedule="constant").rate(3, 4) == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Recipe("r", 1e-3, 0), "recipe.batch_size=0"),
        (lambda: Recipe("r", 1e-3, 8, schedule="cosin"), "recipe.schedule=cosin"),
        (lambda: Tuning("qlora"), "tuning.kind=qlora"),
        (lambda: TrainerOptions(micro_batch=0), "trainer.micro_batch=0"),
        (lambda: TrainerOptions(reference="second"), "trainer.reference=second"),
        (lambda: TrainerOptions(devices=0), "trainer.devices=0"),
        (lambda: TrainerOptions(num_nodes=2), "trainer.rendezvous"),
    ],
)
def test_an_option_that_does_not_exist_is_refused(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


def test_lora_targets_that_match_nothing_are_refused(items: list[Item], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tuning\.targets=nowhere"):
        train(SFT(), items, tmp_path / "run", targets="nowhere")


def test_activation_checkpointing_changes_nothing(items: list[Item], tmp_path: Path) -> None:
    for switch in (False, True):
        train(NSFT(), items, tmp_path / str(switch), activation_checkpointing=switch)
    assert_same_run(tmp_path / "False", tmp_path / "True")


def test_a_bfloat16_model_trains_float32_adapters_that_stay_beside_its_weights(
    items: list[Item], tmp_path: Path
) -> None:
    small = ScratchLlava(device="cpu", dtype="bfloat16")
    summary = train(DPO(), items, tmp_path / "run", vlm=small, epochs=4, train_projector=True)
    assert summary["precision"] == "bf16-mixed"
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert losses[-1] < 0.5 * losses[0]
    assert {tensor.dtype for tensor in adapter(tmp_path / "run").values()} == {torch.float32}
    base, tuned = small.load(), small.load([tmp_path / "run"])
    assert is_stacked(tuned.model)
    ids = torch.tensor([base.chat.text("Is there a cat?")])
    assert not torch.allclose(base.hidden(ids), tuned.hidden(ids), atol=1e-2)


def test_an_answer_after_training_is_the_trained_one(items: list[Item], tmp_path: Path) -> None:
    """Overfitted on one item, the model gives that answer back; generation and training write alike."""
    one = [items[3]]
    train(SFT(), one, tmp_path / "run", kind="full", train_projector=True, epochs=60, learning_rate=1e-2)
    tuned = ScratchLlava(device="cpu").load([tmp_path / "run"])
    sample = one[0].sample
    request = Request(sample.id, sample.image, opening(sample), decoding=Decoding(max_new_tokens=60))
    ((_, (reply,)),) = tuned.generate([request])
    assert (reply.text, reply.finish) == (sample.answer, "stop")


def test_pictures_can_come_from_the_source_instead_of_files(items: list[Item], tmp_path: Path) -> None:
    drawn = [
        dataclasses.replace(i, sample=dataclasses.replace(i.sample, image=f"toy:{n}"))
        for n, i in enumerate(items)
    ]
    opened: list[str] = []

    def open_image(image: str) -> Image.Image:
        opened.append(image)
        return Image.new("RGB", (20, 30), (int(image.removeprefix("toy:")), 0, 0))

    method = SFT()
    fit(
        vlm=ScratchLlava(device="cpu"),
        method=method,
        examples=method.examples(drawn, Random(0)),
        validation=[],
        folder=tmp_path / "run",
        references=tmp_path / "reference",
        recipe=Recipe("t", 1e-3, 4, epochs=2, lora_rank=2, lora_alpha=4),
        tuning=Tuning(),
        trainer=TrainerOptions(accelerator="cpu", threads=1),
        seed=0,
        open_image=open_image,
        progress=False,
    )
    assert sorted(opened) == sorted(f"toy:{n}" for n in range(len(items)))  # once each, in two epochs


def test_control_c_stops_as_keyboard_interrupt_and_the_next_run_goes_on(
    items: list[Item], tmp_path: Path
) -> None:
    class Interrupted(SFT):
        calls = 0

        def loss(self, policy: Any, reference: Any) -> dict[str, Any]:
            self.calls += policy.logp.requires_grad
            if self.calls == 4:
                raise KeyboardInterrupt
            return super().loss(policy, reference)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(Interrupted(), items, tmp_path / "cut", epochs=3, checkpoint_every=1)
    assert signal.getsignal(signal.SIGINT) == handler
    assert len(rows(tmp_path / "cut")) == 3
    for name in ("cut", "whole"):
        train(SFT(), items, tmp_path / name, epochs=3, checkpoint_every=1)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_validation_loss_is_of_the_weights_after_the_step(
    items: list[Item], tmp_path: Path, precision: str
) -> None:
    """On the training examples themselves it is the next step's training loss."""
    options = {"batch_size": len(items), "epochs": 2, "micro_batch": len(items), "learning_rate": 0.05}
    train(SFT(), items, tmp_path / "run", items, **options, validate_every=1, precision=precision)
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    validation = [row["validation/loss"] for row in rows(tmp_path / "run") if "validation/loss" in row]
    assert abs(losses[1] - losses[0]) > 0.1
    assert validation[0] == pytest.approx(losses[1], rel=1e-3)
