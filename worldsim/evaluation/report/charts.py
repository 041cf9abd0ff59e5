"""Plots of lines, as SVG for a page and as PNG files."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from worldsim.storage.files import writing

COLOURS = ("#1f5fa8", "#c8501e", "#2d8a4e", "#8551a8", "#b08a00", "#008a9a", "#b03060", "#606060")
REFERENCE_COLOUR = "#8a8a8a"
NEAREST_TICKS = 1.3
"""Factor between two places that both get a tick."""
DASHES = ("--", ":", "-.")
LEGEND_COLUMNS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a plot, by its name in the legend.

    Attributes:
        y: Values; None leaves a gap.
        low: Lower ends of the intervals, if there are any.
        is_reference: Whether it is what the others are compared with: grey and dashed.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    is_reference: bool = False


def line_of(name: str, estimates: Mapping[str, Mapping[str, Any]], *, is_reference: bool = False) -> Line:
    """Return a line through estimates by their place on the axis."""
    return Line(
        name=name,
        x=[float(place) for place in estimates],
        y=[estimate["mean"] for estimate in estimates.values()],
        low=[estimate["low"] for estimate in estimates.values()],
        high=[estimate["high"] for estimate in estimates.values()],
        is_reference=is_reference,
    )


def curve_of(name: str, values: Sequence[float | None], *, is_reference: bool = False) -> Line:
    """Return a line through the values at the frames 1, 2, 3 and so on."""
    return Line(name=name, x=range(1, len(values) + 1), y=values, is_reference=is_reference)


def plot_lines(lines: Sequence[Line], labels: tuple[str, str], *, is_log: bool = False) -> str:
    """Return a plot of lines, with bars as intervals, as an `<svg>` element; labels are of the two axes.

    With `is_log` equal distances on the first axis are factors, and its ticks the places of the lines.
    """
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "plot", "font.family": "sans-serif"}):
        figure = _draw_figure(lines, labels, is_log)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def write_plot(path: Path, lines: Sequence[Line], labels: tuple[str, str], *, is_log: bool = False) -> None:
    """Write the same plot as a PNG file."""
    with writing(path) as part:
        _draw_figure(lines, labels, is_log).savefig(part, format="png", dpi=120)


def _draw_figure(lines: Sequence[Line], labels: tuple[str, str], is_log: bool) -> Figure:
    rows = math.ceil(len(lines) / LEGEND_COLUMNS)
    figure = Figure(figsize=(7, 4 + 0.2 * rows), layout="constrained")  # pyplot would choose a window system
    axes = figure.add_subplot()
    num_references = 0
    for index, line in enumerate(lines):
        style: dict[str, Any] = {"color": COLOURS[(index - num_references) % len(COLOURS)]}
        if line.is_reference:
            style = {"color": REFERENCE_COLOUR, "linestyle": DASHES[num_references % len(DASHES)]}
            num_references += 1
        _draw(axes, line, style)
    if is_log:
        _use_places_as_ticks(axes, lines)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    # Inside it would cover curves.
    figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize="small", frameon=False)
    return figure


def _draw(axes: Any, line: Line, style: Mapping[str, Any]) -> None:
    y = np.array(line.y, dtype=float)  # None becomes NaN
    few = len(y) <= 12 and not line.is_reference
    axes.plot(line.x, y, label=line.name, marker="o" if few else None, markersize=3.5, linewidth=1.5, **style)
    if line.low is not None and line.high is not None and not line.is_reference:
        low, high = np.array([line.low, line.high], dtype=float)
        axes.vlines(line.x, low, high, color=style["color"], alpha=0.6, linewidth=2)


def _use_places_as_ticks(axes: Any, lines: Sequence[Line]) -> None:
    places: list[float] = []
    for place in sorted({place for line in lines for place in line.x if place > 0}):
        if not places or place >= NEAREST_TICKS * places[-1]:
            places.append(place)
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{place:,.0f}" for place in places])
    axes.minorticks_off()
