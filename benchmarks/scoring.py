"""How long `nsft score`'s rules take on files of the official sizes: made-up questions and answers.

    python benchmarks/scoring.py [--answers 100000] [--captions 5000]

Times are of reading and scoring an answer file once the official files are read, on one core.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.answers import read_answers, summarise
from nsft_exp.benchmark.chair import Chair
from nsft_exp.benchmark.pope import Pope
from nsft_exp.benchmark.textvqa import TextVqa
from nsft_exp.benchmark.vqav2 import Vqav2

TEXT = """a the dog cat person man two three tables chairs red bus near on with wearing shirt dogs' isn't
    umbrella street train, motorcycle holding bench wine glasses cup children people bus. It The 3.5 of"""
WORDS = TEXT.split()
OBJECTS = (
    "dog",
    "cat",
    "person",
    "chair",
    "bus",
    "train",
    "motorcycle",
    "bench",
    "cup",
    "umbrella",
    "wine glass",
)
QUESTION = "\nAnswer the question using a single word or phrase."


def main() -> None:
    """Print a line for each benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--captions", type=int, default=5_000)
    given = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        for make, size in ((pope, given.answers), (vqav2, given.answers), (textvqa, given.answers)):
            report(make, size, Path(folder) / make.__name__, rng)
        report(chair, given.captions, Path(folder) / "chair", rng)


def report(make: Callable[..., tuple[Any, Path]], size: int, root: Path, rng: random.Random) -> None:
    """Write the files, read the annotations, then time reading and scoring the answers."""
    root.mkdir()
    benchmark, path = make(root, size, rng)
    started = time.perf_counter()
    benchmark.items() if hasattr(benchmark, "items") else benchmark.asked()
    read = time.perf_counter()
    summarise(benchmark, read_answers(path))
    done = time.perf_counter()
    print(f"{make.__name__:<8} {size:>7} answers: {done - read:6.2f} s (annotations {read - started:.2f} s)")


def pope(root: Path, size: int, rng: random.Random) -> tuple[Any, Path]:
    """Three splits of `size` / 3 questions."""
    first = {"random": 10_000_001, "popular": 20_000_001, "adversarial": 1}
    answers = []
    for split in first:
        rows = [
            {
                "question_id": k + 1,
                "image": f"{k // 6}.jpg",
                "text": f"Is there a {w} in the image?",
                "label": label,
            }
            for k, (w, label) in enumerate(
                (rng.choice(OBJECTS), rng.choice(("yes", "no"))) for _ in range(size // 3)
            )
        ]
        write_lines(root / "coco" / f"coco_pope_{split}.json", rows)
        answers += [
            {
                "question_id": first[split] + k,
                "prompt": row["text"] + QUESTION,
                "text": rng.choice(("Yes", "No")),
            }
            for k, row in enumerate(rows)
        ]
    return Pope(str(root)), write_lines(root / "answers.jsonl", answers)


def vqav2(root: Path, size: int, rng: random.Random) -> tuple[Any, Path]:
    """Questions with ten answers each, and a results file."""
    questions = [{"question_id": i, "image_id": i // 5, "question": "What?"} for i in range(size)]
    notes = [{"question_id": i, "answer_type": "other", "answers": people(rng)} for i in range(size)]
    write_json(root / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write_json(root / "v2_mscoco_val2014_annotations.json", {"annotations": notes})
    results = [{"question_id": i, "answer": phrase(rng, 2)} for i in range(size)]
    return Vqav2(str(root)), write_json(root / "results.json", results)


def textvqa(root: Path, size: int, rng: random.Random) -> tuple[Any, Path]:
    """Questions with ten answers each, and LLaVA's answer lines."""
    rows = [
        {
            "question_id": i,
            "image_id": str(i),
            "question": "what?",
            "answers": [p["answer"] for p in people(rng)],
        }
        for i in range(size)
    ]
    write_json(root / "TextVQA_0.5.1_val.json", {"data": rows})
    lines = [
        {"question_id": str(i), "prompt": f"What?{QUESTION}", "text": phrase(rng, 2)} for i in range(size)
    ]
    return TextVqa(str(root)), write_lines(root / "answers.jsonl", lines)


def chair(root: Path, size: int, rng: random.Random) -> tuple[Any, Path]:
    """Captions of about 90 words, each of an image with five reference captions."""
    (root / "synonyms.txt").write_text("\n".join(OBJECTS) + "\n")
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(size)]
    classes = [{"id": k, "name": name} for k, name in enumerate(OBJECTS)]
    found = [
        {"image_id": i, "category_id": rng.randrange(len(OBJECTS))} for i in range(size) for _ in range(7)
    ]
    texts = [{"image_id": i, "caption": phrase(rng, 11)} for i in range(size) for _ in range(5)]
    folder = root / "annotations"
    write_json(
        folder / "instances_val2014.json", {"images": images, "annotations": found, "categories": classes}
    )
    write_json(folder / "captions_val2014.json", {"images": images, "annotations": texts})
    captions = [
        {"image_id": i, "caption": " ".join(phrase(rng, 15) + "." for _ in range(6))} for i in range(size)
    ]
    benchmark = Chair(str(root), str(root / "synonyms.txt"), splits=["val2014"])
    return benchmark, write_lines(root / "captions.jsonl", captions)


def people(rng: random.Random) -> list[dict[str, Any]]:
    """Ten people's answers."""
    return [{"answer_id": k, "answer": phrase(rng, rng.randint(1, 3))} for k in range(10)]


def phrase(rng: random.Random, words: int) -> str:
    """A few words."""
    return " ".join(rng.choices(WORDS, k=words))


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write one JSON value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
