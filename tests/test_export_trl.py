"""TRL's trainers on an exported data set and model: training's tokens, mask and loss, and one step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

os.environ.setdefault("WANDB_MODE", "disabled")
trl = pytest.importorskip("trl", reason="TRL is a test extra")
datasets = pytest.importorskip("datasets", reason="comes with TRL")

from nsft_exp import config as configs  # noqa: E402
from nsft_exp.batching import Batch, collate  # noqa: E402
from nsft_exp.cell_run import build  # noqa: E402
from nsft_exp.encoding import encode_examples  # noqa: E402
from nsft_exp.export.data import write_data  # noqa: E402
from nsft_exp.export.merge import MergedModel  # noqa: E402
from nsft_exp.export.rows import Row, completion_rows, conversation_rows, preference_rows  # noqa: E402
from nsft_exp.method.dpo import DPO  # noqa: E402
from nsft_exp.method.nsft import NSFT  # noqa: E402
from nsft_exp.method.sft import SFT  # noqa: E402
from nsft_exp.records import Item  # noqa: E402
from nsft_exp.reference import token_scores  # noqa: E402
from nsft_exp.sums import term_weights  # noqa: E402
from nsft_exp.vlm.loaded import LoadedHF  # noqa: E402
from tiny_training import make_items  # noqa: E402

Loads = Callable[[list[Row], str], Any]


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return make_items(tmp_path_factory.mktemp("items"), 5)


def node(seed: int = 0) -> dict[str, Any]:
    plain = configs.resolved(configs.compose_config(["vlm=tiny_random"]))["vlm"]
    return plain | {"device": "cpu", "seed": seed}


@pytest.fixture(scope="module")
def exported(items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, exported."""
    folder = tmp_path_factory.mktemp("model")
    MergedModel(folder, node(), None, items).write()
    return folder


@pytest.fixture
def loads(tmp_path: Path) -> Loads:
    """Writes rows and loads the folder as `datasets` does."""

    def load(rows: list[Row], kind: str) -> Any:
        folder = tmp_path / "data"
        folder.mkdir()
        write_data(folder, "d", rows, "trl", kind)
        return datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))

    return load


