"""Reward model and PPO on a random model: who is trained, what is read, what a kill or a collapse does."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from conftest import DEBUG, POPE_ONLY
from nsft_exp.batching import collate
from nsft_exp.losses import TokenScores
from nsft_exp.method.ppo import PPO
from nsft_exp.method.reward import Reward
from nsft_exp.plan import make_plan
from nsft_exp.ppo.experience import collect, micro_batched
from nsft_exp.ppo.fit import fit_ppo
from nsft_exp.ppo.models import Models, load_models
from nsft_exp.ppo.module import PPOTraining
from nsft_exp.ppo.rollout import Answer, Iterations, ask, encode_prompts, judged
from nsft_exp.recipe import Recipe, TrainerOptions, Tuning
from nsft_exp.records import Decoding, Item, Reply, Request, Sample, UserError
from nsft_exp.value_head import read_head
from nsft_exp.vlm.scratch import ScratchLlava
from test_rounds import CHOICES, config
from tiny_training import adapter, make_items, rows, train


class Stop(BaseException):
    """Ends a training at once."""


REWARD = Reward(criteria="Is this answer good?")
RECIPE = Recipe("t", 5e-3, 4, epochs=2, lora_rank=4, lora_alpha=8)
SHORT = replace(RECIPE, epochs=1)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return make_items(tmp_path_factory.mktemp("items"))


@pytest.fixture(scope="module")
def reward(items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained reward model."""
    folder = tmp_path_factory.mktemp("reward") / "run"
    train(REWARD, items, folder, epochs=6)
    return folder


def fit(items: list[Item], judge: Path, folder: Path, held_out: int = 0, **changes: Any) -> dict[str, Any]:
    """PPO on the random model; `changes` are the method's options, a whole `recipe` or the machine's."""
    recipe, micro_batch = changes.pop("recipe", RECIPE), changes.pop("micro_batch", 4)
    tuning = Tuning(activation_checkpointing=changes.pop("activation_checkpointing", False))
    method = PPO(**{"reward": REWARD, "max_new_tokens": 6, "steps_per_rollout": 1} | changes)
    cut = len(items) - held_out
    return fit_ppo(
        vlm=ScratchLlava(device="cpu"),
        method=method,
        examples=method.examples(items[:cut], Random(0)),
        validation=method.examples(items[cut:], Random(0)),
        folder=folder,
        reward=judge,
        recipe=recipe,
        tuning=tuning,
        trainer=TrainerOptions("cpu", micro_batch=micro_batch, threads=1, sample_answers=1),
        seed=0,
        progress=False,
    )


def load(reward: Path, copies: int = 1) -> Models:
    vlm = ScratchLlava(device="cpu")
    return load_models(vlm, (), reward, copies, RECIPE, Tuning(), torch.device("cpu"), 0)


# --- the reward model ------------------------------------------------------------------------------


def test_a_reward_model_learns_to_rank_few_pairs(reward: Path) -> None:
    first, *_, last = rows(reward)
    assert last["loss"] < 0.2 * first["loss"]
    assert last["accuracy"] == 1
    assert last["reward/chosen"] > 0 > last["reward/rejected"]
    assert not [name for name in first if name.startswith(("nll", "logp"))]
    assert read_head(reward).weight.shape == (32,)


