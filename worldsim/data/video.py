"""Read and write mp4 files frame by frame.

Frames are `[height, width, 3]` uint8 RGB. Files are H.264 in yuv420p, which every player shows; lossless ones
are in yuv444p, because yuv420p halves the resolution of colours. The colour conversion rounds properly: the
default one darkens each frame a little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from worldsim.errors import WorldError
from worldsim.runtime.interrupt import defer_interrupt
from worldsim.storage.images import (
    ByteSource,
    Turn,
    check_square,
    check_uncropped,
    open_stream,
    reason_of,
    shown_turn,
)

ENCODE_FLAGS = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
DECODE_FLAGS = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
RESIZE_FLAGS = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
QUALITY = "14"
"""Of x264, 0 (lossless) to 51: this cannot be told from the original by eye."""
PRESET, BATCH_PRESET = "veryfast", "ultrafast"
"""Of x264, of frames that are encoded one by one or in batches, in a quarter to a half of the time: the same
quality, in files of 1.2 to 2.2 times the size."""
MAX_PIXELS = 2**25
"""Of a frame: 8K. A decoder may have to keep 16 of them."""
MAX_RATE_ERROR, MAX_UNEVEN = 0.02, 0.01
"""Of the frame rate, and of the intervals between frames."""
MAX_VIDEO_BYTES = 32 * 2**30
"""Of a decoded video: two and a half hours of 160 x 120 at 60 frames a second."""
BATCH_BYTES = 2**21
"""Of frames that are encoded at once, where they are: some dozens of small ones."""


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """Write frames to an mp4 file; the file is playable once `close` has run.

    Args:
        path: File to write; its suffix does not matter.
        height: Frame height in pixels, even.
        width: Frame width in pixels, even.
        lossless: Keep every pixel but for the rounding of the colour conversion. Some players show no such
            files, FFmpeg's and VLC do.
        in_batches: Encode `BATCH_BYTES` of frames at once, with `BATCH_PRESET`: less time in all, where a
            game's own pictures have taken the processor's caches between two frames; but then much of it at
            one frame.

    Raises:
        WorldError: If the size is odd.
        OSError: If the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        height: int,
        width: int,
        frame_rate: float,
        lossless: bool = False,
        in_batches: bool = False,
    ) -> None:
        if height % 2 or width % 2:
            raise WorldError(f"mp4 video needs an even height and width, got {height} x {width} for {path}")
        self._num_encoded = 0
        self._shape = (height, width, 3)
        self._batch: list[np.ndarray] = []
        # Of games in which little moves, many frames are as the one before: these are converted once.
        self._last: np.ndarray | None = None
        self._converted: np.ndarray | None = None
        self._picture: av.VideoFrame | None = None
        self._batch_frames = max(1, BATCH_BYTES // (3 * height * width)) if in_batches else 1
        self._path = path
        rate = Fraction(frame_rate).limit_denominator(1001)
        self._time_base = 1 / rate
        with self._os_errors():
            # A path is a path: of `12:30.mp4` alone FFmpeg would take the 12 for a protocol.
            self._container = av.open(f"file:{path}", "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = self._pix_fmt = "yuv444p" if lossless else "yuv420p"
        # x264 reads memory that it has not written when it weighs blocks by their future (mbtree) across
        # B-frames: the same frames then give other bytes each time.
        crf = "0" if lossless else QUALITY
        preset = BATCH_PRESET if in_batches else PRESET
        self._stream.options = {"crf": crf, "preset": preset, "mbtree": "0"}
        # One thread: the bytes do not depend on the machine, and recorders run one process per core.
        self._stream.codec_context.thread_count = 1
        self._reformatter = VideoReformatter()

    @property
    def num_frames(self) -> int:
        """Frames written so far, those included that wait to be encoded."""
        return self._num_encoded + len(self._batch)

    def write(self, frame: np.ndarray) -> None:
        """Append one frame, `[height, width, 3]` uint8; a request to stop leaves all of it or nothing."""
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise WorldError(
                f"{self._path} takes uint8 frames of shape {self._shape}, got {frame.dtype} {frame.shape}"
            )
        if self._last is None or not np.array_equal(frame, self._last):
            self._last = frame.copy()  # which the caller does not write over
        self._batch.append(self._last)
        if len(self._batch) >= self._batch_frames:
            # Whoever is at the keys waits for the frame to end in any case, and nobody does for a batch.
            with defer_interrupt(only_raised=True):
                self._encode()

    def _encode(self) -> None:
        with self._os_errors():
            while self._batch:
                frame = self._batch[0]
                if frame is not self._converted or self._picture is None:
                    # `from_ndarray` copies row by row.
                    rgb = av.VideoFrame.from_numpy_buffer(frame, format="rgb24")
                    self._converted, self._picture = (
                        frame,
                        self._reformatter.reformat(
                            rgb, format=self._pix_fmt, interpolation=ENCODE_FLAGS, threads=1
                        ),
                    )
                self._picture.pts, self._picture.time_base = self._num_encoded, self._time_base
                # What waits is counted as well: after an error there are as many frames as before it.
                del self._batch[0]
                self._num_encoded += 1
                if packets := self._stream.encode(self._picture):
                    self._container.mux(packets)

    def close(self) -> None:
        """Write what is still in the encoder and the file's index."""
        with self._os_errors():
            try:
                self._encode()
                if self.num_frames:
                    for packet in self._stream.encode(None):
                        self._container.mux(packet)
            finally:
                self._container.close()

    @contextmanager
    def _os_errors(self) -> Iterator[None]:
        """Turn FFmpeg's errors while writing, a full disk above all, into Python's."""
        try:
            yield
        except FFmpegError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoDescription:
    """What is known of a video before it is decoded.

    Attributes:
        num_frames: How many are shown, by the file's index.
        height: Of a frame as it is shown, in pixels; 0 without frames.
        width: Of a frame as it is shown, in pixels; 0 without frames.
        intervals: float64, seconds between frames; empty where the file does not say.
    """

    num_frames: int
    height: int
    width: int
    intervals: np.ndarray

    def differs_from(self, frame_rate: float) -> str | None:
        """Return in words how many frames a second there are; None if they are `frame_rate`, evenly spaced.

        Times rounded to milliseconds are let pass, and so is a frame that a recorder skipped now and then.
        """
        if not len(self.intervals):
            return None
        mean = max(float(self.intervals.mean()), 1e-9)
        num_uneven = int((np.abs(self.intervals / mean - 1) > 0.5).sum())
        is_even = num_uneven <= max(2, MAX_UNEVEN * len(self.intervals))
        rounding = 0.002 / len(self.intervals)
        if is_even and abs(mean - 1 / frame_rate) <= MAX_RATE_ERROR / frame_rate + rounding:
            return None
        return f"{1 / mean:.4g}" if is_even else f"{1 / mean:.4g} unevenly spaced"


def describe_video(path: Path) -> VideoDescription:
    """Read a video's index and decode its first frame.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: If it is no readable video, or it is shown otherwise than it can be read.
    """
    with _open(path) as (container, video):
        first = next(_decode(container, video, path), None)
        height, width = (0, 0) if first is None else first[1].size(first[0].height, first[0].width)
        index = _read_index(container, video)
    num_frames, times = index or _read_packets(path)
    intervals = np.diff(np.sort(times[np.isfinite(times)]))
    return VideoDescription(num_frames=num_frames, height=height, width=width, intervals=intervals)


def count_decoded_frames(path: Path) -> int:
    """Return how many frames a video has; all are decoded, as not all that an index lists need be shown.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: As from `read_video`.
    """
    with _open(path) as (container, video):
        return sum(1 for _ in _decode(container, video, path))


def read_video(
    path: Path, *, size: tuple[int, int] | None = None, described: VideoDescription | None = None
) -> np.ndarray:
    """Decode a whole video, turned and without the frames that an edit list cuts off, as players show it.

    Damage inside a picture is noticed where it breaks the rules of the format. Bytes that still decode, only
    to another picture, pass: a video carries no checksums.

    Args:
        size: Scale every frame to this (height, width); None keeps the size of the video.
        described: What `describe_video` says of it, if that is known.

    Returns:
        Frames, `[T, height, width, 3]` uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: If it is no readable video, the decoder finds a damaged frame, it is shown otherwise than
            it can be read, or it is larger than `MAX_VIDEO_BYTES`.
    """
    described = described or describe_video(path)
    height, width = size or (described.height, described.width)
    frames = _room(path, described.num_frames, height, width)
    reformatter = VideoReformatter()
    count = 0
    with _open(path) as (container, video):
        for picture, turn in _decode(container, video, path):
            if count == len(frames):  # the index promised fewer frames, or nothing
                frames = np.concatenate([frames, _room(path, count + count // 4 + 64, height, width)[count:]])
            frames[count] = _to_rgb(reformatter, picture, turn, (height, width), path)
            count += 1
    return frames[:count]


def stream_video(
    path: Path,
    *,
    begin: float | None = None,
    resize: Callable[[int, int], tuple[int, int]] = lambda height, width: (height, width),
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the frames of a video one at a time, however long it is, turned as players show them.

    Args:
        begin: Time in seconds before which frames are left out; None begins with the first.
        resize: Of the height and width of a frame as it is shown, those to scale it to.

    Yields:
        The time at which a frame is shown in seconds, NaN where the file does not say, and the frame,
        `[height, width, 3]` uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: As from `read_video`, or if a frame is shown before one that comes earlier.
    """
    reformatter, last = VideoReformatter(), -math.inf
    with _open(path) as (container, video):
        if begin is not None and begin > 0 and video.time_base:
            container.seek(int(begin / video.time_base), stream=video)  # to the key frame before it
        for picture, turn in _decode(container, video, path):
            time = math.nan if picture.time is None else float(picture.time)
            if begin is not None and time < begin:
                continue
            if time <= last:
                raise WorldError(f"{path} has a frame at {time:.3f} s after one at {last:.3f} s")
            last = last if math.isnan(time) else time
            size = resize(*turn.size(picture.height, picture.width))
            yield time, np.ascontiguousarray(_to_rgb(reformatter, picture, turn, size, path))


def frame_times(path: Path) -> np.ndarray:
    """Return when the frames of a video are shown, in seconds, ascending, those known; decodes nothing.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: If it is no readable video.
    """
    with _open(path) as (container, video):
        try:
            times = [each.pts for each in container.demux(video) if each.size and not each.is_discard]
        except FFmpegError as error:
            raise WorldError(f"{path} is not a readable video: {error.strerror}") from error
        base = float(video.time_base or 1)
    return np.sort(np.array([time for time in times if time is not None], np.float64)) * base


def _to_rgb(
    reformatter: VideoReformatter, picture: av.VideoFrame, turn: Turn, size: tuple[int, int], path: Path
) -> np.ndarray:
    """Return a decoded frame as it is shown, scaled to `size` (height, width)."""
    rows, columns = turn.size(*size)
    flags = DECODE_FLAGS if (rows, columns) == (picture.height, picture.width) else RESIZE_FLAGS
    try:
        rgb = reformatter.reformat(picture, columns, rows, format="rgb24", interpolation=flags, threads=1)
    except (FFmpegError, ValueError) as error:
        raise WorldError(f"{path} cannot be converted to RGB: {reason_of(error)}") from error
    return turn.apply(rgb.to_ndarray())


def _decode(
    container: InputContainer, video: VideoStream, path: Path
) -> Iterator[tuple[av.VideoFrame, Turn]]:
    """Yield the frames of a video, all of one form, and how they are turned."""
    count, form = 0, None
    try:
        for picture in container.decode(video):
            if picture.is_corrupt:  # FFmpeg patches such a frame with parts of others and goes on
                raise WorldError(f"{path} is damaged in frame {count}")
            turn = shown_turn(picture, path)
            form = form or (picture.height, picture.width, turn)
            if form != (picture.height, picture.width, turn):
                raise WorldError(f"{path} has another size from frame {count} on, or is turned otherwise")
            yield picture, turn
            count += 1
    except FFmpegError as error:
        raise WorldError(f"{path} cannot be decoded after frame {count}: {error.strerror}") from error


def _read_index(container: InputContainer, video: VideoStream) -> tuple[int, np.ndarray] | None:
    """Return the number of frames shown and the times of all, in seconds; None if no index lists them all."""
    if not video.frames or "mp4" not in container.format.name:
        return None
    entries = [(entry.timestamp, entry.is_discard) for entry in video.index_entries]
    # What an edit list cuts off is in the index, too: others are decoded from it, but it is not shown.
    num_shown = sum(not is_discarded for _, is_discarded in entries)
    times = np.array([time for time, _ in entries], np.float64)
    return num_shown, times * float(video.time_base or 1)


def _read_packets(path: Path) -> tuple[int, np.ndarray]:
    """Return the same, from the whole file; decodes nothing."""
    with _open(path) as (container, video):
        try:
            packets = [(each.pts, each.is_discard) for each in container.demux(video) if each.size]
        except FFmpegError as error:
            raise WorldError(f"{path} is not a readable video: {error.strerror}") from error
        times = np.array([np.nan if time is None else time for time, _ in packets], np.float64)
        return sum(not is_discarded for _, is_discarded in packets), times * float(video.time_base or 1)


def _room(path: Path, num_frames: int, height: int, width: int) -> np.ndarray:
    """Return `[num_frames, height, width, 3]` uint8 to be filled, unless that would be too large."""
    needed = num_frames * height * width * 3
    if needed > MAX_VIDEO_BYTES:
        raise WorldError(
            f"{path} is too large to be read at once: {num_frames} frames of {width} x {height} are "
            f"{needed / 2**30:.0f} GiB, at most {MAX_VIDEO_BYTES / 2**30:.0f} are read; cut it into episodes"
        )
    return np.empty((num_frames, height, width, 3), dtype=np.uint8)


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no video {path}")
    with (
        path.open("rb") as file,
        open_stream(path, ByteSource(file), "readable video", MAX_PIXELS) as (container, video),
    ):
        check_square(video.sample_aspect_ratio, path)
        if "mp4" in container.format.name:
            check_uncropped(file, video.codec_context.width, video.codec_context.height, path)
        yield container, video
