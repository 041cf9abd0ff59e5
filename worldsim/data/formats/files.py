"""Files of recordings: found below a folder, and read with packages that may be missing."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldsim.data.formats.source import EXTRA, Resize
from worldsim.data.video import stream_video
from worldsim.errors import WorldError
from worldsim.storage.files import file_name, files_below

if TYPE_CHECKING:
    import h5py

VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")


def files_of(path: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files of a kind: `path` itself, or those in it and in folders inside of it, sorted."""
    files = [path] if path.is_file() else files_below(path)
    return [file for file in files if file.suffix.lower() in suffixes]


def name_of(file: Path, root: Path) -> str:
    """Return the name of an episode: its file's, and those of the folders that it is in below `root`."""
    inner = file.relative_to(root if root.is_dir() else root.parent).with_suffix("")
    return file_name("-".join(inner.parts))


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises:
        WorldError: If h5py is missing, or the file is no whole HDF5 file, also where that shows later.
    """
    try:
        import h5py
    except ImportError as error:
        raise WorldError(f"{path} is read with the package h5py, which is missing: {EXTRA}") from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (FileNotFoundError, WorldError):
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise WorldError(f"{path} is not a whole HDF5 file: {_reason(error)}") from error


def is_hdf5(path: Path) -> bool:
    """Return whether a file begins as HDF5 files do."""
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def decode_picture(data: bytes, where: str) -> np.ndarray:
    """Return a picture, JPEG or PNG say, as its file has it, uint8.

    Raises:
        WorldError: If Pillow is missing, or it cannot be decoded.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise WorldError(f"{where} is read with the package pillow, which is missing: {EXTRA}") from error
    try:
        with Image.open(BytesIO(data)) as image:
            return np.asarray(image.convert("RGB") if image.mode == "P" else image)
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise WorldError(f"{where} is no picture that can be decoded: {error}") from error


def frames_of_video(
    path: Path, num_frames: int, resize: Resize, *, begin: float | None = None, where: str = ""
) -> Iterator[np.ndarray]:
    """Yield frames of a video in turn, `[height, width, 3]` uint8.

    Args:
        num_frames: How many; those after them are left out.
        resize: To which size they are scaled.
        begin: Time in seconds before which frames are left out.
        where: What it is, for errors; the path if it is empty.

    Raises:
        WorldError: If there are fewer.
    """
    count = 0
    for _, frame in islice(stream_video(path, begin=begin, resize=resize), num_frames):
        yield frame
        count += 1
    if count < num_frames:
        raise WorldError(f"{where or path} has {count} frames, expected {num_frames}")


def read_arrow(path: Path, columns: Collection[str] | None = None, filters: Any = None) -> Any:
    """Return a Parquet or Arrow file, or those of a folder, as a table of Arrow.

    Args:
        columns: Those to read; None reads all.
        filters: An expression of `pyarrow.dataset` that rows have to meet.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: If pyarrow is missing, a file is not whole, or lacks a column.
    """
    try:
        from pyarrow import ArrowException, dataset
    except ImportError as error:
        raise WorldError(f"{path} is read with the package pyarrow, which is missing: {EXTRA}") from error
    files = files_of(path, (".parquet", ".arrow"))
    if not files:
        raise FileNotFoundError(f"there is no Parquet or Arrow file {path}")
    try:
        found = dataset.dataset([str(file) for file in files], format=files[0].suffix[1:])
        if missing := set(columns or ()) - set(found.schema.names):
            raise WorldError(f"{path} has no column {', '.join(sorted(missing))}")
        return found.to_table(columns=None if columns is None else list(columns), filter=filters)
    except WorldError:
        raise
    except (ArrowException, OSError, ValueError) as error:
        raise WorldError(f"{path} is not a whole Parquet or Arrow file: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
