"""The page of a study: one self-contained HTML file, for a desk or a phone, light or dark."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nsft_exp.report import browser, class_table, form, inputs, moved, wording
from nsft_exp.report.figure import Drawn, Plot
from nsft_exp.report.results import GROUPS, Results
from nsft_exp.report.style import DARK, KNOWN, darkened, look
from nsft_exp.report.table import INTERVALS


def to_html(results: Results, drawn: Sequence[Drawn], missing: Sequence[Plot]) -> str:
    """Return the page as HTML text. Everything is inside it: styles, script, figures, images."""
    environment = Environment(
        loader=PackageLoader("nsft_exp.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(w=wording, groups=GROUPS, quantity=wording.quantity)
    return environment.get_template("template.html.j2").render(
        results=results,
        study={"name": "study", "title": "", "description": "", **results.study},
        style=Markup(_source(environment, "page.css")),
        script=Markup(_source(environment, "page.js")),
        colours=_colours(results),
        figures=[_figure(d) for d in drawn],
        missing=missing,
        shelves=browser.shelves(results),
        courses=browser.courses(results),
        in_domain=class_table,
        forms=form.form_grid(results),
        form_note=form.EXPLANATION,
        inputs=inputs.input_table(results),
        moved=moved.moved_grid(results),
        moved_note=moved.NOTE,
        intervals=INTERVALS,
        answer_seed=_answer_seed(results),
        spans=_spans(results),
        protocols=sorted({(e.name, e.protocol) for c in results.cells for e in c.evaluations}),
        meanings=wording.MEANINGS,
        symbols=wording.SYMBOLS,
    )


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _spans(results: Results) -> list[tuple[str, int]]:
    columns = results.shown
    counted = [(name, sum(c.group == key for c in columns)) for key, name in GROUPS.items()]
    return [(name, n) for name, n in counted if n]


def _colours(results: Results) -> list[tuple[str, str, str]]:
    """Return (label, light, dark): the same colours as in the figures."""
    labels = list(dict.fromkeys([*KNOWN, *(a.label for a in results.arms)]))
    return [(x, look(x, labels)[0], DARK[look(x, labels)[0]]) for x in labels]


def _figure(drawn: Drawn) -> dict[str, Any]:
    """Return a figure's four pictures as data URIs, with the size of each width."""
    found: dict[str, Any] = {"plot": drawn.plot}
    for name, svg in (("wide", drawn.wide), ("narrow", drawn.narrow)):
        width, height = _size(svg)
        for theme, text in (("light", svg), ("dark", darkened(svg))):
            data = base64.b64encode(text.encode()).decode()
            uri = f"data:image/svg+xml;base64,{data}"
            found[f"{name}_{theme}"] = {"uri": uri, "width": width, "height": height}
    return found


def _size(svg: str) -> tuple[int, int]:
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert found is not None
    return round(float(found[1])), round(float(found[2]))


def _answer_seed(results: Results) -> str:
    seeds = [arm.seeds[0] for arm in results.arms if arm.seeds and arm.seeds[0] is not None]
    return str(seeds[0]) if seeds else ""
