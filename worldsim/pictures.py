"""Pictures on disk: PNG files, written completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from worldsim.errors import WorldError


def write_png(frame: np.ndarray, path: Path) -> None:
    """Write `[H, W, 3]` uint8 as a PNG file; one that is there is replaced.

    Raises:
        OSError: If it cannot be written.
    """
    height, width, _ = frame.shape
    encoder = av.VideoCodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "rgb24"
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    data = b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def fit_picture(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a picture at another size, undistorted: its middle.

    Args:
        picture: `[H, W, 3]` uint8.
        height: Of the result.
        width: Of the result.

    Returns:
        `[height, width, 3]` uint8.
    """
    rows, columns = picture.shape[:2]
    scale = max(height / rows, width / columns)
    keep_rows, keep_columns = (
        max(1, min(s, round(n / scale))) for s, n in ((rows, height), (columns, width))
    )
    top, left = (rows - keep_rows) // 2, (columns - keep_columns) // 2
    middle = np.ascontiguousarray(picture[top : top + keep_rows, left : left + keep_columns])
    video = av.VideoFrame.from_ndarray(middle, format="rgb24")
    scaled = video.reformat(width=width, height=height, interpolation="AREA" if scale < 1 else "BICUBIC")
    return scaled.to_ndarray(format="rgb24")


def read_picture(path: Path) -> np.ndarray:
    """Read a picture as `[H, W, 3]` uint8.

    Raises:
        FileNotFoundError: If there is none.
        WorldError: If it cannot be decoded.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    try:
        with av.open(str(path)) as container:
            return next(container.decode(video=0)).to_ndarray(format="rgb24")
    except (FFmpegError, StopIteration, IndexError, ValueError) as error:
        raise WorldError(f"{path} is not a picture that can be read: {error}") from error
