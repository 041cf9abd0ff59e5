"""Frames of one size: letterboxed, cropped or stretched to what a video and a codec take."""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

FITS = ("letterbox", "crop", "stretch")
FLAGS = Interpolation.AREA | Interpolation.ACCURATE_RND
ENLARGE_FLAGS = Interpolation.BICUBIC | Interpolation.ACCURATE_RND


@dataclass(frozen=True, slots=True)
class Size:
    """How frames become those of a recording.

    Attributes:
        height: Of these, even.
        width: Of these, even.
        fit: `letterbox` keeps the whole picture, with black bars; `crop` fills the frame and cuts off what
            does not fit; `stretch` distorts.
    """

    height: int
    width: int
    fit: str


def choose_size(frame: np.ndarray, height: int | None, width: int | None, fit: str) -> Size:
    """Return the size of a recording: the frame's own, or what is asked for, the other side in proportion.

    Sides are rounded up to even numbers, which video needs.
    """
    rows, columns = frame.shape[:2]
    if height is None and width is None:
        height, width = rows, columns
    elif height is None:
        height = max(2, round(rows * (width or columns) / columns))
    elif width is None:
        width = max(2, round(columns * height / rows))
    assert height is not None and width is not None
    return Size(height + height % 2, width + width % 2, fit)


def fit_frame(frame: np.ndarray, size: Size, reformatter: VideoReformatter) -> np.ndarray:
    """Return a frame `[H, W, 3]` uint8 as one of a size; one that has it stays as it is."""
    rows, columns = frame.shape[:2]
    height, width = size.height, size.width
    if (rows, columns) == (height, width):
        return frame
    if height - rows in (0, 1) and width - columns in (0, 1):  # only made even: not a pixel is resampled
        return np.pad(frame, ((0, height - rows), (0, width - columns), (0, 0)), mode="edge")
    scales = height / rows, width / columns
    if size.fit == "stretch":
        return scaled(frame, height, width, reformatter)
    scale = min(scales) if size.fit == "letterbox" else max(scales)
    inner_rows, inner_columns = (max(1, round(side * scale)) for side in (rows, columns))
    if size.fit == "letterbox":
        inner = scaled(frame, min(inner_rows, height), min(inner_columns, width), reformatter)
        top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
        fitted = np.zeros((height, width, 3), np.uint8)
        fitted[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        return fitted
    keep_rows, keep_columns = min(rows, round(height / scale)), min(columns, round(width / scale))
    top, left = (rows - keep_rows) // 2, (columns - keep_columns) // 2
    return scaled(frame[top : top + keep_rows, left : left + keep_columns], height, width, reformatter)


def scaled(frame: np.ndarray, height: int, width: int, reformatter: VideoReformatter) -> np.ndarray:
    """Return a frame scaled to a size: by areas where it gets smaller, bicubic where larger."""
    if frame.shape[:2] == (height, width):
        return frame
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    is_smaller = height <= frame.shape[0] and width <= frame.shape[1]
    flags = FLAGS if is_smaller else ENLARGE_FLAGS
    return reformatter.reformat(
        picture, width, height, format="rgb24", interpolation=flags, threads=1
    ).to_ndarray()
