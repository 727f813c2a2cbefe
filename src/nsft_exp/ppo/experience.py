"""One iteration's answers with all that is known of their tokens before anything is learnt from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nsft_exp.batching import Batch, collate, micro_batches
from nsft_exp.encoding import EncodedExample
from nsft_exp.ppo import advantage as maths
from nsft_exp.ppo.models import Models
from nsft_exp.ppo.rollout import Answer, Prompt, judged, spoken

Batches = Callable[[Sequence[EncodedExample], Sequence[int]], Iterator[Batch]]
"""Cuts the examples of these numbers into micro-batches on the device."""


@dataclass
class Experience:
    """N answers of at most R tokens; `mask` [N, R] says which are there.

    `logp`, `ref_logp`, `value`, `advantage` and `returns` are [N, R], 0 where there is no token; `score` and
    `reward` are [N].
    """

    answers: list[Answer]
    examples: list[EncodedExample]
    mask: Tensor
    logp: Tensor
    ref_logp: Tensor
    value: Tensor
    score: Tensor
    reward: Tensor
    advantage: Tensor
    returns: Tensor

    def placed(self, name: str, batch: Batch) -> Tensor:
        """A quantity [M] of the M supervised tokens of a micro-batch, in its order."""
        values_NR: Tensor = getattr(self, name)
        return values_NR[batch.numbers][self.mask[batch.numbers]]


def micro_batched(
    micro_batch: int, pixels: Callable[[str, str], Tensor], pad_id: int, device: torch.device
) -> Batches:
    """Return what cuts examples into micro-batches of similar length."""

    def batches(examples: Sequence[EncodedExample], numbers: Sequence[int]) -> Iterator[Batch]:
        for some in micro_batches(numbers, [example.length for example in examples], micro_batch):
            yield collate(examples, some, pixels, pad_id).to(device)

    return batches


@torch.no_grad()
def collect(
    models: Models, prompts: Sequence[Prompt], answers: list[Answer], batches: Batches, options: Any
) -> Experience:
    """Score at least one answer by all four parts; `options` are the method's."""
    examples = [spoken(prompts[answer.number], answer) for answer in answers]
    device = models.policy.loaded.device
    length_N = torch.tensor([len(answer.ids) for answer in answers], device=device)
    mask_NR = torch.arange(int(length_N.max()), device=device) < length_N[:, None]
    logp_NR, ref_NR, value_NR = (torch.zeros(mask_NR.shape, device=device) for _ in range(3))
    for batch in batches(examples, range(len(examples))):
        features = models.features(batch)
        policy_BT = models.policy.logps(batch, features(models.policy))
        reference_BT = models.reference.logps(batch, features(models.reference))
        value_BT = before(models.value.values(batch, features(models.value)))
        for table, part in ((logp_NR, policy_BT), (ref_NR, reference_BT), (value_NR, value_BT)):
            table[batch.numbers] = _by_answer(part, batch, mask_NR)
    score_N = _scores(models, prompts, answers, batches)
    reward_N = maths.answer_rewards(
        score_N,
        length_N,
        torch.tensor([answer.ended for answer in answers], device=device),
        scale=options.reward_scale,
        no_end_penalty=options.no_end_penalty,
        length_penalty=options.length_penalty,
        max_length=options.max_new_tokens,
    )
    reward_NR = maths.token_rewards(reward_N, logp_NR - ref_NR, mask_NR, options.kl_coef, options.clamp_kl)
    advantage_NR, return_NR = maths.gae(reward_NR, value_NR, mask_NR, options.gamma, options.lam)
    if options.whiten:
        advantage_NR = maths.whitened(advantage_NR, mask_NR)
    tables = logp_NR, ref_NR, value_NR, score_N, reward_N, advantage_NR, return_NR
    return Experience(answers, examples, mask_NR, *tables)


def before(value_BT: Tensor) -> Tensor:
    """The value of the text before each token, from those of the text up to and with it."""
    return F.pad(value_BT[:, :-1], (1, 0))


def _by_answer(values_BT: Tensor, batch: Batch, mask_NR: Tensor) -> Tensor:
    """The supervised tokens' values as rows [B, R] from the left."""
    there_BR = mask_NR[batch.numbers]
    return torch.zeros(there_BR.shape, device=there_BR.device).masked_scatter(
        there_BR, values_BT[batch.where].float()
    )


def _scores(models: Models, prompts: Sequence[Prompt], answers: Sequence[Answer], batches: Batches) -> Tensor:
    """The reward model's score_N of the answers."""
    examples = [judged(prompts[answer.number], answer) for answer in answers]
    score_N = torch.zeros(len(examples), device=models.reward.loaded.device)
    for batch in batches(examples, range(len(examples))):
        value_BT = models.reward.values(batch, models.features(batch)(models.reward))
        score_N[batch.numbers] = value_BT[batch.where]
    return score_N


def described(experience: Experience) -> dict[str, float]:
    """What an iteration's answers are like: means over answers, `entropy` and `engine_gap` over tokens.

    `kl` is the mean summed log-ratio to the reference in nats, `entropy` its estimate -log p of what was
    sampled, `engine_gap` the mean distance of the engine's log-probabilities to those of training.
    """
    mask, count = experience.mask, float(len(experience.answers))
    length_N = mask.sum(1).float()
    ratio_NR = (experience.logp - experience.ref_logp) * mask
    made_NR = torch.zeros_like(experience.logp)
    made_NR[mask] = torch.tensor([x for answer in experience.answers for x in answer.logps]).to(made_NR)
    variance = experience.returns[mask].var(unbiased=False)
    residual = (experience.returns - experience.value)[mask].var(unbiased=False)
    return {
        "score": float(experience.score.mean()),
        "reward": float(experience.reward.mean()),
        "kl": float(ratio_NR.sum() / count),
        "kl_per_token": float(ratio_NR.sum() / length_N.sum()),
        "entropy": float(-experience.logp.sum() / length_N.sum()),
        "length": float(length_N.mean()),
        "ended": sum(answer.ended for answer in experience.answers) / count,
        "explained_variance": float(1 - residual / variance) if variance > 0 else 0.0,
        "engine_gap": float((made_NR - experience.logp).abs().sum() / length_N.sum()),
    }
