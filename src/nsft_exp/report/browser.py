"""What a reader looks at item by item: answers side by side, and the corrections that were trained on."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape
from PIL import Image

from nsft_exp.images import open_image
from nsft_exp.interfaces import Benchmark
from nsft_exp.records import Correction, Preference, Sample, UserError
from nsft_exp.report.cell import Cell, Row
from nsft_exp.report.results import Arm, Results, largest

ITEMS = 12  # shown of each benchmark
CORRECTIONS = 8  # shown of each critic and codebook
PIXELS = 360  # longest side of an embedded image
TINY = 128  # images up to this size are embedded as they are and enlarged without smoothing
MARK = Markup(
    '<mark class="{0}">{1}<span class="sign" aria-hidden="true">{2}</span>'
    '<span class="sr"> ({0})</span></mark>'
)


@dataclass(frozen=True)
class Picture:
    """An embedded image, or the reason why there is none."""

    data: str = ""
    tiny: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Answer:
    """One model's answer to an item."""

    label: str
    html: Markup
    verdict: str
    """`right`, `wrong`, `partly` or empty (a description is not right or wrong as a whole)."""
    note: str = ""


@dataclass(frozen=True)
class Card:
    """One item with the answers of all arms."""

    id: str
    question: str
    truth: str
    picture: Picture
    answers: tuple[Answer, ...]
    differ: bool
    long: bool
    """True where an answer is a sentence or more."""


@dataclass(frozen=True)
class Shelf:
    """The shown items of one benchmark, and how they were chosen."""

    benchmark: str
    cards: tuple[Card, ...]
    num_items: int
    num_differing: int


@dataclass(frozen=True)
class Lesson:
    """One correction as it was trained on: the pair, the errors in it and the dialogue."""

    id: str
    status: str
    question: str
    picture: Picture | None
    chosen: str
    rejected: Markup
    correction: Correction


@dataclass(frozen=True)
class Course:
    """The shown corrections of one critic and codebook."""

    name: str
    lessons: tuple[Lesson, ...]
    statuses: dict[str, int] = field(default_factory=dict)


def shelves(results: Results) -> list[Shelf]:
    """Return items of every benchmark with the first seed's answers of every label at its largest size.

    Which items is decided by a hash of their ids: two thirds from those whose scores differ between
    labels, the rest from all others.
    """
    arms = largest([a for a in results.arms if a.source in ("", _first_source(results))])
    names = dict.fromkeys(e.name for arm in arms for e in arm.cells[0].evaluations)
    return [shelf for name in names if (shelf := _shelf(name, arms, results)) is not None]


def _first_source(results: Results) -> str:
    return next((a.source for a in results.arms if not a.is_base and a.cells), "")


