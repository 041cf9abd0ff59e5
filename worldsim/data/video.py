"""Read and write mp4 files frame by frame.

Frames are `[height, width, 3]` uint8 RGB. Files are H.264 in yuv420p, which every player shows; lossless ones
are in yuv444p, because yuv420p halves the resolution of colours. The colour conversion rounds properly: the
default one darkens each frame a little.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter

from worldsim.errors import WorldError

ENCODE_FLAGS = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
DECODE_FLAGS = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
RESIZE_FLAGS = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class VideoWriter:
    """Write frames to an mp4 file; the file is playable once `close` has run.

    Args:
        path: File to write; its suffix does not matter.
        height: Frame height in pixels, even.
        width: Frame width in pixels, even.
        frame_rate: Frames per second.
        crf: x264's constant quality, 0 (lossless) to 51; 14 cannot be told from the original by eye.
        preset: x264's speed preset.
        lossless: Keep every pixel but for the rounding of the colour conversion, whatever `crf` says. Some
            players show no such files, FFmpeg's and VLC do.

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
        crf: int = 14,
        preset: str = "veryfast",
        lossless: bool = False,
    ) -> None:
        if height % 2 or width % 2:
            raise WorldError(f"mp4 video needs an even height and width, got {height} x {width} for {path}")
        self.num_frames = 0
        self._shape = (height, width, 3)
        self._path = path
        rate = Fraction(frame_rate).limit_denominator(1001)
        self._time_base = 1 / rate
        with self._os_errors():
            self._container = av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv444p" if lossless else "yuv420p"
        # x264 reads memory that it has not written when it weighs blocks by their future (mbtree) across
        # B-frames: the same frames then give other bytes each time.
        self._stream.options = {"crf": "0" if lossless else str(crf), "preset": preset, "mbtree": "0"}
        # One thread: the bytes do not depend on the machine, and recorders run one process per core.
        self._stream.codec_context.thread_count = 1
        self._reformatter = VideoReformatter()

    def write(self, frame: np.ndarray) -> None:
        """Append one frame, `[height, width, 3]` uint8."""
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise WorldError(
                f"{self._path} takes uint8 frames of shape {self._shape}, got {frame.dtype} {frame.shape}"
            )
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = self._reformatter.reformat(
            rgb, format=self._stream.pix_fmt, interpolation=ENCODE_FLAGS, threads=1
        )
        picture.pts = self.num_frames
        picture.time_base = self._time_base
        with self._os_errors():
            for packet in self._stream.encode(picture):
                self._container.mux(packet)
        self.num_frames += 1

    def close(self) -> None:
        """Write what is still in the encoder and the file's index."""
        with self._os_errors():
            try:
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

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def count_frames(path: Path) -> int:
    """Return how many frames the file's index promises, without decoding.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: If it is no readable video.
    """
    with _open(path) as container:
        video = container.streams.video[0]
        if video.frames > 0:
            return video.frames
        try:
            return sum(1 for packet in container.demux(video) if packet.size)
        except FFmpegError as error:
            raise WorldError(f"{path} is not a readable video: {error.strerror}") from error


def read_video(path: Path, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode a whole video.

    Damage inside a picture is noticed where it breaks the rules of the format. Bytes that still decode, only
    to another picture, pass: a video carries no checksums.

    Args:
        path: The file.
        size: Scale every frame to this (height, width); None keeps the size of the video.

    Returns:
        Frames, `[T, height, width, 3]` uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: If it is no readable video, or the decoder finds a damaged frame.
    """
    with _open(path) as container:
        video = container.streams.video[0]
        video.codec_context.thread_count = 1
        own_size = (video.codec_context.height, video.codec_context.width)
        height, width = size or own_size
        flags = DECODE_FLAGS if (height, width) == own_size else RESIZE_FLAGS
        reformatter = VideoReformatter()
        frames = np.empty((video.frames, height, width, 3), dtype=np.uint8)
        count = 0
        try:
            for picture in container.decode(video):
                if picture.is_corrupt:  # FFmpeg patches such a frame with parts of others and goes on
                    raise WorldError(f"{path} is damaged in frame {count}")
                rgb = reformatter.reformat(
                    picture, width, height, format="rgb24", interpolation=flags, threads=1
                )
                if count == len(frames):  # the index promised fewer frames, or nothing
                    frames = np.concatenate(
                        [frames, np.empty_like(frames, shape=(count + 64, height, width, 3))]
                    )
                frames[count] = rgb.to_ndarray()
                count += 1
        except FFmpegError as error:
            raise WorldError(f"{path} cannot be decoded after frame {count}: {error.strerror}") from error
    return frames[:count]


def _open(path: Path) -> InputContainer:
    if not path.is_file():
        raise FileNotFoundError(f"there is no video {path}")
    try:
        container = av.open(str(path))
    except FFmpegError as error:
        raise WorldError(f"{path} is not a readable video: {error.strerror}") from error
    if not container.streams.video:
        container.close()
        raise WorldError(f"{path} holds no video")
    return container
