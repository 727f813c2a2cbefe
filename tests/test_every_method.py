"""What holds for every method, read off its YAML: a new one is tested by being there."""

from __future__ import annotations

import dataclasses
import gc
import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from PIL import Image

from conftest import DEBUG, POPE_ONLY, run_nsft
from nsft_exp import config as configs
from nsft_exp.cell_run import build
from nsft_exp.losses import TokenScores
from nsft_exp.method.dpo import DPO
from nsft_exp.method.nsft import NSFT
from nsft_exp.method.nsft_unlikelihood import MARK
from nsft_exp.records import ROLES, FoundError, Item, UserError
from test_config import compose
from tiny_training import make_items, rows, train

CONF = configs.folder("conf")


@cache
def composed(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A method's config and choices, with the recipe that it was published with."""
    return compose(f"method={name}", "recipe=published")


METHODS = sorted(f.stem for f in (CONF / "method").glob("*.yaml") if f.stem != "base")


def class_of(name: str) -> Any:
    """A method's class, from its YAML or the one that it is made of (composing all would take seconds)."""
    node = OmegaConf.load(CONF / "method" / f"{name}.yaml")
    target = OmegaConf.select(node, "method._target_")
    return get_object(target) if target else class_of(node.defaults[0])


TOKENWISE = [m for m in METHODS if not getattr(class_of(m).needs, "rollouts", False)]
"""Methods whose examples are there before training; for others there are tests of their own."""


def method_of(name: str) -> Any:
    return instantiate(composed(name)[0]["method"], _convert_="all")


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Eight items, each with a dialogue and an error that is located and can be mended."""
    made = make_items(tmp_path_factory.mktemp("items"))
    dialogue = next(i.correction.dialogue for i in made if i.correction)
    error = FoundError("existence", 2, 9, "red box", "cat")
    return [
        dataclasses.replace(
            item,
            correction=dataclasses.replace(
                made[1].correction,
                id=item.sample.id,
                errors=(error,),
                dialogue=dialogue,  # type: ignore[type-var]
            ),
        )
        for item in made
    ]


def roles_of(method: Any, items: list[Item]) -> set[str]:
    """The roles under which a method's examples give its loss tokens."""
    examples = method.examples(items, Random(0))
    return {t.role for e in examples for c in e.conversations for t in c.turns} - {"prompt"}


# --- the sign of the gradient, and overfitting -------------------------------------------------------


@pytest.mark.parametrize("name", TOKENWISE)
def test_the_gradient_pulls_up_what_a_method_teaches_and_pushes_down_what_it_rejects(
    name: str, items: list[Item]
) -> None:
    method = method_of(name)
    taught = roles_of(method, items)
    number = {role: place for place, role in enumerate(ROLES)}
    role = torch.tensor(
        [
            [0, number["chosen"], number["chosen"], number["correction"]],
            [0, number["rejected"], number["rejected"], number["mismatch"]],
        ]
    )
    torch.manual_seed(0)
    logp = (-2 * torch.rand(role.shape) - 0.1).requires_grad_()
    weight = torch.where(role == number["rejected"], MARK, 1.0)
    policy, reference = (TokenScores(x, weight, role, torch.tensor([0, 0])) for x in (logp, logp.detach()))
    terms = method.loss(policy, reference if method.needs.reference == "logp" else None)
    torch.stack([total for total, _ in terms.values()]).sum().backward()
    assert logp.grad is not None
    for word, sign in (("chosen", -1), ("rejected", 1), ("correction", -1)):
        found = sign * logp.grad[role == number[word]]
        assert (found > 0).all() if word in taught else (found == 0).all()
    assert (logp.grad[(role == 0) | (role == number["mismatch"])] == 0).all()


def teaching(row: dict[str, Any], roles: set[str]) -> dict[str, float]:
    """What a method is to raise, from a row of its metrics: log p a token, and the gap of a pair."""
    gap = {"gap": row["nll/rejected"] - row["nll/chosen"]} if "rejected" in roles else {}
    alone = {role: -row[f"nll/{role}"] for role in roles & {"chosen", "correction"}}
    if "rejected" in roles:
        alone.pop("chosen")  # a pair's chosen answer may well fall with its rejected one
    return {**gap, **alone}


@pytest.mark.parametrize("name", TOKENWISE)
def test_one_step_moves_what_a_method_optimises_and_fifteen_overfit_it(
    name: str, items: list[Item], tmp_path: Path
) -> None:
    method = method_of(name)
    roles = roles_of(method, items)
    train(method, items, tmp_path / "run", batch_size=8, micro_batch=8, epochs=15, warmup_ratio=0.0)
    first, second, *_, last = rows(tmp_path / "run")
    before, after, end = (teaching(row, roles) for row in (first, second, last))
    assert before
    for what in before:
        assert before[what] < after[what] < end[what], what
    assert second["loss"] < first["loss"]
    assert last["loss"] < 0.7 * first["loss"] or last.get("accuracy") == 1.0


# --- models held -------------------------------------------------------------------------------------


def base_weights() -> set[int]:
    """The storages of all language models in this process, told apart by their embeddings."""
    from transformers import PreTrainedModel

    models = [m for m in gc.get_objects() if isinstance(m, PreTrainedModel) and hasattr(m, "lm_head")]
    return {m.get_input_embeddings().weight.untyped_storage().data_ptr() for m in models}


@pytest.mark.parametrize(
    ("method", "reference", "held"),
    [(NSFT, "auto", 1), (DPO, "adapter_off", 1), (DPO, "cached", 1), (DPO, "copy", 2)],
)
def test_so_many_distinct_base_weights_are_in_memory(
    method: type[Any], reference: str, held: int, items: list[Item], tmp_path: Path
) -> None:
    gc.collect()
    already, seen = base_weights(), []

    class Counting(method):  # type: ignore[misc]
        def loss(self, policy: Any, other: Any) -> Any:
            if policy.logp.requires_grad:
                seen.append(len(base_weights() - already))
            return super().loss(policy, other)

    summary = train(Counting(), items[:4], tmp_path / "run", epochs=1, reference=reference)
    assert set(seen) == {held} == {summary["models_held"]}


# --- a whole cell ------------------------------------------------------------------------------------

QUICK = (*DEBUG, *POPE_ONLY, "limit=1")
SHORT = ("pairing.max_new_tokens=8",)
WORDS: dict[str, tuple[str, ...]] = {
    "cont_sft": (),
    "sima": (*SHORT, "pairing.form=criteria", "pairing.verdict=likelihood", "pairing.max_one_side=1"),
    "csr": (
        "pairing=sentence_tree_yes",
        "rounds=1",
        "pairing.sentence_tokens=3",
        "pairing.max_characters=8",
        "pairing.beams=2",
    ),
    "spin": (*SHORT, "rounds=1"),
    "nsft_iter": (*SHORT, "rounds=1"),
    "llava_rlhf": (*SHORT, "method.max_new_tokens=8"),
}
"""A random model's answers are cut short, and no verdict, but one is likelier than the other. Rounds have
tests of their own (tests/test_rounds.py)."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all cells: what several need is made once."""
    return tmp_path_factory.mktemp("cells")


@pytest.fixture(scope="module")
def given_pairs(shared: Path) -> tuple[str, ...]:
    """The words for eight pairs of which four have an error that the rule critic can mend."""
    Image.new("RGB", (32, 32), (200, 0, 0)).save(shared / "a.png")
    right = "The image shows a kitchen. There is a large red cup at the top left."
    end = " There is nothing else in the image."
    wrong = right.replace("red", "blue") + end
    pairs = [
        {
            "image": "a.png",
            "prompt": f"Picture {n}?",
            "chosen": right + end,
            "rejected": wrong if n % 2 else right,
        }
        for n in range(8)
    ]
    (shared / "pairs.json").write_text(json.dumps(pairs))
    return ("pairing=given", "source=preference", f"source.file={shared / 'pairs.json'}")


@pytest.mark.parametrize("name", METHODS)
def test_a_whole_cell_runs_on_a_random_model(
    name: str, shared: Path, given_pairs: tuple[str, ...], toy_data: Path
) -> None:
    words = [*QUICK, *WORDS.get(name, SHORT)]
    before = set((shared / "runs" / "train").glob("*"))
    if name == "ha_dpo":  # a random model's answers say nothing that could be mended
        words = [w for w in QUICK if not w.startswith("source.files_from")] + [*given_pairs]
    assert run_nsft(shared, toy_data, f"method={name}", *words) == 0
    *_, last = sorted(set((shared / "runs" / "train").glob("*")) - before, key=lambda f: f.stat().st_mtime_ns)
    manifest = json.loads((last / "manifest.json").read_text("utf-8"))
    counts = manifest["counts"]
    assert counts["samples"] == 8
    assert counts["examples"] > 0
    if name in ("seva", "sima", "gt_dpo", "spin"):
        assert counts["examples"] == counts["pairs"]
    if name == "ha_dpo":
        assert (counts["examples"], counts["left_out"]["no error was found"]) == (4, 4)
    assert manifest["models_held"] == 1
    assert manifest["final_loss"] is not None


# --- what it needs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base", *METHODS])
def test_a_method_goes_with_what_its_yaml_chooses(name: str) -> None:
    given, choices = composed(name)
    configs.check_belonging(given, choices)
    assert class_of(name) is get_object(given["method"]["_target_"])
    assert class_of(name).__module__.startswith("nsft_exp.method.")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_without_what_it_needs_is_refused_with_the_words_to_add(name: str) -> None:
    given, choices = composed(name)
    missing = [group for group in ("pairing", "critic", "codebook") if "none" not in given["belongs"][group]]
    consumes = get_object(given["method"]["_target_"]).consumes
    assert ("pairing" in missing) == (consumes in ("preference", "correction"))
    assert ("critic" in missing) == (consumes == "correction")
    for group in missing:
        with pytest.raises(
            UserError, match=rf"method={name} does not go with {group}=none; {group} can be: \w"
        ):
            configs.check_belonging(given, choices | {group: "none"})


def test_a_scorer_that_is_not_given_is_named() -> None:
    plain, _ = compose("method=csr", "vlm=llava15_7b")
    with pytest.raises(
        UserError, match=r"pairing\.scorer\.path: is not set; name the folder of a CLIP model"
    ):
        build(plain["pairing"])


# --- recipes -----------------------------------------------------------------------------------------

THE_PAPERS = (2e-6, 128, 1, 1024, 2048)
"""Rate and batch are the nSFT paper's; epochs, rank and alpha, of which it says nothing, are SeVa's."""
PUBLISHED = {
    "seva": (2e-6, 128, 2, 1024, 2048),  # one epoch over a list that holds everything twice
    "sima": (1e-7, 8, 3, 128, 256),
    "csr": (1e-7, 8, 1, 128, 256),
    "povid": (1e-7, 8, 1, 128, 256),  # 3 epochs in its first round
    "ha_dpo": (2e-6, 128, 1, 128, 256),
    "bpo": (2e-6, 32, 2, 32, 256),
    "rlhf_v": (5e-7, 8, 3, 128, 256),  # all weights: rank and alpha are ours
    "spin": (5e-7, 64, 2, 128, 256),  # all weights: rank and alpha are ours
    "llava_rlhf": (3e-5, 256, 4, 64, 16),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_published_recipe_is_a_systems_own_or_the_papers(name: str) -> None:
    plain, _ = composed(name)
    names = ("learning_rate", "batch_size", "epochs", "lora_rank", "lora_alpha")
    assert tuple(plain["recipe"][key] for key in names) == PUBLISHED.get(name, THE_PAPERS)
    assert instantiate(plain["recipe"]).rate(0, 1000) < plain["recipe"]["learning_rate"]  # all warm up
    assert ("published" in plain) == (name in PUBLISHED)


# --- on the toy world --------------------------------------------------------------------------------


def test_the_study_of_what_methods_move_has_every_method() -> None:
    config = configs.compose_config([], "methods_toy")
    named = [arm.split()[0].removeprefix("method=") for arm in config.hydra.sweeper.arms]
    assert sorted(named) == METHODS
