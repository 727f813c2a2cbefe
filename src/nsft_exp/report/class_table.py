"""The in-domain tables in words: what was chosen and how, means, and differences."""

from __future__ import annotations

import csv
import io

from nsft_exp.report import wording
from nsft_exp.report.classes import MIN_ITEMS, MOST
from nsft_exp.report.results import AnswerClass, ClassTable, Results
from nsft_exp.report.table import Grid, comparison_grid, markdown


def heading(table: ClassTable, results: Results) -> str:
    """Return `In-domain, vqa: the 10 worst and 10 best classes of base`."""
    name = wording.arm_name(table.base, results.arms)
    return f"In-domain, {table.benchmark}: the {table.number} worst and {table.number} best classes of {name}"


def explanation(table: ClassTable) -> str:
    """Say what a class is, how many there are, and how they were chosen."""
    few = f", so half of them a side instead of {MOST}" if table.number < MOST else ""
    return (
        f"A class is a question type with one answer. {table.eligible} have {MIN_ITEMS} items or more{few}; "
        f"{table.left_out} have fewer and are left out. The base VLM's answers about one half of the images "
        "choose the classes that are scored on the other half, and the other way round: chosen and scored on "
        "the same answers, the worst would rise and the best fall by chance alone. A number is the mean over "
        "its classes."
    )


def listed(classes: tuple[AnswerClass, ...]) -> str:
    """Return the classes with the base VLM's accuracy and the number of items."""
    parts = []
    for c in classes:
        where = "" if c.halves == 2 else ", chosen by one half"
        parts.append(f"{c.name} ({wording.number(c.accuracy, 'percent')} % of {c.items}{where})")
    return "; ".join(parts)


def mean_grid(table: ClassTable, results: Results) -> Grid:
    """Return the means: an arm a row, the worst and the best classes as columns."""
    rows = [
        [
            wording.arm_name(arm, results.arms),
            *(wording.mean_sd(means[c.metric], c.scale) for c in table.columns),
        ]
        for arm, means in table.means.items()
    ]
    header = [wording.title(c) for c in table.columns]
    return Grid("method", [("", len(header))], header, rows)


def to_markdown(results: Results) -> str:
    """Return a section for each table; empty without any."""
    parts = []
    for table in results.classes:
        parts += [f"## {heading(table, results)}", explanation(table), markdown(mean_grid(table, results))]
        parts += [
            "\n".join(
                f"- {c.title}, the base's accuracy: {listed(table.chosen[c.metric])}" for c in table.columns
            )
        ]
        for against in table.tables:
            parts += [f"Against {against.against} ({against.num_tests} tests):"]
            parts += [markdown(comparison_grid(results, against, table.columns))]
    return "".join(f"\n{part}\n" for part in parts)


def to_files(results: Results) -> dict[str, str]:
    """Return `classes.csv`, every arm's means; no file without tables."""
    if not results.classes:
        return {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["method", "source", "size", "vlm", "benchmark", "metric", "classes", "mean", "sd", "values"]
    writer.writerow(head)
    for table in results.classes:
        for arm, means in table.means.items():
            where = [arm.label, arm.source, "" if arm.size is None else arm.size, arm.vlm, table.benchmark]
            for column in table.columns:
                m = means[column.metric]
                values = (m.value, "" if m.sd is None else m.sd) if m else ("", "")
                each = " ".join(f"{v:.6g}" for v in m.per_seed) if m else ""
                writer.writerow([*where, column.metric, table.number, *values, each])
    return {"classes.csv": text.getvalue()}
