"""Losses of pairs against hand derivations, and their gradients in float64 against those of SFT losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nsft_exp import losses
from nsft_exp.losses import TokenScores
from nsft_exp.method import pair_loss
from nsft_exp.method.dpo import DPO
from nsft_exp.method.kto import KTO
from nsft_exp.method.nsft_dpo import NSFTDPO
from nsft_exp.method.nsft_unlikelihood import MARK, NSFTUnlikelihood
from nsft_exp.method.rlhf_v import RLHFV
from nsft_exp.records import ROLES

P, C, R, X, M = range(len(ROLES))
ROLE = torch.tensor([[P] * 3 + [C] * 4 + [X] * 2, [P] * 3 + [R] * 6, [P] * 2 + [C] * 7, [P] * 5 + [R] * 4])
EXAMPLE = torch.tensor([0, 0, 1, 1])


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


# --- values ----------------------------------------------------------------------------------------


def test_the_hinge_is_zero_beyond_a_scaled_margin_of_one() -> None:
    assert pair_loss.hinge(column(3, 2, 1, -2), 0.5).tolist() == [0, 0, 0.5, 2]


def test_ipo_is_the_squared_distance_of_the_margin_from_half_the_inverse_of_beta() -> None:
    assert pair_loss.ipo(column(2, 3, 0), 0.25).tolist() == [0, 1, 4]


def test_robust_dpo_is_unbiased_where_labels_are_swapped() -> None:
    """(1 - e) robust(m) + e robust(-m) = L(m): its mean over swaps is DPO's loss on the right labels."""
    margin, e = column(-3, 0, 0.7, 5), 0.3
    mean = (1 - e) * pair_loss.robust(margin, 0.5, e) + e * pair_loss.robust(-margin, 0.5, e)
    torch.testing.assert_close(mean, losses.dpo_sigmoid(margin, 0.5), rtol=1e-12, atol=0)


def test_simpo_needs_its_target_margin_before_the_loss_is_log_two() -> None:
    loss = pair_loss.simpo(column(-1, -1), column(-2, -1.25), beta=2, gamma=0.5)
    assert loss.tolist() == pytest.approx([softplus(-(2 * 1 - 0.5)), math.log(2)])


def test_the_odds_ratio_of_a_half_and_a_fifth_is_four() -> None:
    """odds(1/2) = 1, odds(1/5) = 1/4: -log sigmoid(log 4) = log(1 + 1/4)."""
    loss = pair_loss.odds_ratio(column(math.log(0.5)), column(math.log(0.2)))
    assert loss.item() == pytest.approx(math.log(1.25))


def test_kto_measures_each_answer_from_a_reference_point_that_is_never_negative() -> None:
    chosen, rejected = pair_loss.kto(column(2, 2), column(-1, -1), column(1, -5), 0.5, 3, 2)
    sigma = [1 / (1 + math.exp(-x)) for x in (0.5, 1.0)]  # beta (r_c - z): 0.5 (2 - 1) and 0.5 (2 - 0)
    assert chosen.tolist() == pytest.approx([3 * (1 - s) for s in sigma])
    sigma = [1 / (1 + math.exp(-x)) for x in (1.0, 0.5)]  # beta (z - r_r): 0.5 (1 + 1) and 0.5 (0 + 1)
    assert rejected.tolist() == pytest.approx([2 * (1 - s) for s in sigma])


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "robust", "simpo", "orpo"])
def test_no_loss_overflows_far_out_nor_does_its_gradient(loss: str) -> None:
    chosen = torch.tensor([-1e-9, -1e4, -1e4, -1e-9], requires_grad=True)
    rejected = torch.tensor([-1e4, -1e-9, -1e4, -1e-9], requires_grad=True)
    smoothing = {"label_smoothing": 0.1} if loss == "robust" else {}
    value = DPO(loss=loss, **smoothing).pair_losses(chosen, rejected)  # type: ignore[arg-type]
    value.sum().backward()
    for tensor in (value, chosen.grad, rejected.grad):
        assert tensor is not None
        assert torch.isfinite(tensor).all()


# --- gradients -------------------------------------------------------------------------------------


