"""Tables of a study as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from nsft_exp.report import wording
from nsft_exp.report.results import GROUPS, Column, ComparisonTable, Results

LEGEND = (
    "▲ better, ▼ worse: both 95 % intervals exclude zero, Holm-corrected over the table. "
    "△ ▽: before the correction only. ·: an interval includes zero."
)
INTERVALS = (
    "Differences are means over seeds on the same items. Intervals: pigeonhole bootstrap (images and seeds "
    "resampled) and Student's t over the seeds' differences."
)


MAIN_NOTE = (
    "Mean ± standard deviation over seeds. "
    "Pairs: samples whose chosen and rejected answers differ, of all samples."
)


@dataclass(frozen=True)
class Grid:
    """A table as text: a first column of names, then columns that belong to groups."""

    corner: str
    groups: list[tuple[str, int]]
    """(title, number of columns) from the second column on."""
    header: list[str]
    rows: list[list[str]]


def main_grid(results: Results) -> Grid:
    """Return the main table: an arm a row, `mean ± sd` of every metric that is shown, and what went in."""
    columns = results.shown
    groups = [(name, sum(c.group == key for c in columns)) for key, name in GROUPS.items()]
    header = ["pairs", "trained on", "seeds", *(wording.title(c) for c in columns)]
    rows = []
    for arm in results.arms:
        n = arm.number("examples") or arm.number("samples")
        seeds = [wording.DASH if arm.is_base else str(len(arm.cells))]
        went_in = [wording.pair_yield(arm), wording.quantity(n.value if n else None), *seeds]
        row = [wording.arm_name(arm, results.arms), *went_in]
        rows.append(row + [wording.mean_sd(arm.mean(c.key), c.scale) for c in columns])
    rows.append(["items", "", "", "", *(wording.num_items(results, c) for c in columns)])
    return Grid("method", [("", 3), *((t, n) for t, n in groups if n)], header, rows)


def comparison_grid(
    results: Results, table: ComparisonTable, columns: Sequence[Column] | None = None
) -> Grid:
    """Return a table of comparisons: a row a metric and arm, with both intervals and the verdict.

    `columns` are its metrics in order; None: the study's headline columns.
    """
    columns = results.headline if columns is None else columns
    rows = []
    for c in table.comparisons:
        if c.column.headline:
            d, scale = c.difference, c.column.scale
            rows.append(
                [
                    wording.title(c.column),
                    wording.arm_name(c.arm, results.arms),
                    wording.number(d.value, scale, signed=True),
                    wording.interval(d.bootstrap, scale),
                    wording.interval(d.student, scale),
                    wording.p_value(c.adjusted),
                    wording.SYMBOLS[c.verdict],
                ]
            )
    rows.sort(key=lambda row: [wording.title(c) for c in columns].index(row[0]))
    header = ["method", "difference", "bootstrap 95 %", "t 95 %", "p (Holm)", ""]
    return Grid("metric", [("", len(header))], header, rows)


def to_markdown(results: Results) -> str:
    """Return the whole report in words: settings, tables, what failed, what to know."""
    study = results.study
    parts = [f"# {study.get('title') or study.get('name', 'Study')}", wording.seeds_moved(results)]
    parts += [markdown(main_grid(results)), MAIN_NOTE]
    for table in results.tables:
        parts += [f"## Against {table.against}", f"{table.num_tests} tests in this table. {LEGEND}"]
        parts += [markdown(comparison_grid(results, table))]
        parts += [
            "\n".join(
                f"- {wording.arm_name(a, results.arms)}: {wording.reading(table, a)}." for a in table.arms
            )
        ]
    parts += [INTERVALS]
    if results.failed:
        parts += [
            "## Failed cells",
            "\n".join(f"- {c.name}: {c.error} (log: {c.log})" for c in results.failed),
        ]
    if results.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in results.notes)]
    return "\n\n".join(parts) + "\n"


def markdown(grid: Grid) -> str:
    """Return a grid as a Markdown table; a group's title goes before each of its columns."""
    titles = [t for t, n in grid.groups for _ in range(n)]
    header = [grid.corner, *(f"{t} · {h}" if t else h for t, h in zip(titles, grid.header, strict=True))]
    lines = [header, ["---", *["---:"] * len(grid.header)], *grid.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def to_csv(results: Results) -> str:
    """Return every metric of every arm, a row each: mean, sd, the seeds' values, items."""
    head = ["method", "source", "size", "vlm", "benchmark", "metric", "scale", "better", "headline"]
    rows: list[list[object]] = [[*head, "mean", "sd", "seeds", "values", "items"]]
    for arm in results.arms:
        for c in results.columns:
            m = arm.mean(c.key)
            where = [arm.label, arm.source, arm.size if arm.size is not None else "", arm.vlm]
            what = [c.benchmark, c.metric, c.scale, c.better, int(c.headline)]
            values = [m.value, "" if m.sd is None else m.sd] if m else ["", ""]
            each = [len(arm.cells), " ".join(f"{v:.6g}" for v in m.per_seed) if m else ""]
            rows.append([*where, *what, *values, *each, wording.num_items(results, c)])
    return _csv(rows)


def comparisons_to_csv(results: Results) -> str:
    """Return every difference of every table, those of classes last; a row each, headline or not."""
    head = (
        "against method source size vlm benchmark metric difference bootstrap_low bootstrap_high t_low t_high"
    )
    tail = "p_bootstrap p_t p_holm tests verdict seeds items images unpaired replicates"
    rows: list[list[object]] = [[*head.split(), *tail.split()]]
    for table in (*results.tables, *(t for classes in results.classes for t in classes.tables)):
        for c in table.comparisons:
            d, a = c.difference, c.arm
            where = [table.against, a.label, a.source, a.size if a.size is not None else "", a.vlm]
            bounds = [*(d.bootstrap or ("", "")), *(d.student or ("", ""))]
            ps = ["" if p is None else p for p in (d.p_bootstrap, d.p_student, c.adjusted)]
            facts = [len(d.seeds), d.items, d.clusters, d.unpaired, d.replicates]
            what = [c.column.benchmark, c.column.metric, d.value, *bounds, *ps]
            rows.append([*where, *what, table.num_tests, c.verdict, *facts])
    return _csv(rows)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


LATEX = {
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
}
LATEX |= {
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "\u202f": r"\,",
}
LATEX |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$"}
LATEX |= {"△": r"$\vartriangle$", "▽": r"$\triangledown$", "·": r"$\cdot$", "<": "$<$", ">": "$>$"}


def to_latex(results: Results) -> str:
    """Return the main table and the comparisons as LaTeX (needs booktabs and amssymb)."""
    name = results.study.get("title") or results.study.get("name", "Study")
    parts = ["% Needs \\usepackage{booktabs,amssymb}.", latex(main_grid(results), str(name))]
    for table in results.tables:
        parts.append(
            latex(comparison_grid(results, table), f"{name}: against {table.against}. {LEGEND} {INTERVALS}")
        )
    return "\n\n".join(parts) + "\n"


def latex(grid: Grid, caption: str) -> str:
    """Return a grid as a LaTeX table with rules between groups."""
    heads, rules, place = [""], [], 2
    for name, n in grid.groups:
        heads.append(rf"\multicolumn{{{n}}}{{c}}{{{_tex(name)}}}")
        rules += [rf"\cmidrule(lr){{{place}-{place + n - 1}}}"] if name else []
        place += n
    grouped = [" & ".join(heads) + r" \\", "".join(rules)] if rules else []
    body = [" & ".join(map(_tex, row)) + r" \\" for row in grid.rows]
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{_tex(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(grid.header)}}}",
        r"\toprule",
        *grouped,
        " & ".join(_tex(h) for h in (grid.corner, *grid.header)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _tex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)
