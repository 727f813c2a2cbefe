"""PPO as a LightningModule: one "batch" of the loader is one iteration of answering and learning.

Lightning's global step is the optimizer step; an iteration has several. What an iteration draws comes from
(seed, step), so that a killed run does the same again from its last checkpoint.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import lightning as L
import torch
from torch import Tensor

from nsft_exp.batching import Batch
from nsft_exp.interfaces import LoadedVLM
from nsft_exp.optimizer import optimizer_of, step_on, step_seed
from nsft_exp.ppo import advantage as maths
from nsft_exp.ppo.experience import Batches, Experience, before, collect, described
from nsft_exp.ppo.models import Models
from nsft_exp.ppo.rollout import Answer, Prompt, ask
from nsft_exp.recipe import Recipe
from nsft_exp.records import Decoding, UserError
from nsft_exp.reference import evaluating
from nsft_exp.resources import telling_out_of_memory, times
from nsft_exp.sums import Totals, means
from nsft_exp.training import save_adapter
from nsft_exp.vlm.vllm_engine import VllmEngine

Row = dict[str, Any]


class PPOTraining(L.LightningModule):
    """Trains the policy's and the value's adapters and the value's head.

    `options` are the method's. `record(row)` takes each iteration's metrics, `record_time(row)` its times and
    `record_answer(row)` the held-out answers that are looked at (`sample_answers` each time). The held-out
    prompts are answered before the first step, every `validate_every` steps and at the end. An `engine`
    answers in place of the policy's own model.
    """

    def __init__(
        self,
        models: Models,
        options: Any,
        recipe: Recipe,
        prompts: Sequence[Prompt],
        held_out: Sequence[Prompt],
        num_steps: int,
        seed: int,
        max_length: int,
        batches: Batches,
        record: Callable[[Row], None],
        record_time: Callable[[Row], None],
        record_answer: Callable[[Row], None],
        record_held_out: Callable[[Row], None],
        validate_every: int = 0,
        sample_answers: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False
        self.policy, self.value = models.policy.loaded.model, models.value.loaded.model
        self.value_head = models.value.head
        self.models, self.options, self.recipe = models, options, recipe
        self.prompts, self.held_out = prompts, held_out
        self.num_steps, self.seed, self.max_length = num_steps, seed, max_length
        self.batches = batches
        self.record, self.record_time, self.record_answer = record, record_time, record_answer
        self.record_held_out = record_held_out
        self.validate_every, self.sample_answers = validate_every, sample_answers
        self.engine: VllmEngine | None = None

    # --- what Lightning asks for -------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's, on what is trained."""
        return optimizer_of(self.recipe, self.named_parameters())

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """The trained weights only."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def on_train_start(self) -> None:
        """Training mode, in which activations can be made again (there is no dropout), and the first look."""
        for part in self.models.parts:
            part.loaded.model.train()
        if self.global_step == 0:
            with self.trainer.precision_plugin.train_step_context():
                self._validate(0)

    def training_step(self, numbers: list[int], index: int) -> None:
        """Answer the prompts of these numbers, then learn from the answers."""
        started, step = time.perf_counter(), self.global_step
        with telling_out_of_memory(len(numbers)):
            answers = self._answers(self.prompts, numbers, step_seed(self.seed, step))
            row: Row = {"left_out": len(numbers) - len(answers)}
            experience = self._collected(self.prompts, answers)
            if experience is not None:
                row = described(experience) | row
            self._watch(row, step)
            tokens = sum(len(answer.ids) for answer in answers)
            row |= self._learn(numbers, experience, step)
        row |= {"examples": len(answers), "supervised_tokens": tokens}
        self.record({"step": self.global_step} | row)
        self.record_time(times(self.global_step, tokens, time.perf_counter() - started, self.device))
        if self._due(step):
            self._validate(self.global_step)

    # --- answering ---------------------------------------------------------------------------------

    def _answers(self, prompts: Sequence[Prompt], numbers: Sequence[int], seed: int) -> list[Answer]:
        options = self.options
        decoding = Decoding(options.max_new_tokens, options.temperature, options.top_p, seed=seed)
        with self.models.policy.speaking() as loaded, evaluating(loaded.model):
            engine: LoadedVLM = loaded
            if self.engine is not None:
                self.engine.take(partial(save_adapter, self.models.peft))
                engine = self.engine
            image_token = loaded.chat.image_token_id
            return ask(engine, prompts, numbers, decoding, self.max_length, image_token)

    def _collected(self, prompts: Sequence[Prompt], answers: list[Answer]) -> Experience | None:
        """What the four parts say of the answers; None where there are none."""
        return collect(self.models, prompts, answers, self.batches, self.options) if answers else None

    def _watch(self, row: Row, step: int) -> None:
        """Stop, or note in the row, a policy that has left its reference altogether."""
        kl = row.get("kl", 0.0)
        if kl <= self.options.max_kl:  # False for what is no number
            return
        row["kl_exploded"] = 1
        if self.options.when_kl_explodes == "stop":
            raise UserError(
                f"PPO: at step {step} the policy is {kl:.3g} nats an answer from its reference, above "
                f"method.max_kl={self.options.max_kl}; lower recipe.learning_rate or raise method.kl_coef "
                "(with a higher method.max_kl the run goes on at its last checkpoint)"
            )

    # --- learning ----------------------------------------------------------------------------------

    def _learn(self, numbers: Sequence[int], experience: Experience | None, step: int) -> Row:
        """The inner epochs: an optimizer step for each global batch of the iteration's prompts."""
        totals: Totals = defaultdict(lambda: [0.0, 0.0])
        places = {a.number: place for place, a in enumerate(experience.answers)} if experience else {}
        for epoch in range(self.options.inner_epochs):
            order = list(numbers)
            Random(f"ppo {self.seed} {step} {epoch}").shuffle(order)
            for start in range(0, len(order), self.recipe.batch_size):
                some = [places[n] for n in order[start : start + self.recipe.batch_size] if n in places]
                self._step(experience, some, totals)
        row: Row = means(totals)
        row["loss"] = row.get("loss/policy", 0.0) + row.get("loss/value", 0.0)
        return row | {"lr": self.recipe.rate(self.global_step - 1, self.num_steps)}

    def _step(self, experience: Experience | None, places: list[int], totals: Totals) -> None:
        """One optimizer step on the answers in these places. Losses are means over their tokens."""
        if experience is not None and places:
            weight = float(experience.mask[places].sum())
            for batch in self.batches(experience.examples, places):
                self._backward(experience, batch, weight, totals)
        optimizer = self.optimizers()
        norm = step_on(optimizer, self.recipe, self.recipe.rate(self.global_step, self.num_steps))
        totals["grad_norm"][0] += float(norm)
        totals["grad_norm"][1] += 1

    def _backward(self, experience: Experience, batch: Batch, weight: float, totals: Totals) -> None:
        """The gradients of a micro-batch: the policy's, then the value's, each in its part's block."""
        models, options = self.models, self.options
        features = models.features(batch)
        with models.policy.speaking():
            logp_M = models.policy.logps(batch, features(models.policy))[batch.where]
            old_M = experience.placed("logp", batch)
            loss_M, clipped_M = maths.policy_losses(
                logp_M, old_M, experience.placed("advantage", batch), options.clip
            )
            self.manual_backward(loss_M.sum() / weight)
        _add(totals, {"loss/policy": loss_M, "clip_fraction": clipped_M, "step_kl": old_M - logp_M})
        if not options.value_coef:
            return
        with models.value.speaking():
            value_BT = models.value.values(batch, features(models.value))
            loss_M, clipped_M = maths.value_losses(
                before(value_BT)[batch.where],
                experience.placed("value", batch),
                experience.placed("returns", batch),
                options.value_clip,
            )
            self.manual_backward(options.value_coef * loss_M.sum() / weight)
        _add(totals, {"loss/value": options.value_coef * loss_M, "value_clip_fraction": clipped_M})

    # --- validation --------------------------------------------------------------------------------

    def _due(self, step: int) -> bool:
        """Whether the iteration that began at this step has passed a validation, or was the last."""
        if self.global_step == self.num_steps:
            return True
        return (
            bool(self.validate_every)
            and self.global_step // self.validate_every > step // self.validate_every
        )

    def _validate(self, step: int) -> None:
        """Record what the answers to the held-out prompts are like: the same noise every time."""
        answers = self._answers(self.held_out, range(len(self.held_out)), step_seed(self.seed, -1))
        experience = self._collected(self.held_out, answers)
        if experience is None:
            return
        found = described(experience)
        self.record({"step": step} | {f"validation/{name}": value for name, value in found.items()})
        scores, kls = experience.score.tolist(), (experience.logp - experience.ref_logp).sum(1).tolist()
        for number, (answer, score, kl) in enumerate(zip(answers, scores, kls, strict=True)):
            name = self.held_out[answer.number].id
            self.record_held_out({"step": step, "example": name, "reward": score, "kl": kl})
            if number < self.sample_answers:
                finish = "stop" if answer.ended else "length"
                row = {"answer": answer.text, "finish": finish, "score": score}
                self.record_answer({"step": step, "id": name} | row)


def _add(totals: Totals, values: dict[str, Tensor]) -> None:
    """Add the means over tokens [M] of some quantities to the sums."""
    for name, values_M in values.items():
        totals[name][0] += float(values_M.detach().float().sum())
        totals[name][1] += len(values_M)
