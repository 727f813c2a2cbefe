"""PPO's mathematics: tensors in, tensors out. Shapes are in the names.

N answers of at most R tokens, padded on the right: `mask_NR` says which tokens are there. A value at a token
is the prediction made before it, of the text up to the token before.
"""

from __future__ import annotations

import torch
from torch import Tensor


def answer_rewards(
    score_N: Tensor,
    length_N: Tensor,
    ended_N: Tensor,
    *,
    scale: float,
    no_end_penalty: float,
    length_penalty: float,
    max_length: int,
) -> Tensor:
    """Return reward_N: scale * score, less the penalties of an answer without an end and of its length."""
    without_end_N = (~ended_N).to(score_N.dtype)
    return scale * score_N - no_end_penalty * without_end_N - length_penalty * length_N / max_length


def token_rewards(
    reward_N: Tensor, log_ratio_NR: Tensor, mask_NR: Tensor, kl_coef: float, clamp: bool
) -> Tensor:
    """Return reward_NR: -kl_coef times the log-ratio to the reference, plus the answer's at its last token.

    `clamp`: a negative log-ratio counts as 0.
    """
    penalty_NR = log_ratio_NR.clamp(min=0) if clamp else log_ratio_NR
    return -kl_coef * penalty_NR * mask_NR + reward_N[:, None] * _is_last(mask_NR)


def _is_last(mask_NR: Tensor) -> Tensor:
    """Which tokens are their answers' last."""
    following_NR = torch.nn.functional.pad(mask_NR[:, 1:], (0, 1))
    return mask_NR & ~following_NR


def gae(
    reward_NR: Tensor, value_NR: Tensor, mask_NR: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Return advantage_NR and return_NR: generalized advantage estimation (Schulman et al. 2016, eq. 16).

    An answer's last token ends its episode, whether or not it is the end token.
    """
    advantage_NR = torch.zeros_like(reward_NR)
    running_N = torch.zeros_like(reward_NR[:, 0])
    after_N = torch.zeros_like(running_N)
    for t in range(reward_NR.shape[1] - 1, -1, -1):
        error_N = reward_NR[:, t] + gamma * after_N - value_NR[:, t]
        running_N = (error_N + gamma * lam * running_N) * mask_NR[:, t]
        after_N = value_NR[:, t] * mask_NR[:, t]
        advantage_NR[:, t] = running_N
    return advantage_NR, (advantage_NR + value_NR) * mask_NR


def whitened(x_NR: Tensor, mask_NR: Tensor) -> Tensor:
    """Return x_NR with mean 0 and variance 1 over all tokens that are there."""
    values_M = x_NR[mask_NR]
    deviation = values_M.var(unbiased=False).add(1e-8).sqrt()
    return (x_NR - values_M.mean()) / deviation * mask_NR


def policy_losses(
    logp_M: Tensor, old_logp_M: Tensor, advantage_M: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Return loss_M = -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) and which tokens were clipped.

    M tokens (PPO, Schulman et al. 2017, equation 7). A clipped token has no gradient.
    """
    ratio_M = (logp_M - old_logp_M).exp()
    free_M, bound_M = -ratio_M * advantage_M, -ratio_M.clamp(1 - clip, 1 + clip) * advantage_M
    return torch.maximum(free_M, bound_M), bound_M > free_M


def value_losses(
    value_M: Tensor, old_value_M: Tensor, return_M: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Return loss_M = max((v - R)^2, (old + clip(v - old) - R)^2) / 2 and which tokens were clipped.

    clip(x) = min(max(x, -`clip`), `clip`): a value that has moved further towards its return has no gradient.
    """
    near_M = old_value_M + (value_M - old_value_M).clamp(-clip, clip)
    free_M, bound_M = (value_M - return_M) ** 2, (near_M - return_M) ** 2
    return torch.maximum(free_M, bound_M) / 2, bound_M > free_M
