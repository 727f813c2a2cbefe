"""Our pair losses and their gradients against TRL's own trainers on the same images and tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="TRL is a test extra")

import trl

from nsft_exp.method import pair_loss
from nsft_exp.method.dpo import DPO
from nsft_exp.method.kto import KTO
from nsft_exp.records import Example, Item
from nsft_exp.vlm.loaded import LoadedHF
from nsft_exp.vlm.scratch import ScratchLlava
from test_trl_parity import assert_equal_within_1e5, gradients, our_batch, our_loss, settings
from tiny_training import make_items


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return make_items(tmp_path_factory.mktemp("items"), 5)


@pytest.fixture(scope="module")
def models() -> tuple[LoadedHF, LoadedHF]:
    policy, reference = (ScratchLlava(device="cpu", seed=seed).load() for seed in (0, 1))
    return policy, reference


def ids(policy: LoadedHF, example: Example) -> tuple[list[int], list[list[int]]]:
    """The prompt of an example, and the answers of its conversations."""
    prompt = policy.chat.prompt(example.conversations[0].turns[:-1], policy.num_image_tokens)
    return list(prompt), [list(policy.chat.answer(c.turns[-1].text)) for c in example.conversations]


@pytest.fixture(scope="module")
def dpo_trainer(models: tuple[LoadedHF, LoadedHF], tmp_path_factory: pytest.TempPathFactory) -> Any:
    from datasets import Dataset

    return trl.DPOTrainer(
        model=models[0].model,
        ref_model=models[1].model,
        args=settings(trl.DPOConfig, tmp_path_factory.mktemp("dpo")),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=models[0].tokenizer,
    )


@pytest.mark.parametrize(
    ("method", "theirs", "smoothing"),
    [
        (DPO(beta=0.3, loss="hinge"), {"hinge": 1.0}, 0.0),
        (DPO(beta=0.3, loss="ipo"), {"ipo": 1.0}, 0.0),
        (DPO(beta=0.3, loss="robust", label_smoothing=0.2), {"robust": 1.0}, 0.2),
        (DPO(beta=0.3, reduction="mean"), {"sigmoid_norm": 1.0}, 0.0),
        (DPO(beta=0.3, sft_weight=0.5), {"sigmoid": 1.0, "sft": 0.5}, 0.0),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,
)
def test_a_loss_with_a_reference_equals_trls(
    method: DPO,
    theirs: dict[str, float],
    smoothing: float,
    items: list[Item],
    models: tuple[LoadedHF, LoadedHF],
    dpo_trainer: Any,
) -> None:
    policy, reference = models
    batch = our_batch(policy, method, items)
    ours = our_loss(method, batch, policy, reference)
    our_gradients = gradients(policy.model, ours)
    dpo_trainer.beta, dpo_trainer.label_smoothing = method.beta, smoothing
    dpo_trainer.loss_types, dpo_trainer.loss_weights = list(theirs), list(theirs.values())
    rows = []
    for example in method.examples(items, None):  # type: ignore[arg-type]
        prompt, (chosen, rejected) = ids(policy, example)
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    inputs = dpo_trainer.data_collator(rows)
    pixels = torch.stack([policy.pixels(str(i.sample.image)) for i in items])
    loss = dpo_trainer.compute_loss(policy.model, inputs | {"pixel_values": pixels.repeat(2, 1, 1, 1)})
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_equal_within_1e5(our_gradients, gradients(policy.model, loss))


def test_kto_equals_trls_pair_by_pair(
    items: list[Item], models: tuple[LoadedHF, LoadedHF], tmp_path: Path
) -> None:
    """Our reference point is that of one pair, so TRL sees one pair at a time; the mean of these is ours."""
    from datasets import Dataset

    policy, reference = models
    method = KTO(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    batch = our_batch(policy, method, items)
    ours = our_loss(method, batch, policy, reference)
    our_gradients = gradients(policy.model, ours)
    text = {"prompt": "a", "completion": "b"}
    trainer = trl.KTOTrainer(
        model=policy.model,
        ref_model=reference.model,
        args=settings(
            trl.KTOConfig,
            tmp_path,
            beta=0.3,
            desirable_weight=1.5,
            undesirable_weight=0.5,
            per_device_train_batch_size=2,
        ),
        train_dataset=Dataset.from_list([{**text, "label": True}, {**text, "label": False}]),
        processing_class=policy.tokenizer,
    )
    losses = []
    for item, example in zip(items, method.examples(items, None), strict=True):  # type: ignore[arg-type]
        prompt, (chosen, rejected, *others) = ids(policy, example)
        rows = [
            {"prompt_ids": prompt, "completion_ids": a, "KL_completion_ids": other, "label": label}
            for a, other, label in zip((chosen, rejected), others, (True, False), strict=True)
        ]
        pixels = policy.pixels(str(item.sample.image)).repeat(2, 1, 1, 1)
        inputs = trainer.data_collator(rows) | {"pixel_values": pixels}
        losses.append(trainer.compute_loss(policy.model, inputs))
    loss = torch.stack(losses).mean()
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_equal_within_1e5(our_gradients, gradients(policy.model, loss))


CHOSEN: Any
REJECTED: Any
CHOSEN, REJECTED = torch.tensor([-0.2, -1.5, -3.0]), torch.tensor([-0.9, -0.4, -3.0])
"""Average log-probabilities of three pairs."""


def test_simpo_equals_that_of_trls_cpo_trainer() -> None:
    from trl.experimental.cpo import CPOTrainer

    trainer: Any = SimpleNamespace(
        alpha=0.0,
        beta=2.0,
        simpo_gamma=0.7,
        label_smoothing=0.0,
        loss_type="simpo",
        accelerator=SimpleNamespace(device="cpu"),
    )
    theirs, *_ = CPOTrainer.cpo_loss(trainer, CHOSEN, REJECTED)
    torch.testing.assert_close(pair_loss.simpo(CHOSEN, REJECTED, 2.0, 0.7), theirs)


def test_the_odds_ratio_equals_that_of_trls_orpo_trainer() -> None:
    from trl.experimental.orpo import ORPOTrainer

    trainer: Any = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    theirs, *_ = ORPOTrainer.odds_ratio_loss(trainer, CHOSEN, REJECTED)  # which ORPO subtracts
    torch.testing.assert_close(0.1 * pair_loss.odds_ratio(CHOSEN, REJECTED), -theirs)
