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


def scaled_size(rows: int, columns: int, size: Size) -> tuple[int, int]:
    """Return height and width that a frame is scaled to, before bars are added or the rest is cut off.

    Args:
        rows: Height of the frame.
        columns: Width of the frame.
        size: What it is to become.
    """
    if size.height - rows in (0, 1) and size.width - columns in (0, 1):
        return rows, columns  # only made even: not a pixel is resampled
    if size.fit == "stretch":
        return size.height, size.width
    scales = size.height / rows, size.width / columns
    scale = min(scales) if size.fit == "letterbox" else max(scales)
    return max(1, round(rows * scale)), max(1, round(columns * scale))


def shrunk_size(rows: int, columns: int, size: Size) -> tuple[int, int]:
    """Return the same where it is smaller, the frame's own size otherwise."""
    height, width = scaled_size(rows, columns, size)
    return (height, width) if height <= rows and width <= columns else (rows, columns)


def fit_frame(frame: np.ndarray, size: Size, reformatter: VideoReformatter) -> np.ndarray:
    """Return a frame `[H, W, 3]` uint8 as one of a size; one that has it stays as it is."""
    height, width = scaled_size(frame.shape[0], frame.shape[1], size)
    inner = scaled(frame, height, width, reformatter)
    rows, columns = inner.shape[:2]
    top, left = max(0, rows - size.height) // 2, max(0, columns - size.width) // 2
    inner = inner[top : top + size.height, left : left + size.width]
    missing = size.height - inner.shape[0], size.width - inner.shape[1]
    if not any(missing):
        return np.ascontiguousarray(inner)
    if max(missing) <= 1:
        even = np.empty(
            (size.height, size.width, inner.shape[2]), inner.dtype
        )  # np.pad takes ten times as long
        even[:rows, :columns] = inner
        even[rows:], even[:, columns:] = even[rows - 1], even[:, columns - 1 : columns]
        return even
    return np.pad(inner, [(each // 2, each - each // 2) for each in missing] + [(0, 0)])


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
