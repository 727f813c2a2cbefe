"""Two small tasks of lmms-eval in files: yes/no questions about pictures, with their data on the disk."""

from __future__ import annotations

import subprocess
from pathlib import Path

DATA = """
import sys
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture

rows = [
    {"image": Picture.new("RGB", (8, 8)), "question": f"Question {k}?", "answer": ["no", "yes"][k % 2]}
    for k in range(4)
]
kinds = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
DatasetDict({"test": Dataset.from_list(rows, features=kinds)}).save_to_disk(sys.argv[1])
"""
TASK = """
task: {name}
dataset_path: {data}
dataset_kwargs:
  load_from_disk: true
test_split: test
output_type: generate_until
doc_to_visual: !function task.visual
doc_to_text: !function task.{name}
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 8
  temperature: 0
process_results: !function task.results
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 0.0
"""
CODE = """
def visual(doc):
    return [doc["image"].convert("RGB")]


def yes_no(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def broken(doc, lmms_eval_specific_kwargs=None):
    return "Broken " + doc["question"]


def results(doc, replies):
    return {"right": float(replies[0].strip().lower() == doc["answer"])}
"""


def write_tasks(folder: Path, python: str) -> Path:
    """Write the tasks `yes_no` and `broken` to `folder/tasks`, its data beside it; `python` has datasets."""
    tasks = folder / "tasks"
    tasks.mkdir(parents=True)
    for name in ("yes_no", "broken"):
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, data=folder / "data"))
    (tasks / "task.py").write_text(CODE)
    subprocess.run([python, "-c", DATA, str(folder / "data")], check=True, capture_output=True)
    return tasks
