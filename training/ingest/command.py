"""Import of recordings in formats of others: `python -m training.ingest path=RECORDINGS out=data/my-game`.

The format is found by what the folder holds. All recordings are checked first, then written as episodes into
OUT/train and OUT/heldout, which appear once they are whole; the same command goes on where it was stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.cli.entry import entry
from training.data.summary import summarize
from training.engine.lock import locked_folder
from training.ingest.resampling import is_even, times_of
from training.ingest.writing import Conversion, Task, split, staged, write_recordings
from worldsim.data.axes import SCALES, axes_of, with_limits
from worldsim.data.dataset_info import MAX_FRAME_RATE, MAX_SIDE, MIN_FRAME_RATE, DatasetInfo
from worldsim.data.default_keys import layout_of
from worldsim.data.formats.columns import find_channels
from worldsim.data.formats.registry import FORMATS, open_source
from worldsim.data.formats.source import ReadOptions, Recording, Source
from worldsim.data.pictures import FITS, Size, choose_size
from worldsim.errors import WorldError
from worldsim.runtime.cores import check_workers, worker_count
from worldsim.settings import REQUIRED, check_settings, setting
from worldsim.storage.files import user_path


@dataclass(kw_only=True, slots=True)
class IngestConfig:
    """What to import, and how."""

    path: str = setting(REQUIRED, "File or folder of recordings.")
    out: str = setting(REQUIRED, "Folder of the dataset folders train and heldout; new.")
    format: str = setting("", "Of the recordings; '' finds it.", choices=("", *FORMATS))
    name: str = setting("", "Of the game; '' is the name of the folder out.")
    licence: str = setting("", "Of the pictures; '' is what the format says, if anything.")
    image: str = setting("", "Name of the pictures to take, where there are several.")
    height: int | None = setting(
        None,
        "Of the frames, in pixels; null is their own, or in proportion to width.",
        minimum=2,
        maximum=MAX_SIDE,
    )
    width: int | None = setting(
        None,
        "Of the frames, in pixels; null is their own, or in proportion to height.",
        minimum=2,
        maximum=MAX_SIDE,
    )
    fit: str = setting(
        "letterbox",
        "Where the shape is another: letterbox (black bars), crop (cut off) or stretch (distort).",
        choices=FITS,
    )
    frame_rate: float | None = setting(
        None,
        "Frames per second, to which others are resampled; null is their own.",
        minimum=MIN_FRAME_RATE,
        maximum=MAX_FRAME_RATE,
    )
    bins: int = setting(
        11,
        "Values of an analog axis; odd, so that one is in the middle.",
        minimum=2,
        maximum=255,
    )
    scale: str = setting(
        "",
        "Of these bins: uniform, or mu-law (finer near 0); '' is what is usual in a format, else uniform.",
        choices=("", *SCALES),
    )
    heldout_share: float = setting(
        0.1, "Of the recordings, to be held out; one at least unless it is 0.", minimum=0, below=1
    )
    episode_frames: int | None = setting(
        None, "Greatest number of frames of an episode: longer recordings are cut; null cuts none.", minimum=2
    )
    trim: int = setting(
        0,
        "By how many frames pictures and actions of a recording may differ; what has no partner is cut off.",
        minimum=0,
    )
    skip_unreadable: bool = setting(
        False, "Leave out recordings that cannot be read, naming them, instead of ending."
    )
    lossless: bool = setting(False, "Keep every pixel: larger files, for pictures with small things.")
    num_workers: int = setting(0, "Worker processes; 0 is one per core.")

    def __post_init__(self) -> None:
        check_settings(self)
        check_workers(self.num_workers, "num_workers")


@entry("ingest", IngestConfig)
def main(config: IngestConfig) -> None:
    """Import recordings and print what they hold."""
    path, out = user_path(config.path), user_path(config.out)
    format_name, source = open_source(path, ReadOptions(image=config.image, trim=config.trim), config.format)
    print(f"{path} is of the format {format_name}: {len(source.recordings)} recordings of {source.about}")
    source, left_out = readable(source, skips=config.skip_unreadable)
    conversion = plan(config, source, format_name, out)
    print(f"{conversion.info.source}\nbuttons: {', '.join(conversion.info.actions.buttons)}")
    splits = split(source.recordings, config.heldout_share)
    splits = {name: recordings for name, recordings in splits.items() if recordings}
    with locked_folder(out, is_new=True), staged(out, conversion.info, list(splits)) as stage:
        tasks = [Task(each, stage / name) for name, recordings in splits.items() for each in recordings]
        num_workers = worker_count(config.num_workers)
        left_out += write_recordings(conversion, tasks, num_workers, skips=config.skip_unreadable)
        for name in splits:
            if not list((stage / name).glob("*.jsonl")):
                raise WorldError(f"no recording for {name} could be read; the first: {left_out[0]}")
    for sentence in left_out:
        print(f"left out: {sentence}")
    for name in splits:
        print(summarize(out / name, conversion.info.actions, "ended"))
    if "heldout" not in splits:
        print("nothing is held out, and training needs it: cut with episode_frames=, or record more")


def readable(source: Source, *, skips: bool) -> tuple[Source, list[str]]:
    """Return a source without the recordings that cannot be read, if these are skipped, and why they cannot.

    Raises:
        WorldError: If none can be read.
    """
    if not skips:
        return source, []
    recordings: list[Recording] = []
    left_out: list[str] = []
    for recording in source.recordings:
        try:
            recording.table()
            next(recording.frames())
            recordings.append(recording)
        except (WorldError, FileNotFoundError, StopIteration) as error:
            left_out.append(" ".join(str(error).split()))
    if not recordings:
        raise WorldError(f"none of {len(left_out)} recordings can be read; the first: {left_out[0]}")
    return replace(source, recordings=recordings), left_out


def plan(config: IngestConfig, source: Source, format_name: str, out: Path) -> Conversion:
    """Return how recordings become episodes, having read all of them but their frames.

    Raises:
        WorldError: If something is wrong with one of them, or the frame rate is not known.
    """
    with tqdm(source.recordings, unit="recording", desc="checking") as recordings:
        measured = find_channels(recordings, config.bins)
    channels = with_limits(source.channels or measured, measured)
    axes, unused = axes_of(channels, config.bins, config.scale)
    rate = config.frame_rate or source.frame_rate
    if rate is None:
        raise WorldError(
            f"{config.path} does not say how many frames a second it shows, or not the same or evenly: "
            "give frame_rate=, to which it is resampled where it shows others"
        )
    source_rate = source.frame_rate
    if source_rate is None and source.recordings[0].table().times is None:
        source_rate = rate
    size = choose_size(first_frame(source.recordings[0]), config.height, config.width, config.fit)
    told = [source.about, f"imported from the format {format_name}", *source.notes]
    seen = source.recordings[:1] if source.has_one_size else source.recordings
    told += dict.fromkeys(describe_frames(first_frame(each), size) for each in seen)
    told += [describe_rate(source, source_rate, rate)]
    told += [axis.describe() for axis in axes]
    told += [f"{', '.join(unused)} never changes and is left out"] if unused else []
    info = DatasetInfo(
        name=config.name or out.name,
        width=size.width,
        height=size.height,
        frame_rate=rate,
        actions=layout_of(axes),
        source="; ".join(filter(None, told)),
        licence=config.licence or source.licence,
        lossless=config.lossless,
    )
    return Conversion(
        info=info, axes=tuple(axes), size=size, source_rate=source_rate, episode_frames=config.episode_frames
    )


def first_frame(recording: Recording) -> np.ndarray:
    """Return the frame that a recording begins with, `[height, width, 3]` uint8.

    Raises:
        WorldError: If there is none, or it cannot be decoded.
    """
    for frame in recording.frames():
        return frame
    raise WorldError(f"{recording.where} has no frames")


def describe_frames(frame: np.ndarray, size: Size) -> str:
    """Return in words what is done to frames; empty if nothing is."""
    rows, columns = frame.shape[:2]
    if (rows, columns) == (size.height, size.width):
        return ""
    how = {"letterbox": "letterboxed", "crop": "cropped", "stretch": "stretched"}[size.fit]
    if abs(rows / columns - size.height / size.width) < 0.01:
        how = "scaled"
    return f"frames of {columns} x {rows} {how} to {size.width} x {size.height}"


def describe_rate(source: Source, source_rate: float | None, rate: float) -> str:
    """Return in words what is done to the frame rate; empty if nothing is."""
    if source_rate is None:
        return f"frames not evenly spaced, resampled to {rate:g} a second"
    first = source.recordings[0]
    if is_even(times_of(first.table(), source_rate, first.where), rate):
        return ""
    return f"{source_rate:g} frames a second resampled to {rate:g}"
