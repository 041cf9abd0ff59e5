"""All formats that are read, and which of them a folder is of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from worldsim.data.dataset_info import INFO_FILE
from worldsim.data.formats import arrays, counter_strike, lerobot, minari, video_folder, vpt
from worldsim.data.formats.source import ReadOptions, Source
from worldsim.errors import WorldError


@dataclass(frozen=True, slots=True)
class Format:
    """A format by what reads it.

    Attributes:
        about: What it is, for people who look for theirs.
        detect: Whether a file or folder is of it.
        read: What it holds.
    """

    about: str
    detect: Callable[[Path], bool]
    read: Callable[[Path, ReadOptions], Source]


FORMATS = {
    "minari": Format("Minari dataset (HDF5, Parquet or Arrow)", minari.detect, minari.read),
    "lerobot": Format("LeRobotDataset 3.0", lerobot.detect, lerobot.read),
    "counter-strike": Format("HDF5 files of Pearce and Zhu", counter_strike.detect, counter_strike.read),
    "vpt": Format("contractor files of OpenAI's VPT", vpt.detect, vpt.read),
    "videos": Format("videos with .jsonl, .csv or .npz beside them", video_folder.detect, video_folder.read),
    "npz": Format(".npz files with frames and actions", arrays.detect, arrays.read),
}
"""By name, in the order in which they are tried: what is special comes before what is general."""


def find_format(path: Path) -> str:
    """Return the name of the format of a file or folder.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        WorldError: If it is of none, or is gameplay video of our own.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if (path / INFO_FILE).is_file():
        raise WorldError(f"{path} is gameplay video already: train on it as it is")
    for name, found in FORMATS.items():
        if found.detect(path):
            return name
    known = "; ".join(f"{name}: {found.about}" for name, found in FORMATS.items())
    raise WorldError(f"{path} is of no format that is read ({known})")


def open_source(path: Path, options: ReadOptions, name: str = "") -> tuple[str, Source]:
    """Return the name of a format and what it holds.

    Args:
        name: Of the format; empty finds it.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        WorldError: If it cannot be read.
    """
    if name and name not in FORMATS:
        raise WorldError(f"format must be one of {', '.join(FORMATS)}, got {name}")
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    name = name or find_format(path)
    source = FORMATS[name].read(path, options)
    if not source.recordings:
        raise WorldError(f"{path} holds no recording of the format {name}")
    names = [recording.name for recording in source.recordings]
    if doubled := sorted({each for each in names if names.count(each) > 1}):
        raise WorldError(f"{path} holds several recordings of the name {doubled[0]}")
    return name, source
