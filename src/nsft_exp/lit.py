"""The one training loop, as a LightningModule: counts the weights of a global batch, then steps once on it.

One "batch" of the loader is a whole global batch, cut into micro-batches. Each loss term is divided by its
weight over the global batch, counted from the data before the first forward pass, so that the result does not
depend on the cut. Lightning's global step is the optimizer step.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

from nsft_exp import losses
from nsft_exp.batching import Batch
from nsft_exp.interfaces import Method
from nsft_exp.losses import TokenScores
from nsft_exp.optimizer import optimizer_of, step_on, step_seed
from nsft_exp.recipe import Recipe
from nsft_exp.reference import Live, Reference, evaluating, hidden_states
from nsft_exp.resources import telling_out_of_memory, times
from nsft_exp.sharding import is_used_always, part_of, whole
from nsft_exp.sums import Totals, add, contents, means, term_weights
from nsft_exp.value_head import ScalarHead
from nsft_exp.vlm.loaded import LoadedHF
from nsft_exp.world import World
from nsft_exp.zero import ZeroStages

ALONE = World()


class TokenTraining(L.LightningModule):
    """Trains the trainable weights of `loaded.model` by a method's loss.

    `record(row)` takes each logged step's metrics and `record_time(row)` its times. `validate()` yields the
    validation micro-batches; `look(step)` is called where sample answers are due, `record_held_out(row)`
    takes what each held-out example came to, before the first step too, and `evaluate(step)` is called every
    `evaluate_every` steps and after the last (0: never). `shared_features` says that
    the reference makes the same image features as the policy. In a `world` of several processes each runs its
    own share of a global batch, and sums and gradients are those of all; `filler` makes a micro-batch that
    does not count, for weights that are in parts (`sharding`).
    """

    def __init__(
        self,
        loaded: LoadedHF,
        method: Method,
        reference: Reference | None,
        recipe: Recipe,
        num_steps: int,
        seed: int,
        record: Callable[[dict[str, Any]], None],
        record_time: Callable[[dict[str, Any]], None],
        log_every: int = 1,
        validate_every: int = 0,
        validate: Callable[[], Iterable[Batch]] = tuple,
        look: Callable[[int], None] = lambda step: None,
        record_held_out: Callable[[dict[str, Any]], None] = lambda row: None,
        evaluate_every: int = 0,
        evaluate: Callable[[int], None] = lambda step: None,
        shared_features: bool = False,
        world: World = ALONE,
        value_head: ScalarHead | None = None,
        filler: Callable[[], Batch] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False
        self.model = loaded.model
        self.value_head = value_head
        self.loaded = loaded
        self.method = method
        self.pi_ref = reference
        self.recipe = recipe
        self.num_steps = num_steps
        self.seed = seed
        self.record, self.record_time = record, record_time
        self.log_every, self.validate_every = log_every, validate_every
        self.validation, self.look = validate, look
        self.record_held_out = record_held_out
        self.evaluate_every, self.evaluate = evaluate_every, evaluate
        self.shared_features = shared_features
        self.world = world
        self.filler = filler
        named = self.model.named_parameters()
        self.seldom = [p for name, p in named if p.requires_grad and not is_used_always(name)]

    # --- what Lightning asks for -------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's, on what is trained. The rate is set at every step."""
        return optimizer_of(self.recipe, self.named_parameters())

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """The trainable weights only, whole: the base model is never in a checkpoint."""
        trained = ((name, p) for name, p in self.named_parameters() if p.requires_grad)
        return {name: whole(p, self.world.first) for name, p in trained}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """Take weights from a checkpoint: of each one what this rank has of it."""
        own = dict(self.named_parameters())
        parts = {name: part_of(value, own[name]) for name, value in state_dict.items() if name in own}
        return super().load_state_dict(parts, *args, **options)

    def on_train_start(self) -> None:
        """Dropout on (Lightning leaves a model in the mode that it finds)."""
        self.model.train()
        if self.validate_every and self.global_step == 0:
            self._validate(0)

    def training_step(self, batches: list[Batch], index: int) -> None:
        """One optimizer step on one global batch."""
        started = time.perf_counter()
        step = self.global_step
        torch.manual_seed(step_seed(self.seed, step, self.world.rank))
        totals = self._accumulate(batches)
        norm = self._update(step)
        step += 1
        if step % self.log_every == 0 or step == self.num_steps:
            row = {
                "step": step,
                **means(self.world.summed(totals)),
                "grad_norm": float(norm),
                "lr": self.recipe.rate(step - 1, self.num_steps),
            }
            held = self.world.summed(contents(batches))
            tokens = held.pop("tokens")
            self.record(row | held)
            self.record_time(times(step, tokens, time.perf_counter() - started, self.device))
        if self._is_due(self.validate_every, step):
            self._validate(step)
        if self._is_due(self.evaluate_every, step):
            with evaluating(self.model):
                self._pass(lambda: self.evaluate(step))

    def _is_due(self, every: int, step: int) -> bool:
        return every > 0 and (step % every == 0 or step == self.num_steps)

    # --- the step ----------------------------------------------------------------------------------

    @property
    def zero(self) -> ZeroStages | None:
        """DeepSpeed's strategy, where it is the one."""
        strategy = self.trainer.strategy
        return strategy if isinstance(strategy, ZeroStages) else None

    def _pass(self, call: Callable[[], Any]) -> Any:
        """Make what runs the model."""
        return call() if self.zero is None else self.zero.run(call)

    def _accumulate(self, batches: list[Batch]) -> Totals:
        """Gradients of the whole global batch; returns the summed terms and diagnostics."""
        weights = self.world.summed(term_weights(self.method, batches))
        totals: Totals = defaultdict(lambda: [0.0, 0.0])
        for batch, counts in self._in_step(batches):
            with telling_out_of_memory(len(batch.numbers)):
                loss, terms, policy, reference = self._pass(partial(self._loss, batch, weights, counts))
                if loss is not None:
                    self.manual_backward(loss)
            if counts:
                add(totals, terms, policy, reference)
        return totals

    def _loss(
        self, batch: Batch, weights: dict[str, float], counts: bool
    ) -> tuple[Tensor | None, dict[str, Any], TokenScores, TokenScores | None]:
        """The micro-batch's part of the global batch's loss (None: it has none), its terms and its scores."""
        policy, reference = self._scores(batch)
        terms = self.method.loss(policy, reference) if counts else {}
        parts = [total / weights[name] for name, (total, _) in terms.items() if weights[name] > 0]
        if self.filler is not None:  # a backward pass for every forward pass, on all ranks, of all weights
            parts.append(0.0 * (policy.logp if policy.value is None else policy.value).sum())
            parts += [0.0 * p.sum() for p in self.seldom]
        return torch.stack(parts).sum() if parts else None, terms, policy, reference

    def _in_step(self, batches: list[Batch]) -> Iterator[tuple[Batch, bool]]:
        """Yield (micro-batch, whether it counts): where weights are in parts, as many on every rank.

        Each pass puts the layers together from all ranks' parts, so that all must make it.
        """
        most = len(batches) if self.filler is None else max(self.world.gathered(len(batches)))
        yield from ((batch, True) for batch in batches)
        for _ in range(most - len(batches)):
            assert self.filler is not None
            yield self.filler().to(self.device), False

    def _scores(self, batch: Batch) -> tuple[TokenScores, TokenScores | None]:
        """The policy's and the reference's token scores of a micro-batch."""
        head = self.model.lm_head
        features = self.loaded.features(batch.pixels) if batch.pixels is not None else None
        hidden = hidden_states(self.loaded, batch, features)
        if self.value_head is not None:
            zeros, value = torch.zeros_like(batch.weight), self.value_head(hidden)
            return TokenScores(zeros, batch.weight, batch.role, batch.example, value=value), None
        logp = losses.token_logps(hidden, head, batch.ids, batch.where)
        shared = features.detach() if self.shared_features and features is not None else None
        needs = self.method.needs
        if needs.reference == "nothing":
            return TokenScores(logp, batch.weight, batch.role, batch.example), None
        if needs.reference == "logp":
            assert self.pi_ref is not None
            return TokenScores(logp, batch.weight, batch.role, batch.example), self.pi_ref.scores(
                batch, shared
            )
        assert isinstance(self.pi_ref, Live)
        other, ref_head = self.pi_ref.hidden(batch, shared), self.pi_ref.loaded.model.lm_head
        kl = losses.token_kl(hidden, head, other, ref_head, batch.where, needs.direction)
        with torch.no_grad():
            ref_logp = losses.token_logps(other, ref_head, batch.ids, batch.where)
        policy = TokenScores(logp, batch.weight, batch.role, batch.example, kl)
        return policy, TokenScores(ref_logp, batch.weight, batch.role, batch.example)

    def _update(self, step: int) -> Tensor:
        """Clip, set the rate, step. Returns the gradient's norm before clipping."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        self.world.sum_gradients([p for group in optimizer.param_groups for p in group["params"]])
        norm = step_on(optimizer, self.recipe, self.recipe.rate(step, self.num_steps))
        return norm if self.zero is None else self.zero.norm()

    # --- validation --------------------------------------------------------------------------------

    def _validate(self, step: int) -> None:
        """Record the loss terms and diagnostics over the whole validation set, then sample answers.

        Before the first step only what each example comes to is recorded.
        """
        totals: Totals = defaultdict(lambda: [0.0, 0.0])
        with torch.no_grad(), evaluating(self.model):
            for batch, counts in self._in_step(list(self.validation())):
                policy, reference = self._pass(partial(self._scores, batch.to(self.device)))
                if not counts:
                    continue
                add(totals, self.method.loss(policy, reference), policy, reference)
                if self.value_head is None:
                    self._record_examples(step, batch, policy)
            if not step:
                return
            summed = self.world.summed(totals)
            found = means(summed)
            if len(found) > 1:
                held = {"pairs": summed["accuracy"][1]} if self.value_head is not None else {}
                row = {f"validation/{name}": value for name, value in (held | found).items()}
                self.record({"step": step} | row)
            self._pass(lambda: self.look(step))

    def _record_examples(self, step: int, batch: Batch, policy: TokenScores) -> None:
        """Record what each of the micro-batch's examples came to. (Of several processes none does.)"""
        if self.world.size > 1:
            return
        reduction = getattr(self.method, "reduction", "sum")
        values = {name: value_E.tolist() for name, value_E in losses.optimised(policy, reduction)}
        for place, number in enumerate(batch.numbers):
            row = {name: value[place] for name, value in values.items() if math.isfinite(value[place])}
            self.record_held_out({"step": step, "example": int(number), **row})
