"""Our SFT and DPO losses and gradients against TRL's own trainers on the same images and tokens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_training import make_items

os.environ.setdefault("WANDB_MODE", "disabled")
trl = pytest.importorskip("trl", reason="TRL is a test extra")

from nsft_exp.batching import Batch, collate  # noqa: E402
from nsft_exp.encoding import encode_examples  # noqa: E402
from nsft_exp.method.dpo import DPO  # noqa: E402
from nsft_exp.method.sft import SFT  # noqa: E402
from nsft_exp.records import Item  # noqa: E402
from nsft_exp.reference import token_scores  # noqa: E402
from nsft_exp.sums import term_weights  # noqa: E402
from nsft_exp.vlm.loaded import LoadedHF  # noqa: E402
from nsft_exp.vlm.scratch import ScratchLlava  # noqa: E402


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return make_items(tmp_path_factory.mktemp("items"), 5)


def our_batch(loaded: LoadedHF, method: Any, items: list[Item]) -> Batch:
    encoded, _ = encode_examples(method.examples(items, None), loaded.chat, loaded.num_image_tokens, 1024)
    return collate(encoded, range(len(items)), loaded.pixels, loaded.pad_id)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_within_1e5(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        scale = max(float(theirs[name].abs().max()), 1e-3)
        assert float((ours[name] - theirs[name]).abs().max()) / scale < 1e-5, name


def our_loss(method: Any, batch: Batch, policy: LoadedHF, reference: LoadedHF | None = None) -> torch.Tensor:
    with torch.no_grad():
        other = token_scores(reference, batch) if reference else None
    weights = term_weights(method, [batch])
    terms = method.loss(token_scores(policy, batch), other)
    return sum(total / weights[name] for name, (total, _) in terms.items())  # type: ignore[return-value]


def settings(kind: Any, folder: Path, **options: Any) -> Any:
    return kind(
        str(folder),
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        **options,
    )


def test_dpo_equals_trls(items: list[Item], tmp_path: Path) -> None:
    from datasets import Dataset

    policy, reference = (ScratchLlava(device="cpu", seed=seed).load() for seed in (0, 1))
    method = DPO(beta=0.3)
    batch = our_batch(policy, method, items)
    ours = our_loss(method, batch, policy, reference)
    our_gradients = gradients(policy.model, ours)

    trainer = trl.DPOTrainer(
        model=policy.model,
        ref_model=reference.model,
        args=settings(trl.DPOConfig, tmp_path, beta=0.3, loss_type=["sigmoid"]),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=policy.tokenizer,
    )
    rows = []
    for example in method.examples(items, None):  # type: ignore[arg-type]
        turns = example.conversations[0].turns
        prompt = list(policy.chat.prompt(turns[:-1], policy.num_image_tokens))
        answers = [list(policy.chat.answer(c.turns[-1].text)) for c in example.conversations]
        rows.append({"prompt_ids": prompt, "chosen_ids": answers[0], "rejected_ids": answers[1]})
    inputs = trainer.data_collator(rows)
    inputs["pixel_values"] = torch.stack([policy.pixels(str(i.sample.image)) for i in items]).repeat(
        2, 1, 1, 1
    )
    theirs = trainer.compute_loss(trainer.model, inputs)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_equal_within_1e5(our_gradients, gradients(policy.model, theirs))


@pytest.mark.parametrize("supervise_history", [False, True])
def test_sft_equals_trls(supervise_history: bool, items: list[Item], tmp_path: Path) -> None:
    from datasets import Dataset

    policy, method = ScratchLlava(device="cpu").load(), SFT(supervise_history=supervise_history)
    batch = our_batch(policy, method, items)
    ours = our_loss(method, batch, policy)
    our_gradients = gradients(policy.model, ours)

    trainer = trl.SFTTrainer(
        model=policy.model,
        args=settings(trl.SFTConfig, tmp_path),
        train_dataset=Dataset.from_list([{"input_ids": [1, 2, 3]}]),
        processing_class=policy.tokenizer,
    )
    rows = []
    for example in method.examples(items, None):  # type: ignore[arg-type]
        encoded = policy.chat.encode(example.conversations[0].turns, policy.num_image_tokens)
        labels = [token if role else -100 for token, role in zip(encoded.ids, encoded.roles, strict=True)]
        rows.append({"input_ids": list(encoded.ids), "labels": labels})
    inputs = trainer.data_collator(rows)
    inputs["pixel_values"] = torch.stack([policy.pixels(str(i.sample.image)) for i in items])
    theirs = trainer.compute_loss(trainer.model, inputs)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_equal_within_1e5(our_gradients, gradients(policy.model, theirs))
