"""Losses of pairs: tensors in, tensors out. E examples, each with a chosen and a rejected answer.

`chosen_E` and `rejected_E` are an answer's log pi(y) - log pi_ref(y), or log pi(y) where a loss has no
reference; whether they are summed or averaged over its tokens is the caller's affair. The margin is their
difference. DPO's own loss is `nsft_exp.losses.dpo_sigmoid`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nsft_exp.losses import dpo_sigmoid, log1mexp


def margin_of_side(chosen_E: Tensor, rejected_E: Tensor, side: str, form: str) -> Tensor:
    """Return the margin_E through which only one answer (`side`: chosen, rejected or both) is trained.

    `coefficient`: the margin is the whole one, with the other answer's gradient stopped, so that a loss keeps
    its value and its coefficient, as DPO's beta sigmoid(-beta m). `alone`: the margin is this answer's part
    alone, as if the other did not exist.
    """
    if side == "both":
        return chosen_E - rejected_E
    if form == "alone":
        return chosen_E if side == "chosen" else -rejected_E
    return chosen_E - rejected_E.detach() if side == "chosen" else chosen_E.detach() - rejected_E


def hinge(margin_E: Tensor, beta: float) -> Tensor:
    """Return loss_E = max(0, 1 - beta m) (the hinge of SLiC, Zhao et al. 2023, on DPO's margin)."""
    return F.relu(1 - beta * margin_E)


def ipo(margin_E: Tensor, beta: float) -> Tensor:
    """Return loss_E = (m - 1 / (2 beta))^2; beta is the paper's tau (Azar et al. 2023, equation 17)."""
    return (margin_E - 1 / (2 * beta)) ** 2


def robust(margin_E: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Return loss_E = [(1 - e) L(m) - e L(-m)] / (1 - 2 e) (Chowdhury et al. 2024).

    L is DPO's loss. Where a share e of labels is swapped, its mean over the swaps is that of L on the right
    labels.
    """
    right_E, swapped_E = dpo_sigmoid(margin_E, beta), dpo_sigmoid(-margin_E, beta)
    return ((1 - label_smoothing) * right_E - label_smoothing * swapped_E) / (1 - 2 * label_smoothing)


def simpo(chosen_E: Tensor, rejected_E: Tensor, beta: float, gamma: float) -> Tensor:
    """Return loss_E = -log sigmoid(beta (log pi(y_c) - log pi(y_r)) - gamma) of averages per token.

    `gamma` is the target reward margin (Meng et al. 2024, equation 6).
    """
    return -F.logsigmoid(beta * (chosen_E - rejected_E) - gamma)


def odds_ratio(chosen_E: Tensor, rejected_E: Tensor) -> Tensor:
    """Return loss_E = -log sigmoid(log odds(y_c) - log odds(y_r)) of averages per token.

    odds = p / (1 - p), p the geometric mean of an answer's token probabilities (ORPO, Hong et al. 2024,
    equations 4 and 7, before the weight lambda).
    """
    return -F.logsigmoid(_log_odds(chosen_E) - _log_odds(rejected_E))


def _log_odds(logp_E: Tensor) -> Tensor:
    return logp_E - log1mexp(logp_E)


def kto(
    chosen_E: Tensor,
    rejected_E: Tensor,
    kl_E: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the losses of the chosen and of the rejected answers, each [E] (Ethayarajh et al. 2024).

    w_D (1 - sigmoid(beta (r_c - z))) and w_U (1 - sigmoid(beta (z - r_r))), where r is an answer's log ratio
    and z the reference point, max(0, `kl_E`), through which no gradient goes.
    """
    point_E = kl_E.detach().clamp(min=0)
    chosen_loss_E = desirable_weight * F.sigmoid(-beta * (chosen_E - point_E))
    return chosen_loss_E, undesirable_weight * F.sigmoid(-beta * (point_E - rejected_E))