def _shelf(name: str, arms: Sequence[Arm], results: Results) -> Shelf | None:
    cells = [arm.cells[0] for arm in arms if arm.cells[0].evaluation(name)]
    answers = {cell.label: {row.id: row for row in results.rows[cell.name, name]} for cell in cells}
    common = sorted(set.intersection(*(set(rows) for rows in answers.values())), key=_hash)
    if not common:
        return None
    benchmark = next(e.benchmark for cell in cells if (e := cell.evaluation(name)))
    differing = {key for key in common if len({_outcome(rows[key]) for rows in answers.values()}) > 1}
    wanted = [key for key in common if key in differing][: ITEMS * 2 // 3]
    wanted += [key for key in common if key not in differing][: ITEMS - len(wanted)]
    wanted += [key for key in common if key not in wanted][: ITEMS - len(wanted)]
    images = {request.id: request.image for request in benchmark.requests()}
    cards = []
    for key in sorted(wanted, key=_hash):
        rows = {label: mine[key] for label, mine in answers.items()}
        first = next(iter(rows.values()))
        truth = next((row.score.truth for row in rows.values() if row.score and row.score.truth), "")
        shown = tuple(_answer(label, row, benchmark) for label, row in rows.items())
        long = any(len(row.answer) > 40 for row in rows.values())
        cards.append(
            Card(key, first.question, truth, picture(images.get(key)), shown, key in differing, long)
        )
    return Shelf(name, tuple(cards), len(common), len(differing))


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _outcome(row: Row) -> str:
    """What an answer came to, so that answers of other words but the same score do not count as different."""
    return repr(sorted(row.score.counts.items())) if row.score else "no score"


def _answer(label: str, row: Row, benchmark: Benchmark) -> Answer:
    notes = ["no score: " + row.reason] if row.score is None else []
    notes += ["not in the asked form"] * bool(row.score and row.score.unparseable)
    notes += ["cut at the token limit"] * (row.finish == "length")
    marks = row.score.marks if row.score else ()
    return Answer(label, marked(row.answer, marks), verdict(row, benchmark), "; ".join(notes))


def verdict(row: Row, benchmark: Benchmark) -> str:
    """Return whether a short answer is right, by its benchmark's own accuracy on this item alone."""
    if row.score is None or row.score.marks:
        return ""
    if row.score.truth and row.score.parsed.strip().lower() == row.score.truth.strip().lower():
        return "right"
    accuracies = [m.name for m in benchmark.describe() if m.scale == "percent" and "accuracy" in m.name]
    values = benchmark.metrics(row.score.counts)
    found = [float(values[name]) for name in accuracies if name in values and math.isfinite(values[name])]
    if not found:
        return ""
    return "wrong" if found[0] == 0 else "right" if found[0] == 100 else "partly"


def marked(text: str, marks: Iterable[tuple[int, int, str]]) -> Markup:
    """Return a text with marks as HTML: a class, a symbol and a hidden word each, so not by colour alone."""
    parts, end = [], 0
    for start, stop, kind in sorted(marks):
        if start < end or stop <= start:
            continue
        symbol = {"right": "✓", "wrong": "✗"}.get(kind, "")
        parts.append(escape(text[end:start]))
        parts.append(MARK.format(kind, text[start:stop], symbol))
        end = stop
    return Markup("").join([*parts, escape(text[end:])])


def picture(path: str | None) -> Picture:
    """Return an image file small enough for the page; a missing one gives the reason."""
    if path is None:
        return Picture(reason="text only")
    try:
        image = open_image(path)
    except UserError as error:
        return Picture(reason=str(error).partition(";")[0])
    tiny = max(image.size) <= TINY
    image.thumbnail((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True) if tiny else image.save(out, "JPEG", quality=82)
    kind = "png" if tiny else "jpeg"
    return Picture(f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}", tiny)


def courses(results: Results) -> list[Course]:
    """Return corrections of every distinct critique folder, chosen by a hash of their ids."""
    folders: dict[object, Cell] = {}
    for cell in results.cells:
        if cell.critique_folder is not None and cell.status == "ok":
            folders.setdefault(cell.critique_folder, cell)
    found: dict[str, Course] = {}
    for cell in folders.values():
        name = f"critic {cell.critic}, codebook {cell.codebook}"
        if name not in found:  # of several seeds or sizes, the first
            found[name] = _course(name, cell)
    return list(found.values())


def _course(name: str, cell: Cell) -> Course:
    corrections, preferences = cell.corrections(), cell.preferences()
    samples = {s.id: s for s in cell.samples()} if cell.samples else {}
    statuses: dict[str, int] = {}
    for correction in corrections.values():
        statuses[correction.status] = statuses.get(correction.status, 0) + 1
    usable = sorted((k for k, c in corrections.items() if c.dialogue and k in preferences), key=_hash)
    lessons = [_lesson(corrections[k], preferences[k], samples.get(k)) for k in usable[:CORRECTIONS]]
    return Course(name, tuple(lessons), statuses)


def _lesson(correction: Correction, preference: Preference, sample: Sample | None) -> Lesson:
    marks = [(e.start, e.end, "wrong") for e in correction.errors]
    return Lesson(
        id=correction.id,
        status=correction.status,
        question=sample.question if sample else "",
        picture=picture(sample.image) if sample and sample.image else None,
        chosen=preference.chosen,
        rejected=marked(preference.rejected, marks),
        correction=correction,
    )
