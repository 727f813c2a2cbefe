"""Official-format files with awkward records, written where a test needs them; images are small."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image

SHORT = "\nAnswer the question using a single word or phrase."
CAPTION = "Provide a one-sentence caption for the provided image."
FIXTURES = (
    Path(os.environ.get("NSFT_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures")) / "formats"
)


def write(file: Path, value: Any) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return str(file)


def picture(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9 + number % 5, 7), (number * 37 % 256, number % 256, 5)).save(path)
    return path


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


MIX = [
    {
        "id": "000000000030",
        "image": "coco/train2017/000000000030.jpg",
        "conversations": talk(f"What holds the flowers?{SHORT}\n<image>", "Vase"),
    },
    {"id": "wgByO4Y_0", "model": "", "conversations": talk("Say hello.", "Hello!")},
    {
        "id": "0140000001",
        "image": "ocr_vqa/images/0140000001.jpg",
        "conversations": talk(
            f"<image>\nWho wrote this book?{SHORT}", "A. Writer", "What is its genre?", "Travel"
        ),
    },
    {
        "id": "00aa",
        "image": "textvqa/train_images/00aa.jpg",
        "conversations": talk(f"<image>\n{CAPTION}\nReference OCR token: STOP", "A stop sign."),
    },
]


def book(number: int, split: int = 1, extension: str = "jpg", **more: Any) -> dict[str, Any]:
    """A record of OCR-VQA's dataset.json."""
    return {
        "imageURL": f"http://images.example.org/I/{number}XX.{extension}",
        "questions": ["Who wrote this book?", "What is the title of this book?", "Is this a cookbook?"],
        "answers": [f"Writer {number}", f"Title {number}", "No"],
        "title": f"Title {number}",
        "authorName": f"Writer {number}",
        "genre": "Travel",
        "split": split,
    } | more


def caption_rows(image: str, count: int = 5) -> list[dict[str, Any]]:
    """The rows of TextCaps' JSON for one image."""
    references = [f"Caption {n} of {image}." for n in range(count)]
    return [
        {
            "image_id": image,
            "image_path": f"train/{image}.jpg",
            "image_name": image,
            "set_name": "train",
            "caption_id": n,
            "caption_str": references[n],
            "reference_strs": references,
            "image_width": 10,
        }
        for n in range(count)
    ]


def textcaps(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"dataset_type": "train", "dataset_name": "textcaps", "dataset_version": 0.1, "data": rows}


def ocr(tokens: dict[str, list[str]]) -> dict[str, Any]:
    rows = [{"image_id": image, "ocr_tokens": words, "ocr_info": []} for image, words in tokens.items()]
    return {"dataset_version": "0.2", "data": rows}


def instruct(number: int) -> dict[str, Any]:
    name = f"{number:012d}"
    return {"id": name, "image": f"{name}.jpg", "conversations": talk("<image>\nWhat?", f"Thing {number}.")}


def write_pope(folder: Path, images: dict[str, int]) -> list[str]:
    """POPE's files about these pictures (name -> number of `picture`); returns the words that choose it."""
    for name, number in images.items():
        picture(folder / "images" / name, number)
    lines = [
        {"question_id": n, "image": name, "text": "Is there a cup in the image?", "label": "yes"}
        for n, name in enumerate(images, 1)
    ]
    for split in ("random", "popular", "adversarial"):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write(folder / f"coco/coco_pope_{split}.json", text)
    return ["benchmark=pope", f"benchmark.root={folder}", f"benchmark.image_root={folder / 'images'}"]
