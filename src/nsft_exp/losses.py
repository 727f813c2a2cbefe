"""Loss mathematics: tensors in, tensors out. Shapes are in the names.

B sequences, T tokens, E examples, N chosen tokens, H hidden size, V vocabulary. `role_BT` holds places in
`records.ROLES`. A loss term is a pair (sum, weight): the training loop divides the sum by the weight that the
term has over the whole global batch, so that no result depends on how a batch is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nsft_exp.records import ROLES

PROMPT = ROLES.index("prompt")
Term = tuple[Tensor, Tensor]
Head = Callable[[Tensor], Tensor]
"""Hidden states [N, H] to logits [N, V]."""


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities of a micro-batch's tokens under one model.

    `logp[b, t]` is log p(token t | tokens before t) in float32, 0 where the token is not supervised.
    `example[b]` numbers the micro-batch's examples from 0 (the sequences of one example share a number).
    `kl[b, t]` is the divergence between reference and policy at that token, where a loss asked for it, and
    `value[b, t]` a scalar head's value of the text up to and with that token.
    """

    logp: Tensor
    weight: Tensor
    role: Tensor
    example: Tensor
    kl: Tensor | None = None
    value: Tensor | None = None

    @property
    def num_examples(self) -> int:
        """How many examples the micro-batch has."""
        return int(self.example.max()) + 1 if len(self.example) else 0


def token_logps(
    hidden_BTH: Tensor, head: Head, ids_BT: Tensor, where_BT: Tensor, chunk: int = 8192
) -> Tensor:
    """Return logp_BT of the tokens where `where_BT` (never the first of a row), and 0 elsewhere.

    Logits are made for these tokens only, `chunk` at a time, and their log-softmax is taken in float32. With
    more than one chunk the logits are made again in the backward pass instead of being kept.
    """
    hidden_NH, targets_N = _select(hidden_BTH, where_BT), ids_BT[:, 1:][where_BT[:, 1:]]
    parts = [
        _maybe_again(
            lambda h, t: -F.cross_entropy(head(h).float(), t, reduction="none"), chunk < len(targets_N), h, t
        )
        for h, t in zip(hidden_NH.split(chunk), targets_N.split(chunk), strict=True)
    ]
    return _scatter(torch.cat(parts), where_BT)


def token_kl(
    policy_BTH: Tensor,
    policy_head: Head,
    reference_BTH: Tensor,
    reference_head: Head,
    where_BT: Tensor,
    direction: str = "forward",
    chunk: int = 2048,
) -> Tensor:
    """Return the exact kl_BT between the two models' next-token distributions at the tokens `where_BT`.

    `forward` is KL(reference || policy), `reverse` KL(policy || reference), in nats, over the whole
    vocabulary.
    """
    policy_NH, reference_NH = _select(policy_BTH, where_BT), _select(reference_BTH, where_BT)

    def divergence(p: Tensor, r: Tensor) -> Tensor:
        policy_NV = policy_head(p).float().log_softmax(-1)
        with torch.no_grad():
            reference_NV = reference_head(r).float().log_softmax(-1)
        return kl_of_logps(policy_NV, reference_NV, direction)

    parts = [
        _maybe_again(divergence, chunk < len(policy_NH), p, r)
        for p, r in zip(policy_NH.split(chunk), reference_NH.split(chunk), strict=True)
    ]
    return _scatter(torch.cat(parts), where_BT)


def kl_of_logps(policy_NV: Tensor, reference_NV: Tensor, direction: str) -> Tensor:
    """Return KL_N of two tables of log-probabilities (see token_kl for the directions)."""
    if direction == "forward":
        return (reference_NV.exp() * (reference_NV - policy_NV)).sum(-1)
    return (policy_NV.exp() * (policy_NV - reference_NV)).sum(-1)


def _select(hidden_BTH: Tensor, where_BT: Tensor) -> Tensor:
    """The hidden states that predict the tokens `where_BT`: those one place before them."""
    return hidden_BTH[:, :-1][where_BT[:, 1:]]


def _scatter(values_N: Tensor, where_BT: Tensor) -> Tensor:
    later = torch.zeros(where_BT[:, 1:].shape, dtype=values_N.dtype, device=values_N.device)
    later = later.masked_scatter(where_BT[:, 1:], values_N)
    return F.pad(later, (1, 0))


def _maybe_again(function: Callable[..., Tensor], again: bool, *inputs: Tensor) -> Tensor:
    if again and torch.is_grad_enabled():
        out: Tensor = checkpoint(function, *inputs, use_reentrant=False)
        return out
    return function(*inputs)


