"""Small files in the judged benchmarks' official layouts, invented, and judges that reply by a script."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmark_files import write_json, write_lines
from scripted_critic import Answer, Script, completion

VET = {
    "v1_0": ("a.jpg", "What is x?", "-1<AND>-5", ["ocr", "math"]),
    "v1_1": ("b.jpg", "Which word?", "stop<OR>halt", ["ocr"]),
    "v1_2": ("c.jpg", "Who is it?", "Ada", ["rec", "know", "rec"]),
    "v1_3": ("c.jpg", "What is it?", "a cup", ["ocr"]),
}
VET_PROMPT = "Grade these.\n\nQuestion | Truth | Prediction | Grade\n"
HAL_PROMPT = "Contents {}\nQuestion {}\nTruth {}\nAnswer {}\n"


def write_mmvet(root: Path) -> Path:
    rows = {
        key: {"imagename": image, "question": q, "answer": a, "imagesource": "", "capability": caps}
        for key, (image, q, a, caps) in VET.items()
    }
    write_json(root / "mm-vet.json", rows)
    program = f'import nothing_that_exists\n\nprompt = """{VET_PROMPT}"""\n\n\ndef f(prompt=prompt): pass\n'
    (root / "mm-vet_evaluator.py").write_text(program)
    return root


def hal_rows(answers: Mapping[int, str] | None = None) -> list[dict[str, Any]]:
    """96 records; answer k is `answer k` unless given."""
    return [
        {
            "question_type": "any",
            "question_topic": "any",
            "image_id": f"id{k}",
            "image_src": f"https://example.org/{k}_o.jpg",
            "image_content": ["Cat", "Tree"],
            "question": f"Question {k}?",
            "gt_answer": f"Truth {k}.",
            "model_answer": (answers or {}).get(k, f"answer {k}"),
        }
        for k in range(96)
    ]


def write_mmhal(root: Path) -> Path:
    rows = [{**row, "model_answer": ""} for row in hal_rows()]
    write_json(root / "response_template.json", rows)
    (root / "eval_gpt_mmhal.py").write_text(f"template = {HAL_PROMPT!r}\nraise SystemExit\n")
    return root


BENCH = [(0, "1.jpg", "conv"), (1, "1.jpg", "detail"), (2, "2.jpg", "complex"), (3, "2.jpg", "conv")]


def write_llavabench(root: Path) -> Path:
    write_lines(
        root / "questions.jsonl",
        [{"question_id": i, "image": im, "category": c, "text": f"Q{i}?"} for i, im, c in BENCH],
    )
    contexts = [{"id": "1", "image": "1.jpg", "caption": "Sea"}, {"id": "2", "image": "2.jpg"}]
    contexts[1]["caption"] = ["A cup.", "A cat."]  # type: ignore[assignment]
    write_lines(root / "context.jsonl", contexts)
    gpt4 = [{"question_id": i, "text": f"G{i}", "answer_id": f"g{i}", "model_id": "gpt-4"} for i, *_ in BENCH]
    write_lines(root / "answers_gpt4.jsonl", gpt4)
    rule = {"role": "Assistant", "prompt": "Two scores, please."}
    write_json(root / "rule.json", {f"llava_bench_{c}": rule for c in ("conv", "detail", "complex")})
    return root


def replying(reply: Callable[[str, int], str | Answer], model: str = "gpt-scripted") -> Script:
    """The script of a judge whose reply depends on its prompt and on how often that was sent before."""
    seen: list[str] = []

    def script(body: dict[str, Any], number: int) -> Answer:
        words = body["messages"][-1]["content"]
        times = seen.count(words)
        seen.append(words)
        said = reply(words, times)
        return said if isinstance(said, Answer) else Answer(body=completion(said, model=model))

    return script


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


SHR_PROMPT = "Regions:\n{}Facts:\n{}Comments:\n{}"
SHR_IMAGES = (7, 12)


def write_shr(root: Path) -> Path:
    """Two images: the first with facts and a region without a phrase, the second without either."""
    write_json(root / "val_images_final.json", [{"image_id": i} for i in SHR_IMAGES])
    url = "https://example.org/images/VG_100K/{}.jpg"
    sizes = [{"image_id": i, "width": 200, "height": 100, "url": url.format(i)} for i in (5, *SHR_IMAGES)]
    write_json(root / "image_data.json", sizes)
    box = {"x": 20, "y": 33, "width": 60, "height": 67}
    regions = [
        {"regions": [{"image_id": 7, "phrase": "a cat", **box}, {"image_id": 7, "phrase": "", **box}]},
        {"regions": []},
        {"regions": [{"image_id": 12, "phrase": "a hill", **box, "x": 1}]},
    ]
    write_json(root / "region_descriptions.json", regions)
    write_lines(root / "shr_factual_part1.jsonl", [{"7": ["1. A cat.", "2. A mat."]}])
    write_lines(root / "shr_factual_part2.jsonl", [{"99": ["3. Elsewhere."]}])
    (root / "gpt_utils.py").write_text(f"import openai\n\nGPT_JUDGE_PROMPT = {SHR_PROMPT!r}\n")
    return root
