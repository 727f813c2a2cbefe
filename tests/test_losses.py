"""Loss mathematics against hand derivations and plain full-logit computations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nsft_exp import losses
from nsft_exp.losses import TokenScores
from nsft_exp.records import ROLES

P, C, R, X = (ROLES.index(r) for r in ("prompt", "chosen", "rejected", "correction"))


def scores(
    logp: list[list[float]], role: list[list[int]], example: list[int], weight: Tensor | None = None
) -> TokenScores:
    table = torch.tensor(logp)
    return TokenScores(
        table, torch.ones_like(table) if weight is None else weight, torch.tensor(role), torch.tensor(example)
    )


def test_token_logps_equal_the_full_log_softmax_and_its_gradient_for_any_chunk() -> None:
    torch.manual_seed(0)
    ids, where = torch.randint(0, 11, (3, 7)), torch.rand(3, 7) < 0.5
    where[:, 0] = False
    head, weight = torch.nn.Linear(5, 11), torch.randn(3, 7)
    results = []
    for chunk in (None, 100, 2):
        hidden = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
        if chunk is None:
            full = head(hidden).log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
            logp = torch.nn.functional.pad(full, (1, 0)) * where
        else:
            logp = losses.token_logps(hidden, head, ids, where, chunk=chunk)
        (logp * weight).sum().backward()
        results.append((logp.detach(), hidden.grad))
    for logp, grad in results[1:]:
        torch.testing.assert_close(logp, results[0][0])
        torch.testing.assert_close(grad, results[0][1])


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_exact_kl_equals_torch_distributions(direction: str) -> None:
    torch.manual_seed(0)
    policy, reference = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    head, other = torch.nn.Linear(5, 9), torch.nn.Linear(5, 9)
    where = torch.tensor([[False, True, True, False], [False, False, True, True]])
    p, r = (
        torch.distributions.Categorical(logits=h(x)[:, :-1]) for h, x in ((head, policy), (other, reference))
    )
    expected = torch.distributions.kl_divergence(*((r, p) if direction == "forward" else (p, r)))
    for chunk in (100, 1):
        kl = losses.token_kl(policy, head, reference, other, where, direction, chunk=chunk)
        torch.testing.assert_close(kl, torch.nn.functional.pad(expected, (1, 0)) * where)


def test_the_token_mean_and_the_example_mean_are_as_derived_by_hand() -> None:
    table = scores(
        [[0, -1, -2, -3], [0, -4, 0, 0], [0, -5, -6, 0]],
        [[P, C, C, X], [P, C, P, P], [P, X, C, P]],
        [0, 1, 1],
    )
    total, weight = losses.sft(table, "chosen")
    assert (float(total), float(weight)) == (1 + 2 + 4 + 6, 4)
    total, weight = losses.sft_per_example(table, "chosen")
    assert (float(total), float(weight)) == ((1 + 2) / 2 + (4 + 6) / 2, 2)
    total, weight = losses.sft_per_example(table, "correction")
    assert (float(total), float(weight)) == (3 + 5, 2)
    assert [float(x) for x in losses.sft(table, "mismatch")] == [0, 0]


def test_token_weights_scale_sum_and_weight() -> None:
    weight = torch.tensor([[1.0, 3.0, 1.0]])
    total, count = losses.sft(scores([[0, -2, -1]], [[P, C, C]], [0], weight), "chosen")
    assert (float(total), float(count)) == (3 * 2 + 1, 4)


def test_the_margin_sums_log_ratios_over_the_sequences_of_an_example() -> None:
    role, example = [[P, C, C], [P, R, P]], [0, 0]
    policy, reference = (
        scores([[0, -1, -1], [0, -5, 0]], role, example),
        scores([[0, -2, -2], [0, -1, 0]], role, example),
    )
    assert losses.margins(policy, reference).tolist() == [(-2 + 4) - (-5 + 1)]


def test_dpo_is_log_two_without_a_margin_and_stays_finite_far_out() -> None:
    loss = losses.dpo_sigmoid(torch.tensor([0.0, 1e4, -1e4]), 0.1)
    assert loss.tolist() == pytest.approx([math.log(2), 0, 1e3])


def test_the_gradient_of_dpo_is_the_scaled_difference_of_two_sft_gradients() -> None:
    """the nSFT paper: beta sigma(-beta m) (grad L_sft(y_c) - grad L_sft(y_r)), in float64."""
    torch.manual_seed(0)
    beta, vocabulary = 0.7, 13
    model = torch.nn.Sequential(
        torch.nn.Embedding(vocabulary, 6), torch.nn.Linear(6, 6), torch.nn.Tanh()
    ).double()
    head = torch.nn.Linear(6, vocabulary).double()
    ids = torch.randint(0, vocabulary, (4, 9))
    role = torch.tensor(
        [[P] * 3 + [C] * 4 + [P] * 2, [P] * 3 + [R] * 6, [P] * 2 + [C] * 7, [P] * 5 + [R] * 4]
    )
    example = torch.tensor([0, 0, 1, 1])
    reference = torch.randn(4, 9, dtype=torch.float64)
    weights = [*model.parameters(), *head.parameters()]

    def run() -> TokenScores:
        hidden = model(ids)
        logp = head(hidden).log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
        return TokenScores(
            torch.nn.functional.pad(logp, (1, 0)), torch.ones(4, 9, dtype=torch.float64), role, example
        )

    pi_ref = TokenScores(reference, torch.ones(4, 9, dtype=torch.float64), role, example)
    margin = losses.margins(run(), pi_ref)
    for pair in range(2):
        left = torch.autograd.grad(losses.dpo_sigmoid(losses.margins(run(), pi_ref), beta)[pair], weights)
        chosen = torch.autograd.grad(-losses.answer_logps(run(), "chosen")[pair], weights)
        rejected = torch.autograd.grad(-losses.answer_logps(run(), "rejected")[pair], weights)
        scale = beta * torch.sigmoid(-beta * margin[pair].detach())
        for d, c, r in zip(left, chosen, rejected, strict=True):
            torch.testing.assert_close(d, scale * (c - r), rtol=1e-12, atol=1e-14)


def test_diagnostics_tell_chosen_and_rejected_apart_and_leave_examples_without_a_pair_out() -> None:
    role, example = [[P, C, C], [P, R, P], [P, C, P]], [0, 0, 1]
    policy = scores([[0, -1, -1], [0, -5, 0], [0, -9, 0]], role, example)
    reference = scores([[0, -2, -2], [0, -1, 0], [0, -9, 0]], role, example)
    found = {
        name: float(total) / float(weight) for name, (total, weight) in losses.diagnostics(policy, reference)
    }
    assert found == pytest.approx(
        {
            "nll/chosen": 11 / 3,
            "nll/rejected": 5,
            "logp/chosen": -2,
            "logratio/chosen": 2,
            "logp/rejected": -5,
            "logratio/rejected": -4,
            "margin": 6,
            "accuracy": 1,
        }
    )


def test_a_divergence_that_was_not_computed_is_an_error() -> None:
    with pytest.raises(ValueError, match="distribution"):
        losses.mean_kl(scores([[0.0]], [[P]], [0]))


@pytest.mark.parametrize("logp", [-1e-6, -1e-3, -0.5, -math.log(2), -0.7, -5.0, -30.0])
def test_log1mexp_and_its_gradient_are_exact_at_both_ends(logp: float) -> None:
    x = torch.tensor(logp, requires_grad=True)
    value = losses.log1mexp(x)
    value.backward()
    exact = math.log1p(-math.exp(logp)) if logp < -1 else math.log(-math.expm1(logp))
    assert value.item() == pytest.approx(exact, rel=1e-5)
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(-1 / math.expm1(-logp), rel=1e-5)


def test_a_token_of_which_the_model_is_certain_still_has_a_finite_push() -> None:
    x = torch.tensor([0.0, -1e-12], requires_grad=True)
    value = losses.log1mexp(x)
    assert value.tolist() == pytest.approx([math.log(torch.finfo(torch.float32).eps)] * 2)
    value.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert (x.grad < -1e6).all()


def test_unlikelihood_is_as_derived_by_hand_per_token_and_per_example() -> None:
    quarter, half = math.log(0.25), math.log(0.5)
    table = scores([[0, quarter, half, -1], [0, half, -1, -1]], [[P, R, R, C], [P, R, R, P]], [0, 1])
    where = torch.tensor([[0.0, 1, 1, 0], [0, 1, 0, 0]])
    total, count = losses.unlikelihood(table, where)
    assert (float(total), float(count)) == (pytest.approx(-math.log(0.75) - 2 * math.log(0.5)), 3)
    total, count = losses.unlikelihood(table, where, per_example=True)
    expected = (-math.log(0.75) - math.log(0.5)) / 2 - math.log(0.5)
    assert (float(total), float(count)) == (pytest.approx(expected), 2)


def test_an_average_divides_by_the_weights_and_is_zero_without_tokens() -> None:
    weight = torch.tensor([[1.0, 3, 1], [1, 1, 1], [1, 1, 1]])
    table = scores(
        [[0, -2, -1], [0, -4, 0], [0, -6, 0]], [[P, C, C], [P, C, P], [P, R, P]], [0, 0, 1], weight
    )
    assert losses.answer_logps(table, "chosen").tolist() == [-11, 0]
    assert losses.answer_logps(table, "chosen", reduction="mean").tolist() == [pytest.approx(-11 / 5), 0]
    doubled = scores(
        [[0, -4, -2], [0, -8, 0], [0, -9, 0]], [[P, C, C], [P, C, P], [P, R, P]], [0, 0, 1], weight
    )
    assert losses.log_ratios(table, doubled, "chosen").tolist() == [11, 0]
    assert losses.log_ratios(table, None, "rejected").tolist() == [0, -6]


def test_label_smoothing_mixes_both_orders_of_a_pair() -> None:
    """(1 - e) log(1 + e^-x) + e log(1 + e^x) with x = beta m = 1 and e = 0.1."""
    loss = losses.dpo_sigmoid(torch.tensor([2.0]), 0.5, label_smoothing=0.1)
    expected = 0.9 * math.log(1 + math.exp(-1)) + 0.1 * math.log(1 + math.exp(1))
    assert loss.tolist() == [pytest.approx(expected)]