class Model:
    """A small network in float64 that scores four sequences: two pairs."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(torch.nn.Embedding(13, 6), torch.nn.Linear(6, 6), torch.nn.Tanh())
        self.body, self.head = self.body.double(), torch.nn.Linear(6, 13).double()
        self.ids = torch.randint(0, 13, (4, 9))
        self.reference = TokenScores(
            -3 * torch.rand(4, 9, dtype=torch.float64), torch.ones(4, 9).double(), ROLE, EXAMPLE
        )

    def scores(self) -> TokenScores:
        logits = self.head(self.body(self.ids))
        logp = logits.log_softmax(-1)[:, :-1].gather(2, self.ids[:, 1:, None])[..., 0]
        return TokenScores(torch.nn.functional.pad(logp, (1, 0)), torch.ones(4, 9).double(), ROLE, EXAMPLE)

    def gradient(self, value: Tensor) -> Tensor:
        weights = [*self.body.parameters(), *self.head.parameters()]
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, weights)])

    def of_loss(self, method: Any) -> Tensor:
        (total, _) = method.loss(self.scores(), self.reference)["dpo"]
        return self.gradient(total)

    def of_sft(self, role: str, pair: int) -> Tensor:
        return self.gradient(-losses.answer_logps(self.scores(), role)[pair])

    def ratio(self, role: str) -> Tensor:
        return losses.log_ratios(self.scores(), self.reference, role).detach()


BETA = 0.7


@pytest.mark.parametrize(("side", "sign"), [("chosen", 1), ("rejected", -1)])
def test_one_side_has_dpos_coefficient_and_only_its_own_sft_gradient(side: str, sign: int) -> None:
    """beta sigmoid(-beta m) grad L_sft(y_c), or minus that of y_r, summed over the pairs."""
    model = Model()
    scale = BETA * torch.sigmoid(-BETA * (model.ratio("chosen") - model.ratio("rejected")))
    expected = sum(sign * scale[n] * model.of_sft(side, n) for n in range(2))
    found = model.of_loss(DPO(beta=BETA, side=side))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("side", "sign"), [("chosen", 1), ("rejected", -1)])
def test_a_side_alone_has_a_coefficient_of_its_own_log_ratio(side: str, sign: int) -> None:
    """With s = +1 for y_c and -1 for y_r: s beta sigmoid(-s beta r) grad L_sft(y), r the log ratio of y."""
    model = Model()
    scale = sign * BETA * torch.sigmoid(-sign * BETA * model.ratio(side))
    expected = sum(scale[n] * model.of_sft(side, n) for n in range(2))
    found = model.of_loss(DPO(beta=BETA, side=side, side_form="alone"))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"loss": "hinge"}, {"loss": "ipo"}])
def test_the_two_sides_add_up_to_the_whole_and_have_its_value(options: dict[str, Any]) -> None:
    model = Model()
    whole, chosen, rejected = (DPO(beta=0.05, side=s, **options) for s in ("both", "chosen", "rejected"))
    values = [m.loss(model.scores(), model.reference)["dpo"][0].item() for m in (whole, chosen, rejected)]
    assert values[0] == values[1] == values[2]
    both = model.of_loss(chosen) + model.of_loss(rejected)
    torch.testing.assert_close(both, model.of_loss(whole), rtol=1e-12, atol=1e-14)


def test_the_gradient_of_ipo_is_twice_its_distance_times_the_mean_sft_gradients() -> None:
    """2 (m - 1 / (2 beta)) of averages: each SFT gradient is divided by its answer's number of tokens."""
    model = Model()
    tokens = {"chosen": column(4, 7), "rejected": column(6, 4)}
    margin = model.ratio("chosen") / tokens["chosen"] - model.ratio("rejected") / tokens["rejected"]
    expected = sum(
        -2 * (margin[n] - 1 / (2 * BETA)) * sign * model.of_sft(role, n) / tokens[role][n]
        for n in range(2)
        for role, sign in (("chosen", 1), ("rejected", -1))
    )
    found = model.of_loss(DPO(beta=BETA, loss="ipo"))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


METHODS: dict[str, Any] = {
    "sigmoid": DPO(),
    "cdpo": DPO(label_smoothing=0.1),
    "hinge": DPO(loss="hinge"),
    "ipo": DPO(loss="ipo"),
    "robust": DPO(loss="robust", label_smoothing=0.1),
    "simpo": DPO(loss="simpo", beta=2, gamma=1),
    "orpo": DPO(loss="orpo"),
    "length_normalised": DPO(reduction="mean"),
    "sft_term": DPO(sft_weight=1.0),
    "kto": KTO(),
    "rlhf_v": RLHFV(changed_weight=2.0),
    "nsft_dpo": NSFTDPO(),
    "unlikelihood": NSFTUnlikelihood(),
    "chosen_only": DPO(side="chosen"),
    "rejected_only": DPO(side="rejected"),
    "chosen_only_alone": DPO(side="chosen", side_form="alone"),
    "rejected_only_alone": DPO(side="rejected", side_form="alone"),
}