# --- terms -----------------------------------------------------------------------------------------


def sft(scores: TokenScores, *roles: str) -> Term:
    """Return (summed weighted negative log-likelihood, summed weight) of the tokens of these roles."""
    return _per_token(-scores.logp, _weight(scores, roles))


def sft_per_example(scores: TokenScores, *roles: str) -> Term:
    """Return (sum over examples of their mean negative log-likelihood, examples with such tokens)."""
    return _per_example(-scores.logp, _weight(scores, roles), scores)


def unlikelihood(scores: TokenScores, weight_BT: Tensor, per_example: bool = False) -> Term:
    """Return -log(1 - p) of the tokens that `weight_BT` weighs (Welleck et al. 2020, equation 5).

    (sum, weight) as `sft` has them, or as `sft_per_example`.
    """
    values_BT = -log1mexp(scores.logp)
    return _per_example(values_BT, weight_BT, scores) if per_example else _per_token(values_BT, weight_BT)


def log1mexp(logp: Tensor) -> Tensor:
    """Return log(1 - e^logp) of log-probabilities, without cancellation at either end.

    A probability that rounds to 1 counts as one machine epsilon less; the gradient passes there too, as a
    token of which the model is certain is the first one to unlearn.
    """
    highest = -torch.finfo(logp.dtype).eps
    logp = logp + (logp.clamp(max=highest) - logp).detach()
    near = logp > -math.log(2)
    # each branch is given a harmless input where the other one counts: else its gradient would be NaN there
    log_of_near = torch.log(-torch.expm1(torch.where(near, logp, -1.0)))
    return torch.where(near, log_of_near, torch.log1p(-torch.exp(torch.where(near, -1.0, logp))))


def _per_token(values_BT: Tensor, weight_BT: Tensor) -> Term:
    return (values_BT * weight_BT).sum(), weight_BT.sum()


def _per_example(values_BT: Tensor, weight_BT: Tensor, scores: TokenScores) -> Term:
    sums_E = by_example((values_BT * weight_BT).sum(1), scores)
    weights_E = by_example(weight_BT.sum(1), scores)
    has_E = weights_E > 0
    return (sums_E / torch.where(has_E, weights_E, 1.0)).sum(), has_E.sum().to(sums_E.dtype)


def mean_kl(scores: TokenScores) -> Term:
    """Return (summed weighted divergence, summed weight) of all supervised tokens."""
    if scores.kl is None:
        raise ValueError(
            "these scores hold no divergence: the method's needs.reference must be 'distribution'"
        )
    weight_BT = scores.weight * (scores.role != PROMPT)
    return (scores.kl * weight_BT).sum(), weight_BT.sum()


def answer_logps(scores: TokenScores, *roles: str, reduction: str = "sum") -> Tensor:
    """Return logp_E: each example's summed weighted log-probability over the tokens of these roles.

    `reduction=mean` divides by the summed weight of these tokens: an average per token, end token included.
    """
    weight_BT = _weight(scores, roles)
    sums_E = by_example((scores.logp * weight_BT).sum(1), scores)
    if reduction == "sum":
        return sums_E
    weights_E = by_example(weight_BT.sum(1), scores)
    return sums_E / torch.where(weights_E > 0, weights_E, 1.0)


def last_values(scores: TokenScores, role: str) -> Tensor:
    """Return value_E: a scalar head's value at the last token of this role, which one sequence each has."""
    if scores.value is None:
        raise ValueError("these scores hold no values: the method's needs.values must be True")
    where_BT = scores.role == ROLES.index(role)
    place_B = (where_BT * torch.arange(where_BT.shape[1], device=where_BT.device)).amax(1)
    value_B = scores.value.gather(1, place_B[:, None])[:, 0] * where_BT.any(1)
    return by_example(value_B, scores)


def log_ratios(
    policy: TokenScores, reference: TokenScores | None, role: str, reduction: str = "sum"
) -> Tensor:
    """Return ratio_E = log pi(y) - log pi_ref(y) of the answers of a role; without reference log pi(y)."""
    logp_E = answer_logps(policy, role, reduction=reduction)
    return logp_E if reference is None else logp_E - answer_logps(reference, role, reduction=reduction)


def margins(policy: TokenScores, reference: TokenScores) -> Tensor:
    """Return m_E = [log pi(y_c) - log pi_ref(y_c)] - [log pi(y_r) - log pi_ref(y_r)] (the nSFT paper)."""
    return log_ratios(policy, reference, "chosen") - log_ratios(policy, reference, "rejected")


