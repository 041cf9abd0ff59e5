"""HTML page of a check of gameplay video: findings, how often buttons are held, and pictures, in one file."""

# N frames of a strip, H W their size

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.evaluation.report.charts import Line, plot_lines
from worldsim.evaluation.report.text import render
from worldsim.storage.files import write_text
from worldsim.storage.images import encode_png

TEMPLATE = "recordings.html.j2"
GAP = 2
"""Pixels between pictures."""

Strip = tuple[str, np.ndarray]
"""Name of an episode, and frames of it, `[N, H, W, 3]` uint8."""


def write_recordings_page(
    path: Path, data: Mapping[str, Any], films: Sequence[Sequence[Strip]], samples: Sequence[Strip]
) -> None:
    """Write the page of a check, completely or not at all.

    Args:
        path: The file.
        data: What `check.json` holds.
        films: Pictures of each finding.
        samples: Pictures of other episodes.
    """
    lengths = [count for episodes in data["frames"].values() for count in episodes.values()]
    values = {
        "report": data,
        "films": [[(name, embedded(frames)) for name, frames in strips] for strips in films],
        "samples": [(name, embedded(frames)) for name, frames in samples],
        "plots": [
            plot for plot in (_length_plot(lengths), _shift_plot(data["explained_by_actions"])) if plot
        ],
    }
    write_text(path, render(TEMPLATE, values))


def embedded(frames: np.ndarray) -> str:
    """Return frames side by side as a PNG file in base64."""
    padded = np.pad(frames, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return base64.b64encode(encode_png(np.concatenate(list(padded), axis=1))).decode()


def _length_plot(lengths: Sequence[int]) -> str:
    """Plot the lengths of episodes, from the shortest to the longest."""
    line = Line(name="episodes by length", x=range(1, len(lengths) + 1), y=sorted(lengths))
    return plot_lines([line], ("episode", "frames")) if lengths else ""


def _shift_plot(shares: Mapping[str, float]) -> str:
    """Plot how much actions explain if they are told earlier or later."""
    line = Line(name="explained by the actions", x=[int(shift) for shift in shares], y=[*shares.values()])
    return plot_lines([line], ("shift of the actions, frames", "share of the changes")) if shares else ""