def test_a_reward_does_not_depend_on_the_cut_into_micro_batches(items: list[Item], tmp_path: Path) -> None:
    for micro_batch in (1, 8):
        train(REWARD, items, tmp_path / str(micro_batch), batch_size=8, micro_batch=micro_batch)
    for one, other in zip(rows(tmp_path / "1"), rows(tmp_path / "8"), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


class StoppedReward(Reward):
    """Ends before its fourth loss with gradients."""

    calls = 0

    def loss(self, policy: TokenScores, reference: TokenScores | None) -> dict[str, tuple[Any, Any]]:
        self.calls += policy.value is not None and policy.value.requires_grad
        if self.calls == 4:
            raise Stop
        return super().loss(policy, reference)


def test_a_reward_model_that_was_stopped_goes_on_with_its_head(items: list[Item], tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint_every": 1, "epochs": 3}
    train(Reward(), items, tmp_path / "whole", **options)
    with pytest.raises(Stop):
        train(StoppedReward(), items, tmp_path / "run", **options)
    assert (tmp_path / "run" / "checkpoint" / "last.ckpt").exists()
    train(Reward(), items, tmp_path / "run", **options)
    for name in ("metrics.jsonl", "value_head.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize("criteria", [None, "Is this answer good?"])
def test_the_answer_is_judged_as_it_was_in_training(criteria: str | None, items: list[Item]) -> None:
    loaded, method = ScratchLlava(device="cpu").load(), Reward(criteria, facts="answer")
    sample = items[1].sample
    assert sample.history
    (prompt,), _ = encode_prompts(PPO(reward=method).examples([items[1]], Random(0)), loaded, 2048)
    text = "A red box"
    (conversation,) = judged(prompt, Answer(0, loaded.chat.answer(text), (), text, True)).conversations
    trained = loaded.chat.encode(method.judged(sample, text, "chosen").turns, loaded.num_image_tokens)
    assert conversation.ids.tolist() == list(trained.ids)
    assert conversation.roles.nonzero()[0].tolist() == [len(trained.ids) - 1]
    without_end = judged(prompt, Answer(0, loaded.chat.answer(text)[:-1], (), text, False)).conversations
    assert without_end[0].ids.tolist() == list(trained.ids)
    facts = loaded.tokenizer.decode(prompt.before)
    assert sample.answer in facts
    assert sample.answer not in loaded.tokenizer.decode(prompt.ids)


def test_facts_that_a_sample_has_not_are_refused() -> None:
    sample = Sample("s", None, "What?", "A cat.", meta={"captions": ["One.", "Two."]})
    assert "One. Two." in Reward(facts="captions").judged(sample, "x", "chosen").turns[0].text
    with pytest.raises(UserError, match=r"sample s has no such facts; it has answer, captions"):
        Reward(facts="rationale").judged(sample, "x", "chosen")


def judgement(accuracy: float, spread: float, pairs: int = 64, steps: int = 8) -> list[dict[str, Any]]:
    return [{"accuracy": accuracy, "spread": spread, "examples": pairs} for _ in range(steps)]


@pytest.mark.parametrize(
    ("accuracy", "spread", "message"),
    [
        (0.5, 1.0, "of 128 pairs, 50% of the pairs are ranked right"),
        (0.9, 0.001, "the two answers' scores lie 0.001 apart"),
        (math.nan, math.nan, "apart"),
    ],
)
def test_a_collapsed_reward_model_is_refused_or_reported(
    accuracy: float, spread: float, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = judgement(accuracy, spread)
    with pytest.raises(UserError, match=message):
        Reward().check(found)
    Reward(when_collapsed="report").check(found)
    assert "the reward model has collapsed" in caplog.text


def test_a_sound_reward_model_and_one_of_few_pairs_pass() -> None:
    Reward().check(judgement(0.9, 1.0))
    Reward().check(judgement(0.0, 0.0, pairs=4))
    Reward().check([])
    Reward(min_accuracy=0.5).check(judgement(0.5, 1.0))
    late = judgement(0.5, 1.0, steps=6) + judgement(0.9, 1.0, steps=2)
    Reward().check(late)  # what counts is the end
    held_out = {"validation/accuracy": 0.5, "validation/spread": 1.0, "validation/pairs": 40.0}
    with pytest.raises(UserError, match="of 40 pairs"):
        Reward().check([*late, held_out])


# --- the four parts --------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 4])
def test_one_base_or_four_are_in_memory(copies: int, reward: Path) -> None:
    models = load(reward, copies)
    bases = {
        frozenset(
            p.untyped_storage().data_ptr()
            for name, p in part.loaded.model.named_parameters()
            if "lora_" not in name
        )
        for part in models.parts
    }
    assert models.held == len(bases) == copies
    assert len(frozenset.union(*bases)) == sum(map(len, bases)), "no weight is shared between two of them"


def test_one_base_and_four_models_give_the_same_run(items: list[Item], reward: Path, tmp_path: Path) -> None:
    held = [fit(items, reward, tmp_path / str(c), 2, copies=c, recipe=SHORT)["models_held"] for c in (1, 4)]
    assert held == [1, 4]
    for one, other in zip(rows(tmp_path / "1"), rows(tmp_path / "4"), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4)
    x, y = adapter(tmp_path / "1"), adapter(tmp_path / "4")
    assert all(torch.allclose(x[name], y[name], atol=1e-4) for name in x | y)


def test_activations_that_are_made_again_are_those_of_the_same_adapter(
    items: list[Item], reward: Path, tmp_path: Path
) -> None:
    for name, again in (("kept", False), ("again", True)):
        fit(items, reward, tmp_path / name, activation_checkpointing=again, recipe=SHORT)
    for one, other in zip(rows(tmp_path / "kept"), rows(tmp_path / "again"), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("copies", [1, 4])
def test_policy_and_value_are_trained_and_nothing_else(
    copies: int, items: list[Item], reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Models] = []
    original = PPOTraining.__init__

    def keeping(self: PPOTraining, models: Models, *rest: Any, **more: Any) -> None:
        kept.append(models)
        original(self, models, *rest, **more)

    monkeypatch.setattr(PPOTraining, "__init__", keeping)
    fit(items, reward, tmp_path / "run", copies=copies, recipe=SHORT)
    (after,), before = kept, load(reward, copies)
    moved = {
        (part, name)
        for part in ("policy", "reference", "value", "reward")
        for (name, p), (_, q) in zip(
            getattr(before, part).loaded.model.named_parameters(),
            getattr(after, part).loaded.model.named_parameters(),
            strict=True,
        )
        if not torch.equal(p, q)
    }
    adapters = {name.split(".")[-2] for _, name in moved}
    assert all("lora_" in name for _, name in moved)
    assert adapters == {"default", "value"}
    if copies == 4:
        assert {part for part, _ in moved} == {"policy", "value"}
    heads = [getattr(m, part).head.weight for part in ("value", "reward") for m in (before, after)]
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(heads[2], heads[3])


def test_the_policy_starts_as_the_reference_and_its_first_answers_are_what_training_reads(
    items: list[Item], reward: Path, tmp_path: Path
) -> None:
    fit(items, reward, tmp_path / "run", 2)
    start, first, *_ = rows(tmp_path / "run")
    assert start["step"] == 0
    assert start["validation/kl"] == first["kl"] == 0
    assert first["engine_gap"] < 1e-5
    assert rows(tmp_path / "run")[-2]["kl"] != 0


# --- learning --------------------------------------------------------------------------------------


def test_a_step_makes_good_answers_likelier_and_bad_ones_less(items: list[Item], reward: Path) -> None:
    models, options = load(reward), PPO(reward=REWARD, max_new_tokens=6, value_coef=0.0)
    loaded = models.policy.loaded
    prompts, _ = encode_prompts(options.examples(items, Random(0)), loaded, 2048)
    with models.policy.speaking():
        answers = ask(loaded, prompts, range(8), Decoding(6, 1.0), 2048, loaded.chat.image_token_id)
    batches = micro_batched(8, loaded.pixels, loaded.pad_id, torch.device("cpu"))
    experience = collect(models, prompts, answers, batches, options)
    experience.advantage = torch.where(torch.arange(len(answers)) % 2 == 0, 1.0, -1.0)[:, None].expand(
        experience.mask.shape
    )
    module = PPOTraining(models, options, RECIPE, prompts, [], 1, 0, 2048, batches, *(lambda row: None,) * 4)
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    totals: dict[str, list[float]] = {n: [0.0, 0.0] for n in ("loss/policy", "clip_fraction", "step_kl")}
    for batch in batches(experience.examples, range(len(answers))):
        module._backward(experience, batch, float(experience.mask.sum()), totals)
    with torch.no_grad():
        for parameter in models.policy.switch.trained:
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    again = collect(models, prompts, answers, batches, options)
    change = ((again.logp - experience.logp) * experience.mask).sum(1)
    assert (change[::2] > 0).all()
    assert (change[1::2] < 0).all()


def test_ppo_raises_the_reward_of_one_prompt(items: list[Item], tmp_path: Path) -> None:
    judge = Reward(criteria=None)
    train(judge, items, tmp_path / "reward", epochs=8)
    recipe = Recipe("t", 1e-2, 32, epochs=12, lora_rank=8, lora_alpha=16, schedule="constant")
    plain = {"reward": judge, "max_new_tokens": 2, "no_end_penalty": 0.0, "length_penalty": 0.0}
    fit(items[:1] * 32, tmp_path / "reward", tmp_path / "run", recipe=recipe, micro_batch=32, **plain)
    scores = [row["score"] for row in rows(tmp_path / "run")]
    assert sum(scores[-4:]) / 4 > sum(scores[:4]) / 4 + 0.25


def test_a_run_stopped_in_the_middle_ends_as_if_it_had_not_been_stopped(
    items: list[Item], reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(items, reward, tmp_path / "whole", 2)
    original, calls = PPOTraining._backward, 0

    def stopping(self: PPOTraining, *rest: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:  # in the second inner epoch of an iteration
            raise Stop
        original(self, *rest)

    monkeypatch.setattr(PPOTraining, "_backward", stopping)
    run = tmp_path / "run"
    with pytest.raises(Stop):
        fit(items, reward, run, 2)
    assert 1 < len(rows(run)) < len(rows(tmp_path / "whole"))
    fit(items, reward, run, 2)
    for name in ("metrics.jsonl", "samples.jsonl", "adapter/adapter_model.safetensors"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    fit(items, reward, run, 2)  # nothing is left to do
    assert (run / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_policy_that_leaves_its_reference_stops_and_can_go_on(
    items: list[Item], reward: Path, tmp_path: Path
) -> None:
    summary = fit(items, reward, tmp_path / "whole")
    assert summary["kl_exploded"] is False
    least = max(row["kl"] for row in rows(tmp_path / "whole"))
    assert least > 0
    with pytest.raises(UserError, match=r"nats an answer from its reference, above method\.max_kl="):
        fit(items, reward, tmp_path / "run", max_kl=least / 2)
    assert not (tmp_path / "run" / "adapter").exists()
    fit(items, reward, tmp_path / "run", max_kl=least)
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    told = fit(items, reward, tmp_path / "told", max_kl=least / 2, when_kl_explodes="report")
    assert told["kl_exploded"] is True
    assert [row["kl"] for row in rows(tmp_path / "told") if row.get("kl_exploded")] == [
        row["kl"] for row in rows(tmp_path / "whole") if row["kl"] > least / 2
    ]


def test_a_divergence_that_is_no_number_counts_as_exploded() -> None:
    module = PPOTraining.__new__(PPOTraining)
    torch.nn.Module.__init__(module)
    module.options = PPO(reward=REWARD)
    with pytest.raises(UserError, match="nan nats"):
        module._watch({"kl": math.nan}, 3)
    module._watch({"kl": -2.0}, 3)


# --- prompts ---------------------------------------------------------------------------------------


class Talker:
    """Answers every request, the first one with the image token."""

    def __init__(self, image: int) -> None:
        self.image = image

    def generate(self, requests: Any) -> Iterator[tuple[str, tuple[Reply, ...]]]:
        found: list[Request] = list(requests)
        for number, request in reversed(list(enumerate(found))):
            ids = (5, self.image) if number == 0 else (5, 6)
            yield request.id, (Reply("x", ids, (-1.0, -1.0), "stop"),)


def test_answers_that_no_model_can_read_are_left_out_and_the_others_keep_their_order(
    items: list[Item],
) -> None:
    loaded = ScratchLlava(device="cpu").load()
    prompts, counts = encode_prompts(PPO(reward=REWARD).examples(items, Random(0)), loaded, 2048)
    assert counts == {"dropped": 0}
    image = loaded.chat.image_token_id
    assert [a.number for a in ask(Talker(image), prompts, [4, 2, 7], Decoding(), 2048, image)] == [2, 7]


def test_prompts_without_room_for_an_answer_are_dropped_and_counted(
    items: list[Item], reward: Path, tmp_path: Path
) -> None:
    loaded = ScratchLlava(device="cpu").load()
    examples = PPO(reward=REWARD).examples(items, Random(0))
    prompts, _ = encode_prompts(examples, loaded, 2048)
    longest = max(2048 - p.room(2048) for p in prompts)
    kept, counts = encode_prompts(examples, loaded, longest)
    assert 0 < len(kept) == len(items) - counts["dropped"] < len(items)
    with pytest.raises(UserError, match=r"no prompt leaves room .* raise recipe\.max_length"):
        fit(items, reward, tmp_path / "run", recipe=Recipe("t", 1e-3, 4, max_length=10))


def test_iterations_see_every_prompt_once_an_epoch_and_go_on_from_their_place() -> None:
    order = Iterations(10, 4, 2, seed=1)
    parts = list(order)
    assert [len(p) for p in parts] == [4, 4, 2] * 2
    assert sorted(n for p in parts[:3] for n in p) == list(range(10))
    assert order.num_steps(batch_size=2, inner_epochs=3) == 3 * 2 * (2 + 2 + 1)
    again = Iterations(10, 4, 2, seed=1)
    again.load_state_dict({"position": 4})
    assert list(again) == parts[4:]


def test_micro_batches_give_the_values_of_the_right_answers(items: list[Item], reward: Path) -> None:
    models, options = load(reward), PPO(reward=REWARD)
    loaded = models.policy.loaded
    prompts, _ = encode_prompts(options.examples(items, Random(0)), loaded, 2048)
    texts = ["A cat", "A red box and a dog", "Yes", "No, a cat and a dog"]
    answers = [
        Answer(n, loaded.chat.answer(t), (0.0,) * len(loaded.chat.answer(t)), t, True)
        for n, t in enumerate(texts)
    ]
    found = [
        collect(
            models, prompts, answers, micro_batched(m, loaded.pixels, loaded.pad_id, loaded.device), options
        )
        for m in (1, 3)
    ]
    for name in ("logp", "ref_logp", "value", "score", "advantage", "returns"):
        assert torch.allclose(getattr(found[0], name), getattr(found[1], name), atol=1e-4), name
    one = collate(found[0].examples, [3], loaded.pixels, loaded.pad_id)
    with torch.no_grad():
        alone = models.value.values(one, models.features(one)(models.value))
    asked = len(prompts[3].ids)
    assert torch.allclose(found[1].value[3][: len(answers[3].ids)], alone[0, asked - 1 : -1], atol=1e-5), (
        "read before each token"
    )


# --- as a user -------------------------------------------------------------------------------------


def test_a_reward_model_is_a_step_of_its_own_before_the_training_that_reads_it() -> None:
    changed = {"method": {"_target_": "x.Reward"}, "recipe": {"epochs": 3}}
    steps = make_plan(config(reward=changed, critic={}), CHOICES, "preference")
    assert [(s.name, s.label, s.inputs) for s in steps[:3]] == [
        ("respond", "s-v-p", ()),
        ("train:reward", "s-v-m-seed0-reward", ("respond",)),
        ("train", "s-v-m-seed0", ("respond", "train:reward")),
    ]
    assert (steps[1].nodes["method"], steps[1].nodes["recipe"]) == ({"_target_": "x.Reward"}, {"epochs": 3})
    assert steps[2].nodes["recipe"] == {"epochs": 1}
    assert steps[3].init == ("train",)
    with pytest.raises(UserError, match=r"reward: recipe\.epoch: there is no such key; there are epochs"):
        make_plan(config(reward={"method": {}, "recipe": {"epoch": 3}}), CHOICES, "preference")


WORDS = ("method=llava_rlhf", *DEBUG, *POPE_ONLY, "method.max_new_tokens=8")
Run = Callable[..., int]


def test_a_cell_trains_a_reward_model_then_the_policy_and_evaluates_it(
    nsft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("-m", *WORDS, "pairing.max_new_tokens=8", "trainer.held_out=2")
    assert nsft(*words) == 0
    (cell,) = json.loads((tmp_path / "runs" / "studies" / "sweep" / "cells.json").read_text("utf-8"))
    folders = {name: tmp_path / path for name, path in cell["folders"].items()}
    assert set(folders) == {"respond", "train:reward", "train", "evaluate:pope"}
    assert (folders["train:reward"] / "value_head.safetensors").exists()
    assert not (folders["train"] / "checkpoint").exists()
    assert {"lora_A", "lora_B"} <= {name.split(".")[-2] for name in adapter(folders["train"])}
    manifest = json.loads((folders["train"] / "manifest.json").read_text("utf-8"))
    assert (manifest["models_held"], manifest["counts"]["samples"], manifest["kl_exploded"]) == (1, 8, False)
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("manifest.json")}
    assert nsft(*words, "method.max_kl=7", "reward.method.min_accuracy=0.6") == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("manifest.json")} == made
    monkeypatch.setattr("nsft_exp.method.reward.ENOUGH", 1)
    assert nsft(*words[1:], "reward.method.min_spread=1e9") == 2
    assert "the reward model has collapsed: of" in capsys.readouterr().err
    ids = torch.arange(5, 15)[None]
    base, trained = (ScratchLlava(device="cpu").load(a) for a in ((), (folders["train"],)))
    assert not torch.allclose(base.hidden(ids), trained.hidden(ids), atol=1e-5)


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_makes_the_rollouts_with_the_newest_adapter(nsft: Run, tmp_path: Path, vllm_python: str) -> None:
    words = (*WORDS, "vlm=toy", "recipe.learning_rate=1e-2", "recipe.epochs=2", f"vlm.python={vllm_python}")
    assert (
        nsft(*words, "trainer.accelerator=cpu", "method.rollouts=vllm", "reward.method.min_accuracy=0") == 0
    )
    (policy,) = (p for p in (tmp_path / "runs" / "train").iterdir() if not p.name.count("-reward-"))
    rows = [json.loads(line) for line in (policy / "metrics.jsonl").read_text("utf-8").splitlines()]
    learnt = [row for row in rows if "loss" in row]
    assert [row["examples"] for row in learnt] == [8, 8]
    assert abs(learnt[0]["kl"]) < 1e-3  # it begins as the reference
    assert learnt[1]["kl"] != 0
    assert adapter(policy)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PPO(reward=REWARD, copies=2), r"method\.copies=2: take 1"),
        (lambda: PPO(reward=REWARD, rollouts_memory=4), r"method\.rollouts_memory=4: take a share"),
        (lambda: PPO(reward=REWARD, rollouts="server"), r"method\.rollouts=server"),
        (lambda: PPO(reward=REWARD, clip=0), r"method\.clip=0: must be positive"),
        (lambda: PPO(reward=REWARD, lam=2), r"method\.lam=2: take a share"),
        (lambda: PPO(reward=REWARD, kl_coef=-1), r"method\.kl_coef=-1: must not be negative"),
        (lambda: PPO(reward=REWARD, when_kl_explodes="go"), r"method\.when_kl_explodes=go"),
        (lambda: Reward(when_collapsed="go"), r"reward\.method\.when_collapsed=go"),
        (lambda: Reward(center=-1), r"reward\.method\.center=-1"),
    ],
)
def test_options_that_cannot_be_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tuning=full"], "method=llava_rlhf trains adapters; take tuning=lora"),
        (["trainer.devices=2"], "method=llava_rlhf trains in one process"),
        (["recipe.lora_dropout=0.1"], "take recipe.lora_dropout=0"),
        (["pairing=none"], "method=llava_rlhf does not go with pairing=none"),
        (["reward.method.when_collapsed=go"], "reward.method.when_collapsed=go: there is no such choice"),
    ],
)
def test_what_ppo_cannot_do_is_refused_in_one_line_before_any_work(
    words: list[str], message: str, nsft: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nsft(*WORDS, *words) == 2
    (line,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("nsft: ")]
    assert message in line
    assert not (tmp_path / "runs" / "respond").exists()


def test_a_folder_without_a_reward_model_is_refused(items: list[Item], reward: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no adapter of a reward model"):
        fit(items, tmp_path, tmp_path / "run")
    shutil.copytree(reward / "adapter", tmp_path / "half" / "adapter")
    with pytest.raises(UserError, match=r"holds no value_head\.safetensors"):
        fit(items, tmp_path / "half", tmp_path / "run")
