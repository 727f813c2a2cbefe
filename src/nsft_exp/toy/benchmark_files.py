"""The toy world's tests in the official formats of POPE, CHAIR (COCO), GQA and MME.

    pope/coco/coco_pope_{random,popular,adversarial}.json
    chair/annotations/{instances,captions}_{train,val}2014.json and chair/synonyms.txt
    vqa/testdev_balanced_questions.json
    mme/{existence,count,position,color}/<image>.{png,txt}

Every question is truthfully answered, and worded by the lexicon's `test` and `mme` lists alone.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

from nsft_exp.toy.ask import draw_fact
from nsft_exp.toy.fact import Fact, attribute, count, exchange, existence, mme, relation_of, short_answer
from nsft_exp.toy.text import caption, honest, relation, with_article
from nsft_exp.toy.world import Scene, lexicon, make_scene

PER_IMAGE = 2
"""POPE's positive questions about an image, and its negative ones in each split."""
OCCURRENCES = 1500
"""In how many scenes POPE's rankings count what occurs together."""
VQA_KINDS = ("color", "size", "count", "total", "position", "naming", "relation", "scene", "text")
VQA_PER_IMAGE = 4
MME_IMAGES = 60


def write_tests(folder: Path, scenes: Sequence[Scene], seed: str) -> None:
    """Write all tests about these scenes, the images of which are in `folder`/images."""
    names = [path.name for path in sorted((folder / "images").iterdir())]
    _write_pope(folder / "pope" / "coco", scenes, names, seed)
    _write_chair(folder / "chair", scenes, names, seed)
    _write(folder / "vqa" / "testdev_balanced_questions.json", vqa_questions(scenes, names, seed))
    _write_mme(folder, scenes, names, seed)


# --- POPE --------------------------------------------------------------------------------------------


def _write_pope(folder: Path, scenes: Sequence[Scene], names: Sequence[str], seed: str) -> None:
    folder.mkdir(parents=True)
    for split in ("random", "popular", "adversarial"):
        rows = pope_questions(split, scenes, names, seed)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"coco_pope_{split}.json").write_text(lines, encoding="utf-8")


def pope_questions(
    split: str, scenes: Sequence[Scene], names: Sequence[str], seed: str
) -> list[dict[str, Any]]:
    """Return POPE's questions: of each image some objects that are there, and as many that are not.

    Absent ones are any (`random`), the most frequent (`popular`), or those that most often occur together
    with what the image is annotated with, its objects and its kind of place (`adversarial`). How often is
    counted in other scenes of the world, as POPE counts in all of COCO. Yes and no alternate.
    """
    frequent, together = _occurrences()
    rows: list[dict[str, Any]] = []
    for scene, image in zip(scenes, names, strict=True):
        rng = Random(f"pope/{seed}/{image}")
        present = list(scene.categories())
        chosen = rng.sample(present, min(PER_IMAGE, len(present)))
        absent = [name for name in lexicon()["categories"] if name not in present]
        rng.shuffle(absent)
        if split == "popular":
            absent.sort(key=lambda name: -frequent[name])
        elif split == "adversarial":
            context = [scene.kind, *present]
            absent.sort(key=lambda name: -sum(together[c, name] / frequent[c] for c in context))
        for yes, no in zip(chosen, absent, strict=False):
            rows += [_pope_row(image, yes, "yes"), _pope_row(image, no, "no")]
    return [{"question_id": number, **row} for number, row in enumerate(rows, 1)]


@cache
def _occurrences() -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """How many scenes have each object or kind of place, and each two of these together."""
    frequent: Counter[str] = Counter()
    together: Counter[tuple[str, str]] = Counter()
    for number in range(OCCURRENCES):
        scene = make_scene("pretrain", 0, number)
        context = (scene.kind, *scene.categories())
        frequent.update(context)
        together.update(permutations(context, 2))
    return frequent, together


def _pope_row(image: str, category: str, label: str) -> dict[str, str]:
    text = lexicon()["questions"]["existence"]["test"][0].format(a=with_article(category))
    return {"image": image, "text": text, "label": label}


# --- CHAIR -------------------------------------------------------------------------------------------


