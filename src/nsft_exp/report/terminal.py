"""The main table on a terminal: an arm a line, its columns in as many blocks as the width asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import wrap
from typing import Any

from rich.console import Console, ConsoleOptions, Group
from rich.text import Text

from nsft_exp.report import wording
from nsft_exp.report.results import GROUPS, Column, Results

GAP = 2
"""Spaces between columns."""
NAME = 32
"""Characters of an arm's name above which it goes on in a second line."""
TRAINING = "Training"


@dataclass(frozen=True)
class Strip:
    """One column: the kind of test that it belongs to, its title, and a word for every arm."""

    group: str
    title: str
    words: list[str]

    @property
    def width(self) -> int:
        """Characters that it takes: no word of it is cut."""
        return max(map(len, [*self.group.split(), *self.title.split(" "), *self.words]))


class Blocks:
    """Strips side by side, each block with the arms' names before it, for any width of the console."""

    def __init__(self, names: Sequence[str], strips: Sequence[Strip]) -> None:
        self.names = [_wrapped(name, NAME, "  ") for name in names]
        self.left = max((len(line) for lines in self.names for line in lines), default=0)
        self.strips = strips

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yield the lines."""
        for block in self.packed(options.max_width):
            yield from self._lines(block)
            yield Text()

    def packed(self, width: int) -> list[list[Strip]]:
        """Return the strips in blocks that fit the width, in order; each has one strip at least."""
        blocks: list[list[Strip]] = []
        room = 0
        for strip in self.strips:
            if strip.width + GAP > room:
                blocks.append([])
                room = width - self.left
            blocks[-1].append(strip)
            room -= strip.width + GAP
        return blocks

    def _lines(self, block: list[Strip]) -> Iterator[Text]:
        widths = [strip.width for strip in block]
        groups = [(name, [s.width for s in some]) for name, some in groupby(block, lambda s: s.group)]
        spans = [sum(some) + GAP * (len(some) - 1) for _, some in groups]
        for row in _stacked([name for name, _ in groups], spans):
            yield Text(self._line("", row, spans, left=True), style="bold")
        for row in _stacked([strip.title for strip in block], widths):
            yield Text(self._line("", row, widths))
        yield Text("─" * (self.left + sum(widths) + GAP * len(widths)))
        for number, (first, *rest) in enumerate(self.names):
            yield Text(self._line(first, [strip.words[number] for strip in block], widths))
            yield from map(Text, rest)

    def _line(self, name: str, words: Sequence[str], widths: Sequence[int], left: bool = False) -> str:
        cells = [f"{word:{'<' if left else '>'}{width}}" for word, width in zip(words, widths, strict=True)]
        return (" " * GAP).join([f"{name:<{self.left}}", *cells]).rstrip()


def to_terminal(results: Results) -> Group:
    """Return the main table, an arm a line, the seeds and the failed cells for a rich console."""
    heading = str(results.study.get("title") or results.study.get("name") or "")
    names = [wording.arm_name(arm, results.arms) for arm in results.arms]
    parts: list[Blocks | Text] = [Text(heading, style="bold"), Blocks(names, strips(results))]
    parts.append(Text(wording.seeds_moved(results), style="dim"))
    for cell in results.failed:
        parts.append(Text(f"failed: {cell.name}: {cell.error} (log: {cell.log})", style="red"))
    return Group(*parts)


def strips(results: Results) -> list[Strip]:
    """Return the table's columns: every metric that is shown, then what went into the training."""
    found = [
        Strip(
            GROUPS[c.group],
            _title(c),
            [wording.mean_sd(arm.mean(c.key), c.scale).replace(" ", "") for arm in results.arms],
        )
        for c in results.shown
    ]
    found.append(Strip(TRAINING, "pairs", [wording.pair_yield(arm) for arm in results.arms]))
    for title, keys in (
        ("trained on", ("examples", "samples")),
        ("steps", ("steps",)),
        ("supervised tokens", ("supervised_tokens",)),
    ):
        means = [next((m for key in keys if (m := arm.number(key))), None) for arm in results.arms]
        found.append(Strip(TRAINING, title, [wording.quantity(m.value if m else None) for m in means]))
    return found


def readings_to_terminal(summary: dict[str, Any]) -> Group:
    """Return one line a comparison from `wording.summary`."""
    lines = []
    for row in summary["readings"]:
        if row["against"] != "base":
            line = Text(f"{row['method']} against {row['against']}: ")
            lines.append(line.append(row["reading"], style="dim"))
    return Group(*lines)


def _title(column: Column) -> str:
    """The title, its arrow on one line with its last word."""
    arrow = wording.ARROWS[column.better]
    return f"{column.title}\u00a0{arrow}" if arrow else column.title


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """The text in lines of about so many characters, broken at spaces alone; all but the first indented."""
    return wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]


def _stacked(texts: Sequence[str], widths: Sequence[int]) -> list[list[str]]:
    """Texts over columns as rows of lines, their last lines in one row."""
    wrapped = [_wrapped(text, width) for text, width in zip(texts, widths, strict=True)]
    height = max(map(len, wrapped))
    return [list(row) for row in zip(*([""] * (height - len(w)) + w for w in wrapped), strict=True)]
