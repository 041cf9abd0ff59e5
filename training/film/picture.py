"""Moving pictures: frames of several worlds side by side, as a WebP file."""

# H W frame size, N worlds

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

GAP, GAP_COLOUR = 8, 24
MAX_SIDE = 16_383
"""Pixels of a side of a WebP file."""


def tile(frames: tuple[np.ndarray, ...], columns: int, scale: int) -> np.ndarray:
    """Return frames `[H, W, 3]` of N worlds side by side in rows, each in the middle of an equal place."""
    large = [frame.repeat(scale, axis=0).repeat(scale, axis=1) for frame in frames]
    height, width = (max(frame.shape[axis] for frame in large) for axis in (0, 1))
    columns = min(columns, len(large))
    rows = math.ceil(len(large) / columns)
    size = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    picture = np.full(size, GAP_COLOUR, np.uint8)
    for number, frame in enumerate(large):
        top = number // columns * (height + GAP) + (height - frame.shape[0]) // 2
        left = number % columns * (width + GAP) + (width - frame.shape[1]) // 2
        picture[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return picture


def write_webp(path: Path, pictures: list[np.ndarray], frame_rate: float, quality: int) -> None:
    """Write pictures `[H, W, 3]` uint8 as a moving picture that begins again at its end.

    Raises:
        OSError: If it cannot be written.
    """
    rate = Fraction(frame_rate).limit_denominator(1001)
    with av.open(f"file:{path}", "w", format="webp", options={"loop": "0"}) as container:
        stream = container.add_stream("libwebp_anim", rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"quality": str(quality), "compression_level": "6"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
