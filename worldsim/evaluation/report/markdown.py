"""Numbers as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def estimate(value: Mapping[str, Any]) -> str:
    """Return a mean with its interval; the median, where it is known, after a slash."""
    mean = f"{value['mean']:.2f}"
    if value.get("median") is not None:
        mean += f" / {value['median']:.2f}"
    if value["low"] is None:
        return mean
    return f"{mean} ({value['low']:.2f} to {value['high']:.2f})"


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first column is text, the others are numbers."""
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: 1 step, 4 steps."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
