"""Films and pictures: decoded to what a viewer of them shows, or refused by name; PNG files written.

What a file says beside its pixels belongs to the picture: how it is turned, how wide a pixel is, what is
transparent. And a file of a few kB may hold pictures that no memory does.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.stream import Disposition
from av.video.stream import VideoStream

from worldsim.errors import WorldError
from worldsim.storage.files import writing

MAX_FILE_BYTES = 2**28
MAX_PIXELS = 10**8
KIND = "picture that can be read"
JPEG = ("jpeg_pipe", "mjpeg")
"""A photo may have others behind it: smaller ones, or what makes it brighter on some screens."""
EXIF = 31
"""FFmpeg's number of a kind of side data that PyAV does not know."""
HDR = {16: "PQ", 18: "HLG"}
"""Transfers of high dynamic range, as H.273 numbers them."""
FLOATS = re.compile(r"f(16|32)(le|be)$")
"""Pixel formats of OpenEXR and Radiance: light as it was, of which a viewer chooses what to show."""
MAX_BOX_BYTES = 2**26
TOLERANCE = 0.01
"""Sizes are rounded to even numbers, so pixels as square as this are meant to be."""


def write_png(frame: np.ndarray, path: Path) -> None:
    """Write `[H, W, 3]` uint8 as a PNG file; one that is there is replaced.

    Raises:
        OSError: If it cannot be written.
    """
    data = encode_png(frame)
    with writing(path) as part:
        part.write_bytes(data)


def encode_png(frame: np.ndarray) -> bytes:
    """Return `[H, W, 3]` uint8 as the bytes of a PNG file."""
    height, width, _ = frame.shape
    encoder = av.VideoCodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "rgb24"
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])


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


class ByteSource:
    """A file without its name, for FFmpeg: it would take `12:30.mp4` for a protocol and a time."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


@contextmanager
def open_stream(
    path: Path, source: Any, kind: str, max_pixels: int
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open what a viewer would show of a file, for decoding in one thread.

    Args:
        source: What it holds: a `ByteSource`, or bytes in memory.
        kind: What it should be, for errors: `readable video`.

    Raises:
        WorldError: If it cannot be read, or its frames are too large.
    """
    # A playlist would have other files opened, or addresses in the network.
    options = {"protocol_whitelist": "none", "max_pixels": str(max_pixels)}
    try:
        container = av.open(source, options=options)
    except (FFmpegError, ValueError) as error:
        raise WorldError(f"{path} is not a {kind}: {reason_of(error)}") from error
    assert isinstance(container, InputContainer)
    with container:
        shown = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
        if not shown:
            raise WorldError(f"{path} holds no {kind}")
        stream = next((each for each in shown if each.disposition & Disposition.default), shown[0])
        if stream.metadata.get("alpha_mode") == "1":  # in a part of WebM that FFmpeg's decoders leave out
            raise WorldError(f"{path} has a layer of transparency: put it on the background it should have")
        codec = stream.codec_context
        if codec is None:
            raise WorldError(f"{path} is not a {kind}: FFmpeg does not know its codec")
        if codec.width * codec.height > max_pixels:
            raise WorldError(
                f"{path} is {codec.width} x {codec.height}, which is more than {max_pixels:,} pixels"
            )
        codec.thread_count = 1
        codec.options = {"max_pixels": str(max_pixels)}
        yield container, stream


def reason_of(error: Exception) -> str:
    """Return what FFmpeg says is wrong."""
    return getattr(error, "strerror", None) or str(error)