def logp_gradient(method: Any, role: Tensor) -> Tensor:
    """The gradient of a method's summed terms with respect to each token's log-probability."""
    torch.manual_seed(1)
    logp = (-2 * torch.rand(role.shape) - 0.1).requires_grad_()
    weight = torch.where(role == R, MARK, 1.0)
    policy, reference = (TokenScores(x, weight, role, EXAMPLE) for x in (logp, logp.detach()))
    if method.needs.reference != "logp":
        reference = None  # type: ignore[assignment]
    torch.stack([total for total, _ in method.loss(policy, reference).values()]).sum().backward()
    assert logp.grad is not None
    return logp.grad


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_pulls_chosen_tokens_up_and_pushes_rejected_ones_down(name: str) -> None:
    gradient = logp_gradient(METHODS[name], ROLE)
    if not name.startswith("rejected_only"):
        assert (gradient[ROLE == C] < 0).all()
    if not name.startswith("chosen_only"):
        assert (gradient[ROLE == R] > 0).all()
    assert (gradient[ROLE == P] == 0).all()
    corrected = gradient[ROLE == X]
    assert (corrected < 0).all() if name == "nsft_dpo" else (corrected == 0).all()


@pytest.mark.parametrize(("name", "role"), [("chosen_only", R), ("rejected_only", C)])
@pytest.mark.parametrize("form", ["", "_alone"])
def test_the_other_side_has_no_gradient_at_all(name: str, role: int, form: str) -> None:
    assert (logp_gradient(METHODS[name + form], ROLE)[role == ROLE] == 0).all()


def test_no_gradient_goes_through_ktos_reference_point() -> None:
    role = torch.where(ROLE == X, M, ROLE)
    assert (logp_gradient(KTO(), role)[role == M] == 0).all()


def test_only_marked_tokens_are_unlearnt() -> None:
    role, example = torch.tensor([[P, C, C], [P, R, R]]), torch.tensor([0, 0])
    logp = torch.full((2, 3), -0.5, requires_grad=True)
    scores = TokenScores(logp, torch.tensor([[1.0, 1, 1], [1, MARK, 1]]), role, example)
    total, count = NSFTUnlikelihood(weight=3.0).loss(scores, None)["unlikelihood"]
    assert (total.item(), count.item()) == (pytest.approx(-3 * math.log(1 - math.exp(-0.5))), 1)
    total.backward()
    assert logp.grad is not None
    assert logp.grad[1].tolist() == [0, pytest.approx(3 / math.expm1(0.5)), 0]


def test_rlhf_vs_normaliser_is_the_summed_weight() -> None:
    """(1/N) [log p of unchanged + g log p of changed], N = |unchanged| + g |changed|: (-1 - 5 * 2) / 6."""
    role, example = torch.tensor([[P, C, C], [P, R, P]]), torch.tensor([0, 0])
    weight = torch.tensor([[1.0, 1, 5], [1, 1, 1]])
    policy = TokenScores(torch.tensor([[0.0, -1, -2], [0, -3, 0]]), weight, role, example)
    zero = TokenScores(torch.zeros(2, 3), weight, role, example)
    for reduction, chosen in (("mean", -11 / 6), ("sum", -11.0)):
        (total, _) = RLHFV(beta=1.0, reduction=reduction).loss(policy, zero)["dpo"]
        assert total.item() == pytest.approx(softplus(-(chosen + 3)), rel=1e-5)


def test_terms_are_counted_from_roles_and_examples_alone() -> None:
    logp = torch.full(ROLE.shape, -0.5)
    scores = TokenScores(logp, torch.ones(ROLE.shape), ROLE, EXAMPLE)
    counts = {k: float(w) for k, (_, w) in NSFTDPO(sft_weight=1.0).loss(scores, scores).items()}
    assert counts == {"dpo": 2, "sft": 11, "correction": 2}
    assert {k: float(w) for k, (_, w) in DPO(loss="orpo").loss(scores, None).items()} == {
        "orpo": 2,
        "sft": 11,
    }
    assert {k: float(w) for k, (_, w) in KTO().loss(scores, scores).items()} == {"kto": 4}
