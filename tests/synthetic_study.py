"""A made-up study with plausible per-item scores, written to disk the way the stages write it."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from nsft_exp.records import (
    Correction,
    Exchange,
    FoundError,
    ItemScore,
    Metric,
    Preference,
    Reply,
    Request,
    Sample,
    Turn,
    to_json,
)
from nsft_exp.report.cell import Cell, Evaluation

OBJECTS = ["kite", "cup", "boat", "lamp", "chair", "apple", "dog", "clock"]
COLOURS = {"red": "#d33f3f", "blue": "#3b6fd6", "green": "#3b9b52", "yellow": "#e2b93b"}
ARMS = {  # label: (chance to assert an absent object, chance to see a present one, VQA accuracy)
    "base": (0.52, 0.93, 0.90),
    "cont_sft": (0.48, 0.93, 0.91),
    "gt_dpo": (0.40, 0.90, 0.86),
    "nsft": (0.24, 0.92, 0.91),
    "nsft/matched_random": (0.27, 0.92, 0.90),
}


class _Questions:
    """What the three made-up benchmarks share."""

    def __init__(self, requests: list[Request]) -> None:
        self._requests = requests

    def requests(self) -> list[Request]:
        return self._requests

    def score(self, request: Request, reply: Reply) -> ItemScore | None:
        raise NotImplementedError("the synthetic study comes with its scores")

    def files(self) -> list[Path]:
        return []


class YesNo(_Questions):
    name, protocol = "pope", "pope-like v1"

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        out = {}
        for split in ("random", "adversarial"):
            n, tp, fp, fn = (counts[f"{split}_{x}"] for x in ("n", "tp", "fp", "fn"))
            out[f"{split}_accuracy"] = 100 * (n - fp - fn) / n
            out[f"{split}_f1"] = 100 * 2 * tp / (2 * tp + fp + fn)
            out[f"{split}_yes"] = 100 * (tp + fp) / n
        return out

    def describe(self) -> list[Metric]:
        out = []
        for split in ("random", "adversarial"):
            out.append(Metric(f"{split}_f1", f"POPE {split} F1", "up", "percent", "yes_no", headline=True))
            out.append(Metric(f"{split}_accuracy", f"POPE {split} accuracy", "up", "percent", "yes_no"))
            out.append(Metric(f"{split}_yes", f"POPE {split} yes rate", "none", "percent", "yes_no"))
        out.append(Metric("adversarial_auc", "POPE adversarial AUC", "up", "ratio", "yes_no", headline=True))
        return out


class Captions(_Questions):
    name, protocol = "chair", "chair-like v1"

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "chair_s": 100 * counts["bad_captions"] / counts["captions"],
            "chair_i": 100 * counts["bad"] / counts["mentions"],
            "recall": 100 * counts["found"] / counts["objects"],
            "length": counts["words"] / counts["captions"],
        }

    def describe(self) -> list[Metric]:
        return [
            Metric("chair_s", "CHAIR sentence", "down", "percent", "generation", headline=True),
            Metric("chair_i", "CHAIR instance", "down", "percent", "generation", headline=True),
            Metric("recall", "Object recall", "up", "percent", "generation", headline=True),
            Metric("length", "Caption length", "none", "words", "generation", headline=True),
        ]

    def objects_in(self, text: str) -> list[str]:
        return [word for word in re.findall("[a-z]+", text.lower()) if word in OBJECTS]


class ShortAnswers(_Questions):
    name, protocol = "vqa", "exact match v1"

    def __init__(self, requests: list[Request], classes: Mapping[str, str] | None = None) -> None:
        super().__init__(requests)
        self._classes = classes or {}

    def classes(self) -> Mapping[str, str]:
        return self._classes

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        return {"accuracy": 100 * counts["right"] / counts["n"]}

    def describe(self) -> list[Metric]:
        return [Metric("accuracy", "VQA accuracy", "up", "percent", "short_answer", headline=True)]


def make_study(
    folder: Path, seeds: tuple[int, ...] = (0, 1, 2), num_images: int = 60, sizes: tuple[int, ...] = (600,)
) -> tuple[list[Cell], dict[str, Any]]:
    """Write files of a study under `folder` and return its cells and its study node."""
    scenes = _scenes(folder / "images", num_images)
    benchmarks = _benchmarks(scenes)
    samples = _samples(scenes)
    responses = _write_pairs(folder, samples)
    cells: list[Cell] = []
    for label in ARMS:
        for size in sizes if label != "base" else sizes[:1]:
            for seed in seeds if label != "base" else (None,):
                cells.append(_cell(folder, label, size, seed, scenes, benchmarks, responses, samples))
    study = {
        "name": "synthetic",
        "title": "A synthetic study",
        "compare_to": ["cont_sft", "gt_dpo", "nsft/matched_random"],
    }
    return cells, study


def without_codebook(folder: Path, cells: list[Cell]) -> list[Cell]:
    """The cells of nSFT again, as they are without a codebook: dialogues about words, not things."""
    cells = [cell for cell in cells if cell.label == "nsft"]
    dialogue = (Exchange("Could the answer provide a better word?", "No, it should provide another word."),)
    rows = [
        {"input": "x", **to_json(dataclasses.replace(c, dialogue=dialogue if c.dialogue else ()))}
        for c in cells[0].corrections().values()
    ]
    write_jsonl(folder / "critique-none" / "records.jsonl", rows)
    changes: dict[str, Any] = {"variant": "no_codebook", "codebook": "none", "label": "nsft/no_codebook"}
    changes["critique_folder"] = folder / "critique-none"
    return [dataclasses.replace(c, name=c.name.replace("nsft", "nsft/no_codebook"), **changes) for c in cells]


def failed_cell(folder: Path) -> Cell:
    """A cell that did not finish."""
    return Cell(
        label="gt_dpo",
        method="gt_dpo",
        source="toy_instruct",
        size=600,
        vlm="toy",
        seed=3,
        name="gt_dpo-600-seed3",
        status="failed",
        error="out of memory on the accelerator; lower trainer.micro_batch",
        log=folder / "jobs" / "7" / "nsft.log",
    )


def _scenes(folder: Path, num: int) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    scenes = []
    for i in range(num):
        rng = random.Random(f"scene {i}")
        present = rng.sample(OBJECTS, 3)
        colours = {o: rng.choice(list(COLOURS)) for o in present}
        file = folder / f"{i:04}.png"
        picture = Image.new("RGB", (64, 64), rng.choice(["#cfe8ff", "#e9e4d4", "#dcefdc"]))
        draw = ImageDraw.Draw(picture)
        for place, name in enumerate(present):
            x, y, r = 12 + 20 * place, rng.randint(14, 50), rng.randint(6, 10)
            shape = draw.ellipse if OBJECTS.index(name) % 2 else draw.rectangle
            shape((x - r, y - r, x + r, y + r), fill=COLOURS[colours[name]], outline="#222222")
        picture.save(file)
        absent = [o for o in OBJECTS if o not in present]
        scenes.append({"image": file, "present": present, "absent": absent, "colours": colours})
    return scenes


def _request(key: str, scene: dict[str, Any], question: str) -> Request:
    return Request(key, str(scene["image"]), (Turn("prompt", question),))


def _benchmarks(scenes: list[dict[str, Any]]) -> dict[str, Any]:
    yes_no, captions, short = [], [], []
    for i, scene in enumerate(scenes):
        for split, names in (("random", [scene["absent"][0]]), ("adversarial", scene["absent"][1:3])):
            for name in [*names, *scene["present"][: len(names)]]:
                yes_no.append(_request(f"{split}-{i}-{name}", scene, f"Is there a {name} in the image?"))
        captions.append(_request(f"caption-{i}", scene, "Describe this image in detail."))
        for name in scene["present"]:
            short.append(
                _request(
                    f"colour-{i}-{name}",
                    scene,
                    f"What colour is the {name}?\nAnswer the question using a single word or phrase.",
                )
            )
    colours = {r.id: scenes[int(r.id.split("-")[1])]["colours"][r.id.split("-")[2]] for r in short}
    classes = {key: f"query colour: {colour}" for key, colour in colours.items()}
    return {"pope": YesNo(yes_no), "chair": Captions(captions), "vqa": ShortAnswers(short, classes)}


def _cell(
    folder: Path,
    label: str,
    size: int,
    seed: int | None,
    scenes: list[dict[str, Any]],
    benchmarks: dict[str, Any],
    responses: dict[str, Path],
    samples: list[Sample],
) -> Cell:
    invents, sees, reads = ARMS[label]
    drift = random.Random(f"{label} {seed} {size}").gauss(0, 0.01)
    if label != "base":
        invents *= 1.25 - 0.25 * size / 600
    rates = (invents + drift, sees + drift / 4, reads - drift / 2)
    name = f"{label}-{size}-seed{seed}"
    evaluations = []
    for key, benchmark in benchmarks.items():
        place = folder / "evaluate" / name.replace("/", "-") / key
        rows = [
            _answer(key, r, scenes, rates, random.Random(f"{label}{seed}{r.id}"))
            for r in benchmark.requests()
        ]
        evaluations.append(_evaluation(key, benchmark, place, rows))
    method, _, variant = label.partition("/")
    trained = method != "base"
    nsft = method == "nsft"
    return Cell(
        label=label,
        method=method,
        variant=variant,
        source="toy_instruct",
        size=size,
        vlm="toy",
        seed=seed,
        source_seed=0,
        pairing_seed=0 if method in ("gt_dpo", "nsft") else None,
        pairing="gt" if method in ("gt_dpo", "nsft") else "none",
        critic={"nsft": "rule", "nsft/matched_random": "matched_random"}.get(label, "none"),
        codebook="full" if nsft else "none",
        name=name,
        counts=_counts(method, size, label) if trained else {},
        costs={"models_held": 1, "peak_memory_bytes": 412_000_000, "train_seconds": 31.0} if trained else {},
        config={"method": {"name": method}, "seed": seed, "critic": {"api_key": "secret-value"}},
        train_folder=_write_training(folder, name, method, nsft) if trained else None,
        respond_folder=responses["respond"] if method in ("gt_dpo", "nsft") else None,
        critique_folder=responses["critique"] if nsft else None,
        evaluations=tuple(evaluations),
        samples=lambda: samples,
    )


def _counts(method: str, size: int, label: str) -> dict[str, Any]:
    counts: dict[str, Any] = {"samples": size, "examples": size, "steps": 2 * size // 32}
    counts["supervised_tokens"] = size * {"cont_sft": 31, "gt_dpo": 62, "nsft": 118}[method]
    if method in ("gt_dpo", "nsft"):
        counts |= {"pairs": size - 41, "equal": 41}
    if method == "gt_dpo":
        counts["examples"] = size - 41
    if label == "nsft":
        counts["corrections"] = {"ok": size - 60, "no_error": 55, "unparseable": 5, "refused": 0}
        counts |= {"critic_precision": 0.97, "critic_recall": 0.84}
    return counts


def _answer(
    key: str, request: Request, scenes: list[dict[str, Any]], rates: tuple[float, ...], rng: random.Random
) -> dict[str, Any]:
    scene = scenes[int(request.id.split("-")[1])]
    make = {"pope": _yes_no, "chair": _caption, "vqa": _colour}[key]
    answer, score = make(request, scene, rates, rng)
    return {
        "id": request.id,
        "question": request.turns[-1].text,
        "answer": answer,
        "finish": "stop",
        "score": to_json(score),
        "reason": "",
    }


def _yes_no(request: Request, scene: dict[str, Any], rates: tuple[float, ...], rng: random.Random) -> Any:
    split, _, name = request.id.split("-")
    true = name in scene["present"]
    chance = rates[1] if true else rates[0] * (0.6 if split == "random" else 1.1)
    says = rng.random() < chance
    counts = dict.fromkeys(
        [f"{s}_{x}" for s in ("random", "adversarial") for x in ("n", "tp", "fp", "fn")], 0.0
    )
    counts[f"{split}_n"] = 1.0
    if says or true:
        counts[f"{split}_{'tp' if says and true else 'fp' if says else 'fn'}"] = 1.0
    rank = rng.gauss(1.0 if true else 2.0 * chance, 0.7)
    answer = "Yes" if says else "No"
    score = ItemScore(
        request.id,
        scene["image"].name,
        counts,
        parsed=answer.lower(),
        ranks={split: (int(true), rank)},
        marks=((0, len(answer), "right" if says == true else "wrong"),),
        truth="yes" if true else "no",
    )
    return answer, score


def _caption(request: Request, scene: dict[str, Any], rates: tuple[float, ...], rng: random.Random) -> Any:
    named = [(o, "right") for o in scene["present"] if rng.random() < rates[1]]
    named += [(o, "wrong") for o in scene["absent"][:2] if rng.random() < rates[0]]
    text, marks = "The image shows", []
    for i, (name, mark) in enumerate(named):
        text += " and a" if i == len(named) - 1 and i else ", a" if i else " a"
        text += f" {scene['colours'].get(name, rng.choice(list(COLOURS)))} "
        marks.append((len(text), len(text) + len(name), mark))
        text += name
    text += " on a plain ground." if named else " a plain ground."
    wrong = sum(mark == "wrong" for _, mark in named)
    counts = {
        "captions": 1.0,
        "bad_captions": float(wrong > 0),
        "bad": float(wrong),
        "mentions": float(len(named)),
        "found": float(len(named) - wrong),
        "objects": float(len(scene["present"])),
        "words": float(len(text.split())),
    }
    truth = ", ".join(scene["present"])
    return text, ItemScore(request.id, scene["image"].name, counts, marks=tuple(marks), truth=truth)


def _colour(request: Request, scene: dict[str, Any], rates: tuple[float, ...], rng: random.Random) -> Any:
    truth = scene["colours"][request.id.split("-")[2]]
    answer = truth if rng.random() < rates[2] else rng.choice([c for c in COLOURS if c != truth])
    marks = ((0, len(answer), "right" if answer == truth else "wrong"),)
    counts = {"n": 1.0, "right": float(answer == truth)}
    return answer, ItemScore(request.id, scene["image"].name, counts, answer, marks=marks, truth=truth)


def _evaluation(key: str, benchmark: Any, folder: Path, rows: list[dict[str, Any]]) -> Evaluation:
    from nsft_exp.statistics import rank_metrics

    write_jsonl(folder / "records.jsonl", rows)
    scores = [_score(row["score"]) for row in rows]
    counts = {name: sum(s.counts[name] for s in scores) for name in scores[0].counts}
    metrics = {**benchmark.metrics(counts), **rank_metrics(scores)}
    return Evaluation(key, benchmark.protocol, benchmark, folder, metrics)


def _score(row: dict[str, Any]) -> ItemScore:
    return ItemScore(**{**row, "ranks": {k: tuple(v) for k, v in row["ranks"].items()}})


def _samples(scenes: list[dict[str, Any]]) -> list[Sample]:
    out = []
    for i, scene in enumerate(scenes[:20]):
        answer = f"There is a {scene['present'][0]} and a {scene['present'][1]}."
        out.append(Sample(f"s{i}", str(scene["image"]), "What is in this image?", answer))
    return out


def _write_pairs(folder: Path, samples: list[Sample]) -> dict[str, Path]:
    pairs, corrections = [], []
    for i, sample in enumerate(samples):
        wrong = OBJECTS[i % len(OBJECTS)]
        if wrong in sample.answer or i % 7 == 6:
            pairs.append(Preference(sample.id, "equal", sample.answer, sample.answer))
            corrections.append(Correction(sample.id, "no_error"))
            continue
        rejected = sample.answer[:-1] + f" and a {wrong}."
        start = rejected.rindex(wrong)
        category = ["existence", "existence", "attribute", "count", "spatial relation"][i % 5]
        dialogue = (
            Exchange(f"Can you see a {wrong}?", f"No, there is no {wrong} in the picture."),
            Exchange("What else is there?", sample.answer),
        )
        pairs.append(Preference(sample.id, "ok", sample.answer, rejected))
        error = FoundError(category, start, start + len(wrong), wrong, "")
        corrections.append(Correction(sample.id, "ok", (error,), dialogue))
    write_jsonl(folder / "respond" / "records.jsonl", [{"input": "x", **to_json(p)} for p in pairs])
    write_jsonl(folder / "critique" / "records.jsonl", [{"input": "x", **to_json(c)} for c in corrections])
    return {"respond": folder / "respond", "critique": folder / "critique"}


def _write_training(folder: Path, name: str, method: str, nsft: bool) -> Path:
    rng, rows = random.Random(name), []
    for step in range(1, 38):
        row: dict[str, Any] = {"step": step, "lr": 1e-3 * (1 - step / 40), "grad_norm": 1 + rng.random()}
        if method == "gt_dpo":
            margin = 0.12 * step + rng.gauss(0, 0.3)
            row |= {"loss": 0.69 * 0.95**step, "margin": margin, "accuracy": min(1.0, 0.5 + step / 60)}
        else:
            row |= {"loss": 1.4 * 0.97**step + rng.gauss(0, 0.03), "chosen": 0.8 * 0.97**step}
            row |= {"correction": 0.6 * 0.96**step} if nsft else {}
        if step % 10 == 0:
            rows.append({"step": step, "validation/loss": 1.2 * 0.98**step + rng.gauss(0, 0.02)})
        rows.append(row)
    place = folder / "train" / name.replace("/", "-")
    write_jsonl(place / "metrics.jsonl", rows)
    return place


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
