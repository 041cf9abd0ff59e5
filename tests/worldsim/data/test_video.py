"""Videos are read as a player shows them, or refused by name."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from worldsim.data import video
from worldsim.data.video import VideoWriter, count_decoded_frames, describe_video, read_video
from worldsim.errors import WorldError

HEIGHT, WIDTH, NUM_FRAMES, RATE = 32, 48, 40, 30
ONE, W = 2**16, 2**30
# What a player does with the four quarters, numbered row by row, for each display matrix.
TURNS = {
    "quarter turn to the left": ((0, -ONE, 0, ONE, 0, 0, 0, 0, W), [1, 3, 0, 2]),
    "quarter turn to the right": ((0, ONE, 0, -ONE, 0, 0, 0, 0, W), [2, 0, 3, 1]),
    "upside down": ((-ONE, 0, 0, 0, -ONE, 0, 0, 0, W), [3, 2, 1, 0]),
    "mirrored": ((-ONE, 0, 0, 0, ONE, 0, 0, 0, W), [1, 0, 3, 2]),
    "mirrored top to bottom": ((ONE, 0, 0, 0, -ONE, 0, 0, 0, W), [2, 3, 0, 1]),
    "transposed": ((0, ONE, 0, ONE, 0, 0, 0, 0, W), [0, 2, 1, 3]),
}
GREYS = np.array([30, 90, 150, 210])


def quarters(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A picture of four grey quarters."""
    rows, columns = np.mgrid[:height, :width]
    grey = GREYS[2 * (rows >= height // 2) + (columns >= width // 2)]
    return np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8)


def quarters_of(frame: np.ndarray) -> list[int]:
    height, width = frame.shape[:2]
    middles = [frame[r * height // 4, c * width // 4, 0] for r in (1, 3) for c in (1, 3)]
    return [int(np.abs(GREYS - int(middle)).argmin()) for middle in middles]


def encode(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    container: str = "mp4",
    times: Sequence[int] | None = None,
    matrix: tuple[int, ...] | None = None,
    aspect_ratio: Fraction | None = None,
    **settings: Any,
) -> None:
    """Write a video with what an ordinary one does not say."""
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=RATE, options={"crf": "12"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.gop_size = 20
        if matrix is not None:
            stream.set_display_matrix(matrix)
        if aspect_ratio is not None:
            stream.codec_context.sample_aspect_ratio = aspect_ratio
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = index if times is None else times[index], Fraction(1, RATE)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))


def greys(count: int = NUM_FRAMES) -> list[np.ndarray]:
    return [np.full((HEIGHT, WIDTH, 3), 20 + 5 * index, np.uint8) for index in range(count)]


def put_into(path: Path, boxes: Sequence[bytes], box: bytes) -> None:
    """Append a box to the innermost of some nested boxes of an mp4 file whose index is at its end."""
    data, place, end = bytearray(path.read_bytes()), 0, path.stat().st_size
    sizes = []
    for kind in boxes:
        while data[place + 4 : place + 8] != kind:
            place += struct.unpack_from(">I", data, place)[0]
            assert place < end, f"there is no {kind}"
        sizes.append(place)
        end = place + struct.unpack_from(">I", data, place)[0]
        place += 8 + {b"stsd": 8, b"avc1": 78}.get(kind, 0)
    data[end:end] = box
    for place in sizes:
        struct.pack_into(">I", data, place, struct.unpack_from(">I", data, place)[0] + len(box))
    path.write_bytes(data)


SAMPLE_ENTRY = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1")


@pytest.mark.parametrize("bytes_at_once", [1, 3 * 3 * HEIGHT * WIDTH, 10**9], ids=["one", "three", "all"])
def test_frames_that_are_encoded_at_once_give_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_at_once: int
) -> None:
    monkeypatch.setattr(video, "BATCH_BYTES", bytes_at_once)
    monkeypatch.setattr(video, "BATCH_PRESET", video.PRESET)
    for name, in_batches in (("alone", False), ("batches", True)):
        size = {"height": HEIGHT, "width": WIDTH, "frame_rate": RATE, "in_batches": in_batches}
        frame = quarters()
        with VideoWriter(tmp_path / name, **size) as writer:  # type: ignore[arg-type]
            for number in range(10):
                frame[:] = np.roll(quarters(), number, axis=1)  # the caller's own, written over
                writer.write(frame)
                assert writer.num_frames == number + 1
    assert (tmp_path / "alone").read_bytes() == (tmp_path / "batches").read_bytes()


def test_frames_that_are_encoded_faster_look_as_well(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = np.kron(rng.integers(0, 256, (6, 30, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    frames = np.stack([wide[:, 2 * step : 2 * step + 96] for step in range(20)])  # blocks that pass by
    error = {}
    for in_batches in (False, True):
        path = tmp_path / f"{in_batches}.mp4"
        with VideoWriter(path, height=48, width=96, frame_rate=RATE, in_batches=in_batches) as writer:
            for frame in frames:
                writer.write(frame)
        error[in_batches] = np.square(read_video(path) - frames.astype(float)).mean()
    assert error[True] < 1.1 * error[False]


@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_video_is_read_as_it_is_shown(tmp_path: Path, turn: str) -> None:
    path, (matrix, expected) = tmp_path / "a.mp4", TURNS[turn]
    encode(path, [quarters()] * 3, matrix=matrix)
    is_transposed = matrix[0] == 0
    size = (WIDTH, HEIGHT) if is_transposed else (HEIGHT, WIDTH)
    frames = read_video(path)
    assert frames.shape == (3, *size, 3)
    assert quarters_of(frames[-1]) == expected
    assert (describe_video(path).height, describe_video(path).width) == size
    scaled = read_video(path, size=(20, 28))
    assert scaled.shape == (3, 20, 28, 3)
    assert quarters_of(scaled[-1]) == expected


def test_a_video_turned_by_other_than_right_angles_is_refused(tmp_path: Path) -> None:
    half = round(ONE * 0.5**0.5)
    encode(tmp_path / "a.mp4", [quarters()], matrix=(half, half, 0, -half, half, 0, 0, 0, W))
    for read in (read_video, describe_video):
        with pytest.raises(WorldError, match=r"a.mp4 is turned by -45.* degrees"):
            read(tmp_path / "a.mp4")


def test_frames_before_the_edit_list_are_neither_counted_nor_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    encode(path, greys())
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 12
    duration, begin = struct.unpack_from(">Ii", data, place)
    ticks = 15360 // RATE  # of a frame
    struct.pack_into(">Ii", data, place, duration * 32 // 40, begin + 8 * ticks)
    path.write_bytes(data)
    frames = read_video(path)
    assert describe_video(path).num_frames == count_decoded_frames(path) == len(frames) == 32
    assert np.abs(frames.astype(int) - np.stack(greys()[8:])).max() <= 4
    assert describe_video(path).differs_from(RATE) is None


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts", "h264"])
def test_frames_of_other_containers_are_counted_and_read(tmp_path: Path, container: str) -> None:
    encode(tmp_path / "a.mp4", greys(), container=container)
    described = describe_video(tmp_path / "a.mp4")
    assert described.num_frames == len(read_video(tmp_path / "a.mp4")) == NUM_FRAMES
    assert described.differs_from(RATE) is None


def test_counting_decodes_no_more_than_the_first_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(tmp_path / "a.mp4", greys())
    decoded, shown_turn = [], video.shown_turn
    monkeypatch.setattr(video, "shown_turn", lambda *given: decoded.append(given) or shown_turn(*given))
    assert describe_video(tmp_path / "a.mp4").num_frames == NUM_FRAMES
    assert len(decoded) == 1


@pytest.mark.parametrize(
    ("times", "found"),
    [
        (range(0, 80, 2), "15"),
        ([index + index // 3 for index in range(NUM_FRAMES)], r"22.* unevenly spaced"),
    ],
    ids=["slower", "variable"],
)
def test_another_or_a_variable_frame_rate_is_noticed(
    tmp_path: Path, times: Sequence[int], found: str
) -> None:
    encode(tmp_path / "a.mp4", greys(), times=times, max_b_frames=0)
    differs = describe_video(tmp_path / "a.mp4").differs_from(RATE)
    assert differs is not None and re.fullmatch(found, differs)


def test_a_skipped_frame_and_rounded_times_are_no_other_frame_rate(tmp_path: Path) -> None:
    skipped = [index + (index >= 20) for index in range(NUM_FRAMES)]
    encode(tmp_path / "a.mp4", greys(), times=skipped, max_b_frames=0, container="matroska")
    assert describe_video(tmp_path / "a.mp4").differs_from(RATE * 40 / 41) is None
    assert describe_video(tmp_path / "a.mp4").differs_from(25) is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aspect_ratio": Fraction(4, 3)}, "is shown stretched, its pixels are 4 to 3"),
        ({"color_trc": 16}, r"has a high dynamic range \(PQ\)"),
        ({"color_trc": 18}, r"has a high dynamic range \(HLG\)"),
        ({"flags": 0x40000 | 0x20000000}, "is interlaced"),
    ],
    ids=["stretched", "PQ", "HLG", "interlaced"],
)
def test_what_is_shown_otherwise_than_it_can_be_read_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    encode(tmp_path / "a.mp4", greys(3), **settings)
    for read in (describe_video, read_video):
        with pytest.raises(WorldError, match=f"a.mp4 {message}"):
            read(tmp_path / "a.mp4")


def test_a_video_with_a_layer_of_transparency_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.webm"), "w") as output:
        stream = output.add_stream("libvpx-vp9", rate=RATE)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuva420p"
        output.mux(stream.encode(av.VideoFrame(WIDTH, HEIGHT, "yuva420p")))
        output.mux(stream.encode(None))
    for read in (describe_video, read_video):
        with pytest.raises(WorldError, match=r"a.webm has a layer of transparency"):
            read(tmp_path / "a.webm")


def test_pixels_that_rounding_has_made_a_little_wider_are_square(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", greys(3), aspect_ratio=Fraction(645, 646))
    assert len(read_video(tmp_path / "a.mp4")) == 3


def test_a_video_that_is_shown_cropped_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    encode(path, greys(3))
    whole = path.read_bytes()
    for width, height, is_cropped in ((WIDTH, HEIGHT, False), (WIDTH // 2, HEIGHT, True)):
        path.write_bytes(whole)
        aperture = struct.pack(">I4s8I", 40, b"clap", width, 1, height, 1, 0, 1, 0, 1)
        put_into(path, SAMPLE_ENTRY, aperture)
        if is_cropped:
            with pytest.raises(WorldError, match=r"a.mp4 is shown cropped"):
                describe_video(path)
        else:
            assert describe_video(path).num_frames == 3


@pytest.mark.parametrize("is_full_range", [False, True])
@pytest.mark.parametrize(("colorspace", "matrix"), [(1, "ITU709"), (6, "ITU601")])
def test_colours_are_read_by_the_matrix_and_range_that_the_file_names(
    tmp_path: Path, colorspace: int, matrix: str, is_full_range: bool
) -> None:
    colour, full = (200, 30, 40), 2 if is_full_range else 1
    with av.open(str(tmp_path / "a.mp4"), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"crf": "0"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, full
        rgb = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), colour, np.uint8), format="rgb24")
        output.mux(
            stream.encode(
                VideoReformatter().reformat(
                    rgb, format="yuv444p", dst_colorspace=matrix, dst_color_range=full
                )
            )
        )
        output.mux(stream.encode(None))
    assert np.abs(read_video(tmp_path / "a.mp4").astype(int) - colour).max() <= 3


def test_a_cover_picture_is_not_the_video(tmp_path: Path) -> None:
    encode(tmp_path / "own.mp4", greys())
    with av.open(str(tmp_path / "a.mp4"), "w", format="mp4") as output:
        cover = output.add_stream("png", rate=1)
        cover.height, cover.width, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        with av.open(str(tmp_path / "own.mp4")) as own:
            copied = output.add_stream_from_template(own.streams.video[0])
            output.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")))
            for packet in own.demux(video=0):
                if packet.size:
                    packet.stream = copied
                    output.mux(packet)
        output.mux(cover.encode(None))
    assert describe_video(tmp_path / "a.mp4").num_frames == NUM_FRAMES
    assert read_video(tmp_path / "a.mp4").shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    "name", ["12:30.mp4", "-.mp4", "file:a.mp4", "concat:a|b.mp4", "a%03d*?.mp4", "http:"]
)
def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with VideoWriter(Path(name), height=HEIGHT, width=WIDTH, frame_rate=RATE) as writer:
        writer.write(greys()[0])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert describe_video(Path(name)).num_frames == len(read_video(Path(name))) == 1


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    encode(tmp_path / "other.mp4", greys(3))
    for text in (
        "ffconcat version 1.0\nfile other.mp4\n",
        "#EXTM3U\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n",
    ):
        (tmp_path / "a.mp4").write_text(text)
        with pytest.raises(WorldError, match=r"a.mp4 is not a readable video"):
            read_video(tmp_path / "a.mp4")


def patch(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def test_an_unknown_codec_is_refused(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", greys(3))
    patch(tmp_path / "a.mp4", b"avc1", b"zzz1")
    for read in (describe_video, read_video):
        with pytest.raises(
            WorldError, match=r"a.mp4 is not a readable video: FFmpeg does not know its codec"
        ):
            read(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_PIXELS", HEIGHT * WIDTH - 1, "is 48 x 32, which is more than 1,535 pixels"),
        (
            "MAX_VIDEO_BYTES",
            NUM_FRAMES * HEIGHT * WIDTH * 3 - 1,
            "is too large to be read at once: 40 frames",
        ),
    ],
)
def test_a_video_larger_than_the_limits_is_refused_before_memory_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, message: str
) -> None:
    encode(tmp_path / "a.mp4", greys())
    monkeypatch.setattr(video, limit, value)
    with pytest.raises(WorldError, match=f"a.mp4 {message}"):
        read_video(tmp_path / "a.mp4")


def join_sizes(folder: Path) -> Path:
    """Write a video whose frames are larger from the fourth on."""
    encode(folder / "small", greys(3), container="h264")
    encode(folder / "large", [quarters(64, 64)] * 3, container="h264")
    (folder / "a.mp4").write_bytes((folder / "small").read_bytes() + (folder / "large").read_bytes())
    return folder / "a.mp4"


def test_frames_of_another_size_on_the_way_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"a.mp4 has another size from frame 3 on"):
        read_video(join_sizes(tmp_path))


def test_larger_frames_on_the_way_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_PIXELS", HEIGHT * WIDTH)
    with pytest.raises(WorldError, match=r"a.mp4 (cannot be decoded|is damaged)"):
        read_video(join_sizes(tmp_path))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) * 2 // 3], lambda data: data[:100]])
def test_a_truncated_video_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    encode(tmp_path / "a.mp4", greys())
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(damage(data))
    for read in (describe_video, read_video):
        with pytest.raises(WorldError, match=r"a.mp4 is not a readable video"):
            read(tmp_path / "a.mp4")
