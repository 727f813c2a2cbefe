"""The four parts of PPO: policy, reference, value and reward, on one base or as four models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from nsft_exp import losses
from nsft_exp.batching import Batch
from nsft_exp.interfaces import VLM
from nsft_exp.job import load_model, with_lora
from nsft_exp.recipe import Recipe, Tuning
from nsft_exp.records import UserError
from nsft_exp.reference import row_features
from nsft_exp.value_head import ScalarHead, read_head
from nsft_exp.vlm.family import Features
from nsft_exp.vlm.loaded import LoadedHF


class Switch:
    """Chooses which adapters of a model are at work, and leaves what is trained as it is.

    PEFT's own switch makes the active adapter the trained one; here two are trained in turns.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self.trained = [p for p in model.parameters() if p.requires_grad]

    def to(self, adapters: Sequence[str]) -> None:
        """Have these adapters at work; with none the model is the base."""
        for layer in self.layers:
            layer.set_adapter(list(adapters), inference_mode=True)
        for parameter in self.trained:
            parameter.requires_grad_(True)


@dataclass
class Part:
    """A model, the adapters with which it is this part, and its head where it gives values."""

    loaded: LoadedHF
    switch: Switch
    adapters: tuple[str, ...]
    head: ScalarHead | None = None

    @contextmanager
    def speaking(self) -> Iterator[LoadedHF]:
        """The model as this part, inside the block: forward and backward pass belong into one block."""
        self.switch.to(self.adapters)
        yield self.loaded

    def logps(self, batch: Batch, features: Features | None) -> Tensor:
        """Return logp_BT of the supervised tokens."""
        with self.speaking() as loaded:
            hidden = loaded.hidden(batch.ids, features)
            return losses.token_logps(hidden, loaded.model.lm_head, batch.ids, batch.where)

    def values(self, batch: Batch, features: Features | None) -> Tensor:
        """Return value_BT: at each token, of the text up to and with it."""
        assert self.head is not None
        with self.speaking() as loaded:
            value: Tensor = self.head(loaded.hidden(batch.ids, features))
            return value


@dataclass
class Models:
    """The parts; `peft` holds the policy's adapter under PEFT's name `default`."""

    policy: Part
    reference: Part
    value: Part
    reward: Part
    peft: PeftModel

    @property
    def parts(self) -> tuple[Part, ...]:
        """All four."""
        return self.policy, self.reference, self.value, self.reward

    @property
    def held(self) -> int:
        """How many base models are in memory: distinct storages of the output layer."""
        return len({part.loaded.model.lm_head.weight.untyped_storage().data_ptr() for part in self.parts})

    def features(self, batch: Batch) -> Callable[[Part], Features | None]:
        """Return what gives a part the features of the batch's images: made once for each model."""
        made: dict[int, Features | None] = {}

        def of(part: Part) -> Features | None:
            if id(part.loaded) not in made:
                with torch.no_grad():
                    made[id(part.loaded)] = row_features(part.loaded, batch)
            return made[id(part.loaded)]

        return of


def load_models(
    vlm: VLM,
    parents: Sequence[Path],
    reward: Path,
    copies: int,
    recipe: Recipe,
    tuning: Tuning,
    device: torch.device,
    seed: int,
) -> Models:
    """Load the base with the parts' adapters on it (`copies=1`), or a model for each part (4).

    The policy's adapter is new; value and reward start as the reward model of the folder `reward`, of which
    the value's is trained. Raises UserError where that folder has none.
    """
    if not (reward / "adapter").is_dir():
        raise UserError(f"{reward}: holds no adapter of a reward model; train it first")
    loaded = [load_model(vlm, parents, device, tuning) for _ in range(copies)]
    peft = with_lora(loaded[0], recipe, tuning, seed)
    heads = [read_head(reward).to(device) for _ in range(2)]
    heads[1].requires_grad_(False)
    if tuning.activation_checkpointing:
        for one in loaded:
            one.model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    return (_on_one_base if copies == 1 else _on_four)(loaded, peft, str(reward / "adapter"), heads)


def _on_one_base(loaded: list[LoadedHF], peft: PeftModel, adapter: str, heads: list[ScalarHead]) -> Models:
    (base,) = loaded
    for name in ("value", "reward"):
        peft.load_adapter(adapter, name, torch_device=str(base.device))
    switch = _trained(base, "default", "value")
    return Models(
        policy=Part(base, switch, ("default",)),
        reference=Part(base, switch, ()),
        value=Part(base, switch, ("value",), heads[0]),
        reward=Part(base, switch, ("reward",), heads[1]),
        peft=peft,
    )


def _on_four(loaded: list[LoadedHF], peft: PeftModel, adapter: str, heads: list[ScalarHead]) -> Models:
    policy, reference, value, judge = loaded
    PeftModel.from_pretrained(value.model, adapter, adapter_name="value")
    PeftModel.from_pretrained(judge.model, adapter, adapter_name="reward")
    return Models(
        policy=Part(policy, _trained(policy, "default"), ("default",)),
        reference=Part(reference, _trained(reference), ()),
        value=Part(value, _trained(value, "value"), ("value",), heads[0]),
        reward=Part(judge, _trained(judge), ("reward",), heads[1]),
        peft=peft,
    )


def _trained(loaded: LoadedHF, *adapters: str) -> Switch:
    """Have these adapters of a model trained, in float32, and nothing else."""
    for name, parameter in loaded.model.named_parameters():
        wanted = "lora_" in name and any(f".{adapter}." in name for adapter in adapters)
        parameter.requires_grad_(wanted)
        if wanted:
            parameter.data = parameter.data.float()
    return Switch(loaded.model)