def dpo_sigmoid(margin_E: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return the DPO loss_E = -log sigmoid(beta m) (Rafailov et al. 2023, equation 7).

    With `label_smoothing` e it is conservative DPO's (1 - e) L(m) + e L(-m): a share e of labels is wrong.
    """
    loss_E = -F.logsigmoid(beta * margin_E)
    if not label_smoothing:
        return loss_E
    return (1 - label_smoothing) * loss_E - label_smoothing * F.logsigmoid(-beta * margin_E)


def by_example(values_B: Tensor, scores: TokenScores) -> Tensor:
    """Return values_E: the sum of `values_B` over the sequences of each example."""
    zeros_E = torch.zeros(scores.num_examples, dtype=values_B.dtype, device=values_B.device)
    return zeros_E.index_add(0, scores.example, values_B)


def _weight(scores: TokenScores, roles: tuple[str, ...]) -> Tensor:
    where_BT = torch.zeros_like(scores.role, dtype=torch.bool)
    for role in roles:
        where_BT = where_BT | (scores.role == ROLES.index(role))
    return scores.weight * where_BT


# --- what is watched -------------------------------------------------------------------------------


def optimised(policy: TokenScores, reduction: str = "sum") -> Iterator[tuple[str, Tensor]]:
    """Yield (name, value_E) of what a method moves, NaN for an example that has no such answer.

    `margin`: log p of the chosen minus that of the rejected answer (its change over a training is the DPO
    margin against the model before); `correction` and, where nothing is rejected or corrected, `chosen`: log
    p of these answers. `reduction` is over an answer's tokens.
    """
    sums = {role: answer_logps(policy, role, reduction=reduction) for role in ROLES[1:]}
    has = {role: by_example(_weight(policy, (role,)).sum(1), policy) > 0 for role in ROLES[1:]}
    pair_E = has["chosen"] & has["rejected"]
    alone_E = has["chosen"] & ~pair_E & ~has["correction"]
    nan_E = torch.full_like(sums["chosen"], math.nan)
    yield "margin", torch.where(pair_E, sums["chosen"] - sums["rejected"], nan_E)
    yield "correction", torch.where(has["correction"], sums["correction"], nan_E)
    yield "chosen", torch.where(alone_E, sums["chosen"], nan_E)


def diagnostics(policy: TokenScores, reference: TokenScores | None) -> Iterator[tuple[str, Term]]:
    """Yield (name, (sum, weight)) of what is logged of every method besides its loss terms.

    `nll/<role>` per token; for answers with both a chosen and a rejected one, `logp/<role>` per example, and
    against a reference `logratio/<role>`, the margin and how often it is positive (accuracy). Of a reward
    model `reward/<role>`, the margin, its mean size (`spread`) and accuracy, per pair.
    """
    if policy.value is not None:
        yield from _reward_diagnostics(policy)
        return
    for role in ROLES[1:]:
        total, weight = sft(policy, role)
        if weight > 0:
            yield f"nll/{role}", (total, weight)
    both_E = (by_example(_weight(policy, ("chosen",)).sum(1), policy) > 0) & (
        by_example(_weight(policy, ("rejected",)).sum(1), policy) > 0
    )
    count = both_E.sum().float()
    if count == 0:
        return
    for role in ("chosen", "rejected"):
        yield f"logp/{role}", (answer_logps(policy, role)[both_E].sum(), count)
        if reference is not None:
            ratio_E = answer_logps(policy, role) - answer_logps(reference, role)
            yield f"logratio/{role}", (ratio_E[both_E].sum(), count)
    if reference is not None:
        margin_E = margins(policy, reference)[both_E]
        yield "margin", (margin_E.sum(), count)
        yield "accuracy", ((margin_E > 0).float().sum(), count)


def _reward_diagnostics(scores: TokenScores) -> Iterator[tuple[str, Term]]:
    chosen_E, rejected_E = last_values(scores, "chosen"), last_values(scores, "rejected")
    margin_E, count = chosen_E - rejected_E, chosen_E.new_tensor(float(len(chosen_E)))
    yield "reward/chosen", (chosen_E.sum(), count)
    yield "reward/rejected", (rejected_E.sum(), count)
    yield "margin", (margin_E.sum(), count)
    yield "spread", (margin_E.abs().sum(), count)
    yield "accuracy", ((margin_E > 0).float().sum(), count)