def settings(kind: Any, folder: Path, **options: Any) -> Any:
    """One step over all items, in float32, nothing cut."""
    options |= {"max_length": None, "max_steps": 1, "per_device_train_batch_size": 5, "learning_rate": 1e-3}
    options |= {"report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    return kind(str(folder), save_strategy="no", disable_tqdm=True, **options)


def our_batch(loaded: LoadedHF, examples: list[Any]) -> Batch:
    encoded, _ = encode_examples(examples, loaded.chat, loaded.layout, 1024)
    return collate(encoded, range(len(encoded)), loaded.pixels, loaded.pad_id)


def our_rows(batch: Batch) -> list[tuple[list[int], list[bool]]]:
    """(ids, which are trained on) of every sequence, padding off."""
    lengths = [int((ids != 0).nonzero().max()) + 1 for ids in batch.ids]
    rows = zip(batch.ids, batch.where, lengths, strict=True)
    return sorted((ids[:n].tolist(), where[:n].tolist()) for ids, where, n in rows)


def their_rows(inputs: dict[str, Any], trained: torch.Tensor) -> list[tuple[list[int], list[bool]]]:
    rows = zip(inputs["input_ids"], trained, inputs["attention_mask"].bool(), strict=True)
    return sorted((ids[real].tolist(), where[real].bool().tolist()) for ids, where, real in rows)


def unpadded(batch: Batch, pad_id: int) -> Batch:
    """The batch with 0, which no text of ours holds, for padding."""
    assert not (batch.ids == 0).any()
    batch.ids = batch.ids.masked_fill(batch.ids == pad_id, 0)
    return batch


def step(trainer: Any, dataset_inputs: dict[str, Any]) -> float:
    """TRL's loss on a batch of its own making, after which it takes one step that changes the model."""
    with torch.no_grad():
        loss = float(trainer.compute_loss(trainer.model, dataset_inputs))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    done = trainer.train()
    assert trainer.state.global_step == 1
    assert done.training_loss == pytest.approx(loss, rel=1e-5)
    assert any(not torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
    return loss


def first_batch(trainer: Any) -> dict[str, Any]:
    return dict(next(iter(trainer.get_train_dataloader())))


def sft_trainer(exported: Path, data: Any, folder: Path, **options: Any) -> Any:
    return trl.SFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(exported),
        args=settings(trl.SFTConfig, folder, **options),
        train_dataset=data,
        processing_class=AutoProcessor.from_pretrained(exported),
    )


@pytest.mark.parametrize("form", ["messages", "prompt_completion"])
def test_sft_on_the_export_has_our_tokens_mask_and_loss(
    form: str, items: list[Item], exported: Path, loads: Loads, tmp_path: Path
) -> None:
    whole = form == "messages"
    loaded, method = build(node()).load(), SFT(supervise_history=whole)
    examples = method.examples(items, None)  # type: ignore[arg-type]
    batch = our_batch(loaded, examples)
    total, weight = method.loss(token_scores(loaded, batch), None)["chosen"]
    rows = conversation_rows(examples) if whole else completion_rows(examples)
    trainer = sft_trainer(exported, loads(rows, form), tmp_path, assistant_only_loss=whole)
    inputs = first_batch(trainer)
    assert their_rows(inputs, inputs["labels"] != -100) == our_rows(unpadded(batch, loaded.pad_id))
    assert step(trainer, inputs) == pytest.approx((total / weight).item(), rel=1e-5)


def test_sft_on_nsfts_dialogues_is_the_mean_over_both_terms_tokens(
    items: list[Item], exported: Path, loads: Loads, tmp_path: Path
) -> None:
    loaded, method = build(node()).load(), NSFT()
    examples = method.examples(items[::2], None)  # type: ignore[arg-type]  # those without a history
    batch = our_batch(loaded, examples)
    terms = method.loss(token_scores(loaded, batch), None)
    together = sum(total for total, _ in terms.values()) / sum(weight for _, weight in terms.values())
    trainer = sft_trainer(
        exported, loads(conversation_rows(examples), "sft"), tmp_path, assistant_only_loss=True
    )
    inputs = first_batch(trainer)
    assert their_rows(inputs, inputs["labels"] != -100) == our_rows(unpadded(batch, loaded.pad_id))
    assert step(trainer, inputs) == pytest.approx(together.item(), rel=1e-5)


def test_dpo_on_the_export_has_our_tokens_mask_and_loss(
    items: list[Item], exported: Path, loads: Loads, tmp_path: Path
) -> None:
    policy, reference = (build(node(seed)).load() for seed in (0, 1))
    method = DPO(beta=0.3)
    batch = our_batch(policy, method.examples(items, None))  # type: ignore[arg-type]
    with torch.no_grad():
        scores, other = token_scores(policy, batch), token_scores(reference, batch)
    weight = term_weights(method, [batch])["dpo"]
    ours = float(method.loss(scores, other)["dpo"][0] / weight)
    rows, _ = preference_rows(items)
    trainer = trl.DPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(exported),
        ref_model=reference.model,
        args=settings(trl.DPOConfig, tmp_path, beta=0.3, loss_type=["sigmoid"]),
        train_dataset=loads(rows, "preference"),
        processing_class=AutoProcessor.from_pretrained(exported),
    )
    inputs = first_batch(trainer)
    assert their_rows(inputs, inputs["completion_mask"]) == our_rows(unpadded(batch, policy.pad_id))
    assert step(trainer, inputs) == pytest.approx(ours, rel=1e-5)


def test_pixels_of_the_exported_processor_are_trainings(items: list[Item], exported: Path) -> None:
    loaded = build(node()).load()
    processor = AutoProcessor.from_pretrained(exported)
    for item in items:
        image = str(item.sample.image)
        theirs = processor.image_processor(loads_image(image), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(theirs, loaded.pixels(image))


def loads_image(path: str) -> Any:
    from PIL import Image

    return Image.open(path).convert("RGB")
