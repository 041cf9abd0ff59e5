"""Pictures are read as they are shown, or refused by name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest

from worldsim.errors import WorldError
from worldsim.storage import images
from worldsim.storage.images import read_picture, write_png

COLOURS = np.array([(250, 20, 20), (20, 250, 20), (20, 20, 250), (240, 240, 240)], np.uint8)
# What a viewer does with the four quarters, numbered row by row, for each value of EXIF's orientation.
ORIENTATIONS = {
    1: [0, 1, 2, 3],
    2: [1, 0, 3, 2],
    3: [3, 2, 1, 0],
    4: [2, 3, 0, 1],
    5: [0, 2, 1, 3],
    6: [2, 0, 3, 1],
    7: [3, 1, 2, 0],
    8: [1, 3, 0, 2],
}


def quarters() -> np.ndarray:
    """A picture of four colours, 32 high and 48 wide."""
    rows, columns = np.mgrid[:32, :48]
    return COLOURS[2 * (rows >= 16) + (columns >= 24)]


def quarters_of(picture: np.ndarray) -> list[int]:
    height, width = picture.shape[:2]
    middles = [picture[r * height // 4, c * width // 4] for r in (1, 3) for c in (1, 3)]
    return [int(np.abs(COLOURS.astype(int) - middle).sum(axis=1).argmin()) for middle in middles]


def encode(picture: np.ndarray, codec: str, pixel_format: str, source: str = "rgb24") -> bytes:
    encoder = av.VideoCodecContext.create(codec, "w")
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt = pixel_format
    if codec == "mjpeg":
        encoder.color_range = 2
    frame = av.VideoFrame.from_ndarray(picture, format=source).reformat(format=pixel_format)
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def jpeg(orientation: int | None = None) -> bytes:
    data = encode(quarters(), "mjpeg", "yuvj444p")
    if orientation is None:
        return data
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_photo_is_read_upright(tmp_path: Path, orientation: int) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(orientation))
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.shape == ((48, 32, 3) if orientation > 4 else (32, 48, 3))
    assert quarters_of(picture) == ORIENTATIONS[orientation]


def test_a_png_with_an_orientation_is_read_upright(tmp_path: Path) -> None:
    data = encode(quarters(), "png", "rgb24")
    place = data.index(b"IDAT") - 4
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    (tmp_path / "a.png").write_bytes(data[:place] + png_chunk(b"eXIf", tiff) + data[place:])
    assert quarters_of(read_picture(tmp_path / "a.png")) == ORIENTATIONS[6]


def test_another_picture_behind_a_photo_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(6) + encode(np.zeros((16, 16, 3), np.uint8), "mjpeg", "yuvj444p"))
    assert quarters_of(read_picture(tmp_path / "a.jpg")) == ORIENTATIONS[6]


@pytest.mark.parametrize(
    ("codec", "pixel_format"), [("png", "rgba"), ("png", "rgb48be"), ("bmp", "bgra"), ("tiff", "rgb24")]
)
def test_opaque_pictures_of_other_formats_are_read(tmp_path: Path, codec: str, pixel_format: str) -> None:
    (tmp_path / "a").write_bytes(encode(quarters(), codec, pixel_format))
    assert np.array_equal(read_picture(tmp_path / "a"), quarters())


@pytest.mark.parametrize("pixel_format", ["gray", "gray16be", "ya8"])
def test_grey_pictures_keep_their_greys(tmp_path: Path, pixel_format: str) -> None:
    grey = np.repeat(np.arange(0, 240, 5, dtype=np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=-1)
    (tmp_path / "a.png").write_bytes(encode(grey, "png", pixel_format))
    assert np.abs(read_picture(tmp_path / "a.png").astype(int) - grey).max() <= 1


def test_a_transparent_picture_is_refused(tmp_path: Path) -> None:
    picture = np.dstack([quarters(), np.full((32, 48), 255, np.uint8)])
    picture[0, 0, 3] = 254
    (tmp_path / "a.png").write_bytes(encode(picture, "png", "rgba", source="rgba"))
    with pytest.raises(WorldError, match=r"a.png is transparent in places"):
        read_picture(tmp_path / "a.png")


def test_a_picture_of_floating_point_numbers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.exr").write_bytes(encode(quarters(), "exr", "gbrpf32le"))
    with pytest.raises(WorldError, match=r"a.exr has a high dynamic range \(floating point\)"):
        read_picture(tmp_path / "a.exr")


@pytest.mark.parametrize(
    ("codec", "container", "pixel_format"), [("gif", "gif", "rgb8"), ("libx264", "mp4", "yuv420p")]
)
def test_what_moves_is_refused(tmp_path: Path, codec: str, container: str, pixel_format: str) -> None:
    with av.open(str(tmp_path / "a"), "w", format=container) as output:
        stream = output.add_stream(codec, rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 32, 48, pixel_format
        for value in (0, 200):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), value, np.uint8), format="rgb24")
            output.mux(stream.encode(frame.reformat(format=pixel_format)))
        output.mux(stream.encode(None))
    with pytest.raises(WorldError, match=r"a is an animation or has several parts"):
        read_picture(tmp_path / "a")


def test_a_picture_that_no_memory_holds_is_refused(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(WorldError, match=r"a.png is not a picture.*more than 100,000,000 pixels"):
        read_picture(tmp_path / "a.png")


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(quarters(), tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    with pytest.raises(
        WorldError, match=r"a.png is not a picture that can be read: it is larger than 100 bytes"
    ):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["12:30.png", "-", "file:a.png", "a%d*?{1}.png", "no suffix"])
def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_png(quarters(), Path(name))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert np.array_equal(read_picture(Path(name)), quarters())
