"""PPO against a reward model (Schulman et al. 2017; on images as LLaVA-RLHF, Sun et al. 2023).

What is here are the numbers and the prompts; the training is `nsft_exp.ppo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nsft_exp.interfaces import Needs
from nsft_exp.method.sft import check_choice, opening
from nsft_exp.records import Conversation, Example, Item, UserError

if TYPE_CHECKING:
    from nsft_exp.losses import TokenScores
    from nsft_exp.method.reward import Reward

POSITIVE = (
    "max_new_tokens",
    "temperature",
    "steps_per_rollout",
    "inner_epochs",
    "clip",
    "value_clip",
    "max_kl",
)
NOT_NEGATIVE = ("kl_coef", "value_coef", "reward_scale", "no_end_penalty", "length_penalty")


class PPO:
    """Answers the samples' questions, has the reward model score the answers, and learns from that.

    An iteration answers `steps_per_rollout` global batches of prompts (`max_new_tokens`, `temperature`,
    `top_p`), then takes `inner_epochs` passes over these answers, an optimizer step a global batch. `clip`
    and `value_clip` bound what a pass changes; the loss is the policy's plus `value_coef` times the value's.

    An answer's reward is `reward_scale` times its score, less `no_end_penalty` where it has no end within
    `max_new_tokens`, less `length_penalty` times its share of `max_new_tokens`; each token's is less
    `kl_coef` times its log-ratio to the reference, where `clamp_kl` takes a negative one for 0. `gamma` and
    `lam` are generalized advantage estimation's; `whiten` gives the advantages of an iteration mean 0 and
    variance 1.

    A run whose mean divergence from the reference (nats an answer) is above `max_kl`, or no number, has
    exploded: `when_kl_explodes` is `stop` or `report`.

    The `rollouts` are by the model in this process (`hf`), or by `vllm`, which is given the policy's adapter
    before each, and the share `rollouts_memory` of the GPU's memory; whatever answers elsewhere
    (`vlm.engine`).

    `copies=1` holds one frozen base with an adapter each for policy, value and reward, and the reference as
    none of them; `copies=4` holds four models.
    """

    consumes: ClassVar[Literal["preference"]] = "preference"
    needs = Needs(rollouts=True)

    def __init__(
        self,
        reward: Reward,
        max_new_tokens: int = 896,
        temperature: float = 1.0,
        top_p: float = 1.0,
        steps_per_rollout: int = 2,
        inner_epochs: int = 2,
        kl_coef: float = 0.1,
        clamp_kl: bool = True,
        reward_scale: float = 10.0,
        no_end_penalty: float = 8.0,
        length_penalty: float = 10.0,
        gamma: float = 1.0,
        lam: float = 1.0,
        whiten: bool = True,
        clip: float = 0.2,
        value_clip: float = 0.2,
        value_coef: float = 0.1,
        max_kl: float = 100.0,
        when_kl_explodes: str = "stop",
        rollouts: str = "hf",
        rollouts_memory: float = 0.4,
        copies: int = 1,
    ) -> None:
        self.reward = reward
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.steps_per_rollout = steps_per_rollout
        self.inner_epochs = inner_epochs
        self.kl_coef = kl_coef
        self.clamp_kl = clamp_kl
        self.reward_scale = reward_scale
        self.no_end_penalty = no_end_penalty
        self.length_penalty = length_penalty
        self.gamma = gamma
        self.lam = lam
        self.whiten = whiten
        self.clip = clip
        self.value_clip = value_clip
        self.value_coef = value_coef
        self.max_kl = max_kl
        self.when_kl_explodes = when_kl_explodes
        self.rollouts, self.rollouts_memory = rollouts, rollouts_memory
        self.copies = copies
        self._check()

    def _check(self) -> None:
        check_choice("method.when_kl_explodes", self.when_kl_explodes, ("stop", "report"))
        check_choice("method.rollouts", self.rollouts, ("hf", "vllm"))
        if self.copies not in (1, 4):
            raise UserError(f"method.copies={self.copies}: take 1 (adapters on one base) or 4 (models)")
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise UserError(f"method.{name}={getattr(self, name)}: must be positive")
        for name in NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise UserError(f"method.{name}={getattr(self, name)}: must not be negative")
        for name in ("gamma", "lam", "top_p", "rollouts_memory"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"method.{name}={getattr(self, name)}: take a share from 0 to 1")

    def fits(self, recipe: Any, tuning: Any, trainer: Any) -> None:
        """Refuse ways of training that PPO has not."""
        if recipe.lora_dropout:
            raise UserError("method=llava_rlhf compares a policy with itself; take recipe.lora_dropout=0")
        if tuning.kind != "lora" or tuning.train_projector:
            raise UserError(
                "method=llava_rlhf trains adapters; take tuning=lora, tuning.train_projector=false"
            )
        if trainer.devices * trainer.num_nodes > 1:
            raise UserError(
                "method=llava_rlhf trains in one process; take trainer.devices=1 trainer.num_nodes=1"
            )

    def examples(self, items: Sequence[Item], rng: Random) -> list[Example]:
        """One example a sample: the conversation up to its question, and the one that the reward model reads.

        The second one's answer is left empty: it is the policy's.
        """
        return [
            Example(
                item.sample.id,
                (
                    Conversation(item.sample.image, opening(item.sample)),
                    self.reward.judged(item.sample, "", "chosen"),
                ),
            )
            for item in items
        ]

    def loss(self, policy: TokenScores, reference: TokenScores | None) -> dict[str, tuple[Any, Any]]:
        """No terms: PPO has no loss of given tokens, its losses are of its own answers (`nsft_exp.ppo`)."""
        return {}
