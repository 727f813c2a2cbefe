"""What `nsft check source=...` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nsft_exp.check.tokens import WIDTH

if TYPE_CHECKING:
    from nsft_exp.check.source import Findings
    from nsft_exp.check.tokens import Lengths

BAR = 40
"""Characters of the longest bar."""


def show(found: Findings, config: dict[str, Any]) -> None:
    """Print every finding: damage in full, one line each, then a table, a histogram and a verdict."""
    console = Console(highlight=False, soft_wrap=True)
    for problem in found.problems:
        console.print(f"[red]broken record[/] {escape(problem)}")
    for image in found.bad_images:
        more = f" and {len(image.ids) - 1} more" if len(image.ids) > 1 else ""
        console.print(f"[red]bad image[/] {escape(image.reason)} (record {escape(image.ids[0])}{more})")
    console.print(_table(found))
    if found.lengths and found.samples:
        _histogram(console, found.lengths)
    for name, reason in found.not_compared.items():
        console.print(f"[yellow]not compared[/] with {name}: {escape(reason)}")
    if found.lengths_missing:
        console.print(f"[yellow]lengths not known[/]: {escape(found.lengths_missing)}")
    console.print(_verdict(found, config))


def _table(found: Findings) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_row("samples drawn", f"{found.samples:,}")
    for what, count in found.counts.items():
        table.add_row(f"in the file: {what}", f"{count:,}")
    table.add_row("broken records", f"{len(found.problems):,}")
    table.add_row("images", f"{found.images:,}")
    table.add_row("bad images", f"{len(found.bad_images):,}")
    for what, count in found.duplicates.items():
        table.add_row(f"repeated {what}", f"{count:,}")
    if found.lengths:
        _add_lengths(table, found.lengths, found.samples)
    for name, how in found.shared.items():
        listed = ", ".join(f"{count:,} by {kind}" for kind, count in how.items())
        table.add_row(f"images that {name} has too", f"{listed} (samples)" if listed else "0")
    return table


def _add_lengths(table: Table, lengths: Lengths, samples: int) -> None:
    counted = sum(lengths.histogram.values())
    table.add_row("tokens a sample, mean", f"{lengths.total / counted:.0f}" if counted else "-")
    table.add_row("longest sample", f"{lengths.longest:,} tokens ({escape(lengths.longest_id)})")
    limit = f"recipe.max_length={lengths.max_length}"
    table.add_row(f"cut at {limit}", f"{len(lengths.trimmed):,}{_first(lengths.trimmed)}")
    table.add_row(f"dropped at {limit}", f"{len(lengths.dropped):,}{_first(lengths.dropped)}")


def _first(ids: list[str], count: int = 5) -> str:
    more = ", ..." if len(ids) > count else ""
    return f" ({escape(', '.join(ids[:count]))}{more})" if ids else ""


def _histogram(console: Console, lengths: Lengths) -> None:
    most = max(lengths.histogram.values(), default=0)
    if not most:
        return
    console.print("tokens a sample")
    for start in range(min(lengths.histogram), max(lengths.histogram) + WIDTH, WIDTH):
        count = lengths.histogram.get(start, 0)
        bar = "█" * round(BAR * count / most) or ("▏" if count else "")
        console.print(f"  {start:>5}-{start + WIDTH - 1:<5} {count:>8,} {bar}")


def _verdict(found: Findings, config: dict[str, Any]) -> str:
    if not found.damaged:
        return "[green]nothing is damaged[/]"
    return (
        f"[red]damaged[/]: {len(found.problems)} broken records, {len(found.bad_images)} bad images; "
        "mend them (source.broken=drop leaves out records that are not in the format)"
    )
