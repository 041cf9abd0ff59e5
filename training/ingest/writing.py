"""Recordings of a source, written as episodes: all of them appear in their folder together, or none does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from av.video.reformatter import VideoReformatter
from tqdm import tqdm

from training.ingest.resampling import is_even, resample, shown_frames, times_of
from worldsim.data.axes import Axis, encode
from worldsim.data.dataset_info import INFO_FILE, PART_SUFFIX, DatasetInfo
from worldsim.data.episodes import EpisodeWriter
from worldsim.data.formats.source import Recording, Resize, SourceTable, unchanged
from worldsim.data.pictures import Size, fit_frame, shrunk_size
from worldsim.errors import WorldError
from worldsim.runtime.child import leave_the_terminal
from worldsim.storage.files import sync, sync_tree


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """How recordings become episodes; the same for all.

    Attributes:
        info: What is said of them in `dataset.json`.
        axes: How columns of actions become axes.
        size: Of the frames.
        source_rate: Frames per second of the source; None where each recording has times of its own.
        episode_frames: Greatest number of frames of an episode; longer recordings are cut.
    """

    info: DatasetInfo
    axes: tuple[Axis, ...]
    size: Size
    source_rate: float | None
    episode_frames: int | None


@dataclass(frozen=True, slots=True)
class Task:
    """A recording to write into a folder."""

    recording: Recording
    folder: Path


def split(recordings: Sequence[Recording], heldout_share: float) -> dict[str, list[Recording]]:
    """Return the recordings to train on and those held out, the latter evenly spread over all.

    At least one is held out if the share is above 0 and there are two.
    """
    count = round(len(recordings) * heldout_share)
    if heldout_share and not count and len(recordings) > 1:
        count = 1
    places = {(2 * index + 1) * len(recordings) // (2 * count) for index in range(count)}
    return {
        "train": [each for index, each in enumerate(recordings) if index not in places],
        "heldout": [each for index, each in enumerate(recordings) if index in places],
    }


def write_recordings(
    conversion: Conversion, tasks: Sequence[Task], num_workers: int, *, skips: bool
) -> list[str]:
    """Write all recordings, those that are there already excepted; return why some were left out.

    Args:
        num_workers: Processes; with one, this process does it.
        skips: Whether a recording that cannot be read is left out instead of ending everything.

    Raises:
        WorldError: For the first that cannot be read.
        OSError: If the disk is full.
    """
    left_out = []
    with tqdm(total=len(tasks), unit="recording", desc="importing") as bar:
        for error in _outcomes(conversion, tasks, min(num_workers, len(tasks))):
            if isinstance(error, WorldError | FileNotFoundError) and skips:
                left_out.append(" ".join(str(error).split()))
            elif error is not None:
                raise error
            bar.update()
    return left_out


def _outcomes(conversion: Conversion, tasks: Sequence[Task], num_workers: int) -> Iterator[Exception | None]:
    if num_workers <= 1:
        for task in tasks:
            yield write_recording(conversion, task)
        return
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=leave_the_terminal)
    try:
        futures = [pool.submit(write_recording, conversion, task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # recordings under way are finished


def write_recording(conversion: Conversion, task: Task) -> Exception | None:
    """Write a recording as one or more episodes; return what is wrong with it, None if nothing is."""
    try:
        table = task.recording.table()
        shown, table = at_rate(conversion, table, task.recording.where)
        pieces = cut(task.recording.name, table.num_frames, conversion.episode_frames)
        if any(not (task.folder / f"{name}.jsonl").exists() for name, _ in pieces):
            _write_pieces(conversion, task, table, shown, pieces)
    except (WorldError, OSError) as error:
        return error
    return None


def at_rate(conversion: Conversion, table: SourceTable, where: str) -> tuple[np.ndarray, SourceTable]:
    """Return which frames of a recording are shown at the rate of the episodes, and what happens at them."""
    times, rate = times_of(table, conversion.source_rate, where), conversion.info.frame_rate
    if is_even(times, rate):
        return np.arange(table.num_frames), table
    shown = shown_frames(times, rate)
    if len(shown) < 2:
        raise WorldError(f"{where} has only {len(shown)} frame at {rate:g} frames a second")
    return shown, resample(table, shown, conversion.axes)


def cut(name: str, num_frames: int, episode_frames: int | None) -> list[tuple[str, range]]:
    """Return names and frames of the episodes of a recording; a rest of a single frame is left out."""
    if episode_frames is None or num_frames <= episode_frames:
        return [(name, range(num_frames))]
    begins = range(0, num_frames, episode_frames)
    pieces = [range(begin, min(begin + episode_frames, num_frames)) for begin in begins]
    return [(f"{name}-{index:04d}", piece) for index, piece in enumerate(pieces) if len(piece) > 1]


def _write_pieces(
    conversion: Conversion,
    task: Task,
    table: SourceTable,
    shown: np.ndarray,
    pieces: Sequence[tuple[str, range]],
) -> None:
    actions, reformatter = encode(conversion.axes, table.actions), VideoReformatter()
    rewards, ended, poses = table.rewards, table.terminated, table.poses
    frames = chosen(task.recording, shown, partial(shrunk_size, size=conversion.size))
    for name, piece in pieces:
        with EpisodeWriter(task.folder, name, conversion.info) as writer:
            for index in piece:
                writer.add(
                    fit_frame(next(frames), conversion.size, reformatter),
                    None if index == piece[-1] else actions[index],
                    reward=None if rewards is None else float(rewards[index]),
                    terminated=None if ended is None else bool(ended[index]),
                    pose=None if poses is None else tuple(poses[index]),
                )


def chosen(recording: Recording, shown: np.ndarray, resize: Resize = unchanged) -> Iterator[np.ndarray]:
    """Yield the frames of a recording that have these numbers, ascending, some of them several times.

    Raises:
        WorldError: If the recording has fewer frames, or they change their size.
    """
    numbered, frame, number, shape = enumerate(recording.frames(resize)), np.empty(0), -1, None
    for wanted in shown:
        while number < wanted:
            number, frame = next(numbered, (-1, frame))
            if number < 0:
                raise WorldError(f"{recording.where} has no frame {wanted}")
            shape = shape or frame.shape
            if frame.shape != shape:
                raise WorldError(f"{recording.where} has another size from frame {number} on")
        yield frame


@contextmanager
def staged(out: Path, info: DatasetInfo, splits: Sequence[str]) -> Iterator[Path]:
    """Give a folder to write splits into, and put it at `out` once all of them are whole.

    After an error what is finished stays in `OUT.part`, from which the same import goes on; nothing stays if
    no episode is finished.

    Raises:
        WorldError: If there is something at `out`, or an unfinished import with other settings beside it.
    """
    stage = out.with_name(out.name + PART_SUFFIX)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WorldError(f"{out} is there already: give another out, or remove it")
    for name in splits:
        folder = stage / name
        if (folder / INFO_FILE).exists() and DatasetInfo.load(folder) != info:
            raise WorldError(f"{stage} is an unfinished import with other settings: finish or remove it")
        for left in folder.glob(f"*{PART_SUFFIX}"):
            left.unlink()
    try:
        for name in splits:
            info.save(stage / name)
        yield stage
        sync_tree(stage)
        stage.replace(out)
        sync(out.parent)
    except BaseException:
        if not list(stage.glob("*/*.jsonl")):
            shutil.rmtree(stage, ignore_errors=True)
        raise