def _write_chair(folder: Path, scenes: Sequence[Scene], names: Sequence[str], seed: str) -> None:
    """Write the scenes as COCO's val2014, an empty train2014, and the table of synonyms."""
    folder.mkdir(parents=True)
    categories = list(lexicon()["categories"])
    classes = [{"id": k, "name": name, "supercategory": "thing"} for k, name in enumerate(categories, 1)]
    images = [{"id": int(name.split(".")[0]), "file_name": name, "width": 64, "height": 64} for name in names]
    objects: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for image, scene in zip(images, scenes, strict=True):
        for thing in scene.things:
            kind = categories.index(thing.category) + 1
            objects.append(
                {"id": len(objects) + 1, "image_id": image["id"], "category_id": kind, "iscrowd": 0}
            )
        for complete in (False, True):
            text = caption(honest(scene), complete)
            captions.append({"id": len(captions) + 1, "image_id": image["id"], "caption": text})
    for part, shown, things, texts in (("val", images, objects, captions), ("train", [], [], [])):
        instances = {"images": shown, "annotations": things, "categories": classes}
        _write(folder / "annotations" / f"instances_{part}2014.json", instances)
        _write(folder / "annotations" / f"captions_{part}2014.json", {"images": shown, "annotations": texts})
    table = [", ".join([name, *forms["synonyms"]]) for name, forms in lexicon()["categories"].items()]
    (folder / "synonyms.txt").write_text("\n".join(table) + "\n", encoding="utf-8")


# --- VQA ---------------------------------------------------------------------------------------------


def vqa_questions(scenes: Sequence[Scene], names: Sequence[str], seed: str) -> dict[str, dict[str, Any]]:
    """Return GQA's table of questions with short answers, about as many of every kind."""
    asked: Counter[str] = Counter()
    questions: dict[str, dict[str, Any]] = {}
    for scene, image in zip(scenes, names, strict=True):
        rng = Random(f"vqa/{seed}/{image}")
        facts = [fact for kind in VQA_KINDS if (fact := draw_fact(kind, honest(scene), rng)) is not None]
        rng.shuffle(facts)
        facts.sort(key=lambda fact: asked[fact.kind])
        for fact in facts[:VQA_PER_IMAGE]:
            asked[fact.kind] += 1
            questions[f"{len(questions) + 1:08d}"] = _vqa_row(fact, image, rng)
    return questions


def _vqa_row(fact: Fact, image: str, rng: Random) -> dict[str, Any]:
    said = exchange(fact, "test", "plain", rng)
    verify = fact.kind == "relation"
    right = exchange(fact, "test", "full", rng).answer
    types = {
        "structural": "verify" if verify else "query",
        "semantic": {"relation": "rel", "scene": "global", "naming": "obj"}.get(fact.kind, "attr"),
        "detailed": fact.kind,
    }
    return {
        "question": said.question,
        "imageId": image.removesuffix(".png"),
        "answer": said.answer.lower(),
        "fullAnswer": right,
        "isBalanced": True,
        "groups": {
            "global": fact.kind,
            "local": f"{fact.kind}-{short_answer(fact) if not verify else ''}".lower(),
        },
        "types": types,
    }


# --- MME ---------------------------------------------------------------------------------------------


def _write_mme(folder: Path, scenes: Sequence[Scene], names: Sequence[str], seed: str) -> None:
    """Write two questions about an image, one right and one wrong, on the first images that have them."""
    for category in ("existence", "count", "position", "color"):
        place = folder / "mme" / category
        place.mkdir(parents=True)
        written = 0
        for scene, image in zip(scenes, names, strict=True):
            pair = _mme_pair(category, scene, Random(f"mme/{seed}/{image}"))
            if pair is None or written == MME_IMAGES:
                continue
            written += 1
            shutil.copyfile(folder / "images" / image, place / image)
            lines = [mme(fact) for fact in pair]
            text = "\n".join(f"{said.question}\t{said.answer}" for said in lines if said is not None)
            (place / image).with_suffix(".txt").write_text(text + "\n", encoding="utf-8")


def _mme_pair(category: str, scene: Scene, rng: Random) -> tuple[Fact, Fact] | None:
    things, writer = scene.unique(), honest(scene)
    if not things or (category == "position" and len(things) < 2):
        return None
    if category == "existence":
        absent = [name for name in lexicon()["categories"] if name not in scene.categories()]
        return existence(writer, rng.choice(things).category), existence(writer, rng.choice(absent))
    if category == "count":
        name = rng.choice(scene.categories())
        right = sum(t.category == name for t in scene.things)
        return count(scene, name, right), count(scene, name, rng.choice([n for n in (1, 2, 3) if n != right]))
    if category == "position":
        first, second = rng.sample(things, 2)
        holds = relation(first, second)
        return relation_of(first, second, holds), relation_of(first, second, lexicon()["inverse"][holds])
    thing = rng.choice(things)
    other = rng.choice([c for c in lexicon()["colors"] if c != thing.color])
    return attribute(thing, "color", thing.color), attribute(thing, "color", other)


def _write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
