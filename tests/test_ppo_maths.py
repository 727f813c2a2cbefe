"""The mathematics of PPO and of the reward model, against direct sums and derivations by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nsft_exp import losses
from nsft_exp.losses import TokenScores
from nsft_exp.method.reward import Reward, pairwise_logistic
from nsft_exp.ppo import advantage as maths
from nsft_exp.records import ROLES

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()


def noise(seed: int) -> Tensor:
    return torch.randn(MASK.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * MASK


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.95), (0.5, 0.0), (0.0, 1.0)])
def test_advantages_are_the_discounted_sums_of_all_later_errors(gamma: float, lam: float) -> None:
    reward, value = noise(0), noise(1)
    advantage, returns = maths.gae(reward, value, MASK, gamma, lam)
    for n, length in enumerate(MASK.sum(1).tolist()):
        errors = [
            reward[n, t] + (gamma * value[n, t + 1] if t + 1 < length else 0.0) - value[n, t]
            for t in range(length)
        ]
        for t in range(length):
            direct = sum((gamma * lam) ** (s - t) * errors[s] for s in range(t, length))
            assert advantage[n, t] == pytest.approx(float(direct), abs=1e-12)
            assert returns[n, t] == pytest.approx(float(direct + value[n, t]), abs=1e-12)
        assert not advantage[n, length:].any()
        assert not returns[n, length:].any()


def test_without_discount_the_return_is_the_reward_still_to_come() -> None:
    reward, value = noise(2), noise(3)
    advantage, returns = maths.gae(reward, value, MASK, 1.0, 1.0)
    to_come = reward.flip(1).cumsum(1).flip(1) * MASK
    assert torch.allclose(returns, to_come)
    assert torch.allclose(advantage, to_come - value)


def test_an_answers_reward_is_its_scaled_score_less_the_penalties() -> None:
    score, length = torch.tensor([0.5, -1.0]), torch.tensor([5, 20])
    reward = maths.answer_rewards(
        score,
        length,
        torch.tensor([True, False]),
        scale=10.0,
        no_end_penalty=8.0,
        length_penalty=10.0,
        max_length=20,
    )
    assert reward.tolist() == [5.0 - 2.5, -10.0 - 8.0 - 10.0]


@pytest.mark.parametrize(("clamp", "second"), [(True, 0.0), (False, 0.05)])
def test_tokens_pay_for_leaving_the_reference_and_the_last_one_has_the_reward(
    clamp: bool, second: float
) -> None:
    ratio = torch.tensor([[0.2, -0.5, 1.0], [0.3, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    found = maths.token_rewards(torch.tensor([4.0, 7.0]), ratio, mask, 0.1, clamp)
    assert torch.allclose(found, torch.tensor([[-0.02, second, 3.9], [6.97, 0.0, 0.0]]))


def test_whitening_is_over_the_tokens_that_are_there() -> None:
    advantage = noise(4) * 3 + 5 * MASK
    white = maths.whitened(advantage + 100.0 * ~MASK, MASK)
    assert white[MASK].mean() == pytest.approx(0, abs=1e-9)
    assert white[MASK].var(unbiased=False) == pytest.approx(1, abs=1e-6)
    assert not white[~MASK].any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, False),  # at the old policy: the policy gradient itself
        (1.0, -2.0, 2.0, 2.0, False),
        (1.5, 2.0, -2.4, 0.0, True),  # already likelier by more than the clip
        (1.5, -2.0, 3.0, 3.0, False),  # likelier though it is bad: not clipped
        (0.5, 2.0, -1.0, -1.0, False),
        (0.5, -2.0, 1.6, 0.0, True),
    ],
)
def test_the_policy_loss_is_clipped_where_it_would_go_on_too_far(
    ratio: float, advantage: float, loss: float, gradient: float, clipped: bool
) -> None:
    logp = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    found, was = maths.policy_losses(
        logp, torch.zeros(1, dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64), 0.2
    )
    found.sum().backward()
    assert logp.grad is not None
    assert (found.item(), logp.grad.item()) == pytest.approx((loss, gradient))
    assert was.item() is clipped


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient"),
    [
        (1.1, 3.0, 1.9**2 / 2, -1.9),
        (1.5, 3.0, 1.8**2 / 2, 0.0),  # near its bound 1.2: further on counts for nothing
        (0.5, 3.0, 2.5**2 / 2, -2.5),  # it went the wrong way
        (0.5, -3.0, 3.8**2 / 2, 0.0),
    ],
)
def test_the_value_loss_is_clipped_around_the_old_value(
    value: float, target: float, loss: float, gradient: float
) -> None:
    v = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    found, _ = maths.value_losses(v, one, one * target, 0.2)
    found.sum().backward()
    assert v.grad is not None
    assert (found.item(), v.grad.item()) == pytest.approx((loss, gradient))


# --- the reward model ------------------------------------------------------------------------------


def pair_scores(chosen: float, rejected: float) -> TokenScores:
    """A pair of sequences whose scores stand at the last tokens of their roles."""
    role = torch.tensor([[0, 1, 1, 0], [0, 2, 2, 2]])
    assert ROLES[1:3] == ("chosen", "rejected")
    value = torch.full((2, 4), 99.0)
    value[0, 2], value[1, 3] = chosen, rejected
    zeros = torch.zeros(2, 4)
    value.requires_grad_(True)
    return TokenScores(zeros, zeros + 1, role, torch.tensor([0, 0]), value=value)


def test_scores_are_read_at_the_last_token_of_each_answer() -> None:
    scores = pair_scores(1.5, -0.5)
    assert losses.last_values(scores, "chosen").tolist() == [1.5]
    assert losses.last_values(scores, "rejected").tolist() == [-0.5]
    with pytest.raises(ValueError, match=r"needs\.values"):
        losses.last_values(TokenScores(scores.logp, scores.weight, scores.role, scores.example), "chosen")


def test_the_reward_loss_is_the_logistic_one_and_keeps_scores_near_zero() -> None:
    scores = pair_scores(1.5, -0.5)
    terms = Reward(center=0.1).loss(scores, None)
    (total, weight), (center, _) = terms["reward"], terms["center"]
    assert total.item() == pytest.approx(math.log(1 + math.exp(-2.0)))
    assert weight.item() == 1
    assert center.item() == pytest.approx(0.1 * 1.0)
    assert set(Reward(center=0.0).loss(scores, None)) == {"reward"}
    assert pairwise_logistic(torch.zeros(1), torch.zeros(1)).item() == pytest.approx(math.log(2))


def test_the_reward_loss_pushes_the_chosen_score_up_and_the_rejected_one_down() -> None:
    scores = pair_scores(0.3, 0.1)
    Reward(center=0.0).loss(scores, None)["reward"][0].backward()
    assert scores.value is not None
    assert scores.value.grad is not None
    pushed = 1 / (1 + math.exp(0.2))
    assert scores.value.grad[0, 2].item() == pytest.approx(-pushed)
    assert scores.value.grad[1, 3].item() == pytest.approx(pushed)
    assert scores.value.grad.abs().sum().item() == pytest.approx(2 * pushed)
