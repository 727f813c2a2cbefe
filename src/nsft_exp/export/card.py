"""The cards of exported folders: what they are, where they come from, how they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from nsft_exp.export.data import Export
    from nsft_exp.export.finding import FoundCell

TRL_USE = {
    "sft": """\
trainer = SFTTrainer(model, SFTConfig(assistant_only_loss=True, max_length=None), train_dataset=data,
                     processing_class=processor)""",
    "prompt_completion": """\
trainer = SFTTrainer(model, SFTConfig(max_length=None), train_dataset=data, processing_class=processor)""",
    "preference": """\
trainer = DPOTrainer(model, args=DPOConfig(max_length=None), train_dataset=data,
                     processing_class=processor)""",
}
TRL_TEXT = """\
```python
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import {classes}

data = load_dataset("path/to/this/folder", split="train")  # images are decoded when a row is read
processor = AutoProcessor.from_pretrained(model_folder)
model = AutoModelForImageTextToText.from_pretrained(model_folder, dtype="auto")
{trainer}
```

`nsft export-model method=base vlm=... to=<model_folder>` writes a base model whose processor and chat
template give TRL the tokens and the mask of nsft's own training; with the hub's template the tokens differ.
`max_length` is off because TRL cuts sequences without regard to image tokens.
"""
LLAMA_FACTORY_TEXT = """\
```yaml
dataset_dir: path/to/this/folder
dataset: {name}
template: llava  # the vicuna_v1 text for LLaVA-1.5
```

Image paths are relative to `dataset_dir`.
"""


def data_card(name: str, cell: FoundCell, found: Export, made: dict[str, Any]) -> str:
    """Return the data set's README.md: the hub's metadata, provenance, counts, and how to train on it."""
    trl = found.format == "trl"
    files = ["metadata.jsonl", "images/*"] if trl else ["data.jsonl"]
    head = {
        "pretty_name": name,
        "task_categories": ["image-text-to-text"],
        "tags": ["nsft_exp", "trl" if trl else "llama-factory", found.kind],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": files}]}],
    }
    lines = [
        _front_matter(head),
        f"# {name}",
        "",
        f"{made['rows']} rows with {made['images']} images: {_what(found)} of {cell.label}. "
        "Written by `nsft export`.",
        "",
        _table(_provenance(cell) | _flat(found.counts)),
        *(f"- {note}" for note in found.notes),
        *([""] if found.notes else []),
        "## Use",
        "",
        _use(name, found),
    ]
    return "\n".join(lines)


def _what(found: Export) -> str:
    return {
        "sft": "conversations",
        "prompt_completion": "questions and answers",
        "preference": "chosen and rejected answers",
    }[found.kind]


def _use(name: str, found: Export) -> str:
    if found.format != "trl":
        return LLAMA_FACTORY_TEXT.format(name=name)
    classes = "DPOConfig, DPOTrainer" if found.kind == "preference" else "SFTConfig, SFTTrainer"
    return TRL_TEXT.format(classes=classes, trainer=TRL_USE[found.kind])


def model_card(cell: FoundCell, facts: dict[str, Any]) -> str:
    """Return the model's README.md: what it was trained from, on and how, its metrics, and how it was proven.

    `facts` has `trained` (the train stage's manifest or None), `evaluations` (manifests by benchmark),
    `proof` (what was compared) and `about` (versions).
    """
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["nsft_exp", cell.choices["method"]],
    }
    path = str(cell.config["vlm"].get("path") or "")
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        head["base_model"] = path
    trained = facts["trained"]
    parts = [
        _front_matter(head),
        f"# {cell.label}",
        "",
        "Written by `nsft export-model`: the trained weights are merged into the base.",
        "",
        "## Data",
        "",
        _table(_provenance(cell) | (_flat(trained["counts"]) if trained else {})),
        *(_training(cell, trained) if trained else ["Nothing was trained: this is the base model.", ""]),
        "## Metrics",
        "",
        _metrics(facts["evaluations"]),
        "## Proof",
        "",
        _table(_flat(facts["proof"])),
        "## Use",
        "",
        MODEL_USE,
    ]
    return "\n".join(parts)


MODEL_USE = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("path/to/this/folder", dtype="auto")
processor = AutoProcessor.from_pretrained("path/to/this/folder")
content = [{"type": "image", "path": "a.jpg"}, {"type": "text", "text": "What is this?"}]
messages = [{"role": "user", "content": content}]
inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True,
                                       return_tensors="pt")
print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))
```

The chat template and the image processor are those of training: BOS, the system sentence, the end of every
answer.
"""


def _training(cell: FoundCell, trained: dict[str, Any]) -> list[str]:
    names = ("steps", "epochs", "supervised_tokens", "trainable_parameters", "final_loss", "precision")
    nodes = {group: _flat(cell.config[group], group) for group in ("method", "recipe", "tuning")}
    done = {name: trained[name] for name in names if name in trained}
    return ["## Recipe", "", _table(nodes["method"] | nodes["recipe"] | nodes["tuning"] | done)]


def _metrics(evaluations: dict[str, dict[str, Any]]) -> str:
    if not evaluations:
        return "Not evaluated yet.\n"
    rows = {}
    for name, manifest in evaluations.items():
        rows[name] = f"{manifest['counts']['scored']} of {manifest['n']} questions scored"
        values = {metric: value for metric, value in manifest["metrics"].items() if value is not None}
        rows |= {f"{name}/{metric}": f"{value:.4g}" for metric, value in values.items()}
    return _table(rows)


def _provenance(cell: FoundCell) -> dict[str, Any]:
    """What the cell is made of; places on this machine are not in it."""
    chosen = {
        g: cell.choices[g] for g in ("source", "vlm", "pairing", "critic", "codebook", "method", "variant")
    }
    found = {name: option for name, option in chosen.items() if option != "none"}
    source = cell.config["source"]
    found |= {f"source.{name}": source[name] for name in ("size", "seed", "turn") if name in source}
    return found | {"seed": cell.config["seed"]} | {f"key of {n}": k for n, k in cell.run.keys.items()}


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a node by dotted name, without `_target_`."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        dotted = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, dict):
            found |= _flat(value, dotted)
        elif name != "_target_":
            found[dotted] = value
    return found


def _table(rows: dict[str, Any]) -> str:
    lines = ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _front_matter(head: dict[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"
