"""Pictures on disk: PNG files written completely or not at all, and any picture read as it is shown."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from worldsim.errors import WorldError
from worldsim.storage.decoding import open_stream, reason_of, shown_turn
from worldsim.storage.files import writing

MAX_FILE_BYTES = 2**28
MAX_PIXELS = 10**8
KIND = "picture that can be read"
JPEG = ("jpeg_pipe", "mjpeg")
"""A photo may have others behind it: smaller ones, or what makes it brighter on some screens."""


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
    with writing(path) as part:
        part.write_bytes(data)


def fit_picture(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return `[H, W, 3]` uint8 as `[height, width, 3]` uint8, undistorted: the middle of the picture."""
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
    """Read a picture, upright, as `[H, W, 3]` uint8.

    Raises:
        FileNotFoundError: If there is none.
        WorldError: If it cannot be decoded, is too large, or is more than one opaque picture: an animation,
            or one of tiles.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise WorldError(f"{path} is not a {KIND}: it is larger than {MAX_FILE_BYTES:,} bytes")
    try:
        with open_stream(path, BytesIO(data), KIND, MAX_PIXELS) as (container, stream):
            frames = container.decode(stream)
            frame = next(frames)
            has_others = container.format.name not in JPEG and next(frames, None) is not None
            if has_others or len(container.streams.video) > 1:
                raise WorldError(f"{path} is an animation or has several parts: save one picture as PNG")
            return np.ascontiguousarray(shown_turn(frame, path).apply(frame.to_ndarray(format="rgb24")))
    except WorldError:
        raise
    except (FFmpegError, StopIteration, ValueError) as error:
        reason = f"it is damaged or has more than {MAX_PIXELS:,} pixels ({reason_of(error)})"
        raise WorldError(f"{path} is not a {KIND}: {reason}") from error
