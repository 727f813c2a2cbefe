"""What can be known of a source before work: counts, damage, duplicates, lengths, images of benchmarks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nsft_exp.cell_run import build
from nsft_exp.check.tokens import Lengths, chat_of, measure
from nsft_exp.output import track
from nsft_exp.plan import benchmark_members
from nsft_exp.records import Sample, UserError
from nsft_exp.source.checking import BadImage, bad_images
from nsft_exp.source.exclusion import BenchmarkImages


@dataclass
class Findings:
    """What was found of a source. `problems` (records) and `bad_images` are damage, the rest is not."""

    samples: int
    counts: dict[str, int]
    problems: list[str]
    images: int = 0
    bad_images: list[BadImage] = field(default_factory=list)
    duplicates: dict[str, int] = field(default_factory=dict)
    lengths: Lengths | None = None
    lengths_missing: str = ""
    """Why the lengths are not known."""
    shared: dict[str, dict[str, int]] = field(default_factory=dict)
    """Benchmark -> how an image was recognised -> samples."""
    not_compared: dict[str, str] = field(default_factory=dict)
    """Benchmark -> why its images are not known."""

    @property
    def damaged(self) -> bool:
        """True where something must be mended before the source can be used."""
        return bool(self.problems or self.bad_images)


def check_source(config: dict[str, Any], as_json: bool = False) -> int:
    """Check the source of a resolved config, print what was found. Returns 1 where it is damaged, else 0."""
    findings = examine(config)
    if as_json:
        print(json.dumps(asdict(findings) | {"damaged": findings.damaged}, ensure_ascii=False, indent=1))
    else:
        from nsft_exp.check.table import show

        show(findings, config)
    return int(findings.damaged)


def examine(config: dict[str, Any]) -> Findings:
    """Return what is found of the source. Raises UserError where the file as a whole cannot be read."""
    source = build(lenient(config["source"]))
    samples = source.samples()
    counts = {name: count for name, count in getattr(source, "counts", {}).items() if count}
    found = Findings(len(samples), counts, list(getattr(source, "problems", ())))
    if not hasattr(source, "open_image"):  # else its images are drawn when they are asked for
        exif = getattr(source, "exif", "apply")
        tracked = track(samples, "images", len(samples))
        found.bad_images, found.images = bad_images(tracked, source.files()[0], exif)
    found.duplicates = duplicates(samples)
    _measure(found, samples, config)
    for name, node in benchmark_members(config["benchmark"]).items():
        _compare(found, samples, name, node)
    return found


def lenient(node: Any) -> Any:
    """The source's node with `broken=drop` and `check=false`: damage is listed, not raised at once."""
    if isinstance(node, list):
        return [lenient(child) for child in node]
    if not isinstance(node, dict):
        return node
    changed = {key: lenient(child) for key, child in node.items()}
    if node.get("_target_", "").startswith("nsft_exp.source.") and "file" in node:
        changed |= {"check": False, "broken": "drop"}
    return changed


def duplicates(samples: Iterable[Sample]) -> dict[str, int]:
    """How many samples repeat an earlier one's image, its image and question, or those and the answer."""
    names = ("image", "image and question", "image, question and answer")
    seen: dict[str, set[int]] = {name: set() for name in names}
    counts: Counter[str] = Counter(dict.fromkeys(names, 0))
    for sample in samples:
        asked = (sample.image, sample.question, sample.history)
        keys = (sample.image, asked, (*asked, sample.answer, sample.rejected))
        for (name, known), key in zip(seen.items(), keys, strict=True):
            value = hash(key)
            counts[name] += value in known and not (name == "image" and key is None)
            known.add(value)
    return dict(counts)


def _measure(found: Findings, samples: Sequence[Sample], config: dict[str, Any]) -> None:
    try:
        chat, images = chat_of(build(config["vlm"]))
    except UserError as error:
        found.lengths_missing = str(error)
        return
    bad = {image.path for image in found.bad_images}
    readable = (s for s in track(samples, "tokens", len(samples)) if s.image not in bad)
    found.lengths = measure(readable, chat, images, config["recipe"]["max_length"])
    found.problems += found.lengths.refused


def _compare(found: Findings, samples: Sequence[Sample], name: str, node: dict[str, Any]) -> None:
    try:
        images = BenchmarkImages([build(node)])
        how = Counter(images.shared(sample) for sample in track(samples, name, len(samples)))
    except UserError as error:
        found.not_compared[name] = str(error)
        return
    found.shared[name] = {kind: count for kind, count in sorted(how.items()) if kind}
