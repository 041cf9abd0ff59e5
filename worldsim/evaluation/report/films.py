"""Filmstrips: real frames above what each world draws."""

# F frames, H W frame size

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from worldsim.storage.images import write_png

GAP = 2
"""Pixels between pictures."""


def strip(frames: Tensor) -> np.ndarray:
    """Lay frames `[F, H, W, 3]` uint8 side by side with white between them, `[H, width, 3]`."""
    num, height, width, _ = frames.shape
    sheet = np.full((height, num * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, frame in enumerate(frames.numpy()):
        begin = index * (width + GAP)
        sheet[:, begin : begin + width] = frame
    return sheet


def write_strips(folder: Path, gap: int, films: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Write one PNG for each world and episode, the real frames under the empty name.

    Args:
        folder: Where to; created.
        gap: Of the episodes.
        films: `[E, F, H, W, 3]` uint8 by world.

    Returns:
        Names of the files by world, one for each episode.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, list[str]] = {}
    for world, episodes in films.items():
        for index, frames in enumerate(episodes):
            name = f"recall-{gap:03d}-{index}-{file_name(world) if world else 'real'}.png"
            write_png(strip(frames), folder / name)
            names.setdefault(world, []).append(name)
    return names


def file_name(world: str) -> str:
    """Return a world's name as part of a file's name."""
    return "world-" + "".join(c if c.isalnum() or c in "-_." else "-" for c in world)


def missing(folder: Path, names: Sequence[str]) -> bool:
    """Whether one of some files is not there any more."""
    return any(not (folder / name).is_file() for name in names)