@dataclass(frozen=True, slots=True)
class Turn:
    """How decoded frames are turned to be shown.

    Attributes:
        is_transposed: Whether rows become columns, which comes first.
        rows: Step of the rows: -1 is upside down.
        columns: Step of the columns: -1 is mirrored.
    """

    is_transposed: bool = False
    rows: int = 1
    columns: int = 1

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of what is shown, or of what is decoded for something shown."""
        return (width, height) if self.is_transposed else (height, width)

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """Return a decoded frame `[H, W, C]` as it is shown: a view."""
        return (frame.swapaxes(0, 1) if self.is_transposed else frame)[:: self.rows, :: self.columns]


def shown_turn(frame: av.VideoFrame, path: Path) -> Turn:
    """Return how a decoded frame is turned: a phone's video says so beside it, a photo in its EXIF data.

    Raises:
        WorldError: If it is turned by anything but right angles, or 8 bits of red, green and blue are not all
            that is shown of it.
    """
    transfer = "floating point" if FLOATS.search(frame.format.name) else HDR.get(int(frame.color_trc))
    if transfer is not None:
        raise WorldError(f"{path} has a high dynamic range ({transfer}): convert it to the usual one, BT.709")
    if frame.interlaced_frame:
        raise WorldError(f"{path} is interlaced, so each frame shows two moments: deinterlace it")
    has_alpha = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    if has_alpha and frame.to_ndarray(format="rgba")[..., 3].min() < 255:
        raise WorldError(f"{path} is transparent in places: put it on the background it should have")
    try:
        side_data = frame.side_data
    except ValueError:
        side_data = _without_exif(frame).side_data
    matrix = side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Turn()
    # (column, row) is shown at (a column + c row, b column + d row); numbers have 16 bits behind the point.
    (a, b), (c, d) = np.frombuffer(bytes(matrix), np.int32).reshape(3, 3)[:2, :2] / 2**16
    is_transposed = abs(b) > abs(a)
    columns, rows, *others = (c, b, a, d) if is_transposed else (a, d, b, c)
    if max(abs(abs(columns) - 1), abs(abs(rows) - 1), *map(abs, others)) > TOLERANCE:
        raise WorldError(f"{path} is turned by {frame.rotation} degrees: only right angles are read")
    return Turn(is_transposed, int(np.sign(rows)), int(np.sign(columns)))


def check_square(aspect_ratio: Fraction | None, path: Path) -> None:
    """Raise `WorldError` if pixels are not as wide as high."""
    if aspect_ratio and abs(aspect_ratio - 1) > TOLERANCE:
        ratio = f"{aspect_ratio.numerator} to {aspect_ratio.denominator}"
        raise WorldError(f"{path} is shown stretched, its pixels are {ratio}: scale it to square ones")


def check_uncropped(file: BinaryIO, width: int, height: int, path: Path) -> None:
    """Raise `WorldError` if an mp4 file shows only a part of its frames, which PyAV does not tell.

    Args:
        file: The file; its position stays.
    """
    place = file.tell()
    try:
        index = _read_box(file, b"moov")
    finally:
        file.seek(place)
    for found in re.finditer(b"stsd", index):
        (size,) = struct.unpack_from(">I", index, found.start() - 4)
        described = index[found.start() : found.start() - 4 + size]
        aperture = re.search(rb"\0\0\0\x28clap(.{16})", described, re.DOTALL)
        if aperture is not None:
            columns, column_parts, rows, row_parts = struct.unpack(">4I", aperture[1])
            if abs(columns - width * column_parts) + abs(rows - height * row_parts) > 0:
                raise WorldError(f"{path} is shown cropped, but cannot be read so: crop it for good")


def _read_box(file: BinaryIO, kind: bytes) -> bytes:
    """Return the first box of a kind at the top level of an mp4 file; empty without one."""
    file.seek(0)
    while len(head := file.read(8)) == 8:
        size, header = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(file.read(8), "big"), 16
        if head[4:] == kind:
            return file.read(min(size - header, MAX_BOX_BYTES)) if size >= header else b""
        if size < header:  # 0: up to the end of the file
            return b""
        file.seek(size - header, os.SEEK_CUR)
    return b""


def _without_exif(frame: av.VideoFrame) -> av.VideoFrame:
    """Return a frame without the kind of side data that PyAV would refuse to list."""
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
    )
    graph.link_nodes(source, graph.add("sidedata", f"mode=delete:type={EXIF}"), graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    pulled = graph.pull()
    assert isinstance(pulled, av.VideoFrame)
    return pulled
