"""Videos, each with a file of actions beside it: JSON lines, CSV or arrays of NumPy."""

from __future__ import annotations

import tokenize
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from worldsim.data.dataset_info import MAX_FRAME_RATE, MIN_FRAME_RATE
from worldsim.data.formats.columns import (
    ACTIONS,
    DONE_NOTE,
    ENDS,
    array_columns,
    as_ends,
    read_rows,
    split_columns,
)
from worldsim.data.formats.files import VIDEOS, files_of, frames_of_video, name_of
from worldsim.data.formats.source import (
    ReadOptions,
    Recording,
    Resize,
    Source,
    SourceTable,
    check_poses,
    check_rewards,
    fit_rows,
    on_the_way,
    unchanged,
)
from worldsim.data.video import VideoDescription, count_decoded_frames, describe_video, frame_times
from worldsim.errors import WorldError

SIDECARS = (".jsonl", ".csv", ".npz")
BROKEN_ARCHIVE = (
    *(OSError, ValueError, KeyError, EOFError, TypeError, SyntaxError, MemoryError, NotImplementedError),
    *(BadZipFile, zlib.error, tokenize.TokenError),
)
"""What NumPy and its parts raise at a damaged file of arrays."""
MAX_DRIFT_S = 0.25
"""Between the times of a video and those beside its actions."""


def detect(path: Path) -> bool:
    """Return whether there are videos with a file of actions beside them."""
    return any(sidecar_of(video) is not None for video in files_of(path, VIDEOS))


def read(path: Path, options: ReadOptions) -> Source:
    """Read videos and the actions beside them; a row's reward is what came with its frame."""
    recordings = [
        VideoRecording(name=name_of(video, path), where=str(video), video=video, trim=options.trim)
        for video in files_of(path, VIDEOS)
    ]
    names: set[str] = set()
    with suppress(WorldError, OSError):  # which is told when its table is read
        names |= recordings[0].columns().keys()
    return Source(
        about=path.stem,
        recordings=recordings,
        frame_rate=common_rate([each.video for each in recordings]),
        notes=(DONE_NOTE,) if any("done" in name for name in names if name in ENDS) else (),
    )


def sidecar_of(video: Path) -> Path | None:
    """Return the file of actions beside a video."""
    return next((path for suffix in SIDECARS if (path := video.with_suffix(suffix)).is_file()), None)


def common_rate(videos: list[Path]) -> float | None:
    """Return the frames per second of videos; None if they differ, or are not evenly spaced."""
    rates = []
    for video in videos:
        with suppress(WorldError):  # which is told when its table is read
            rates.append(rate_of(describe_video(video)))
    first = rates[0] if rates else None
    same = all(rate is not None and first is not None and abs(rate / first - 1) < 0.01 for rate in rates)
    return first if same else None


def rate_of(described: VideoDescription) -> float | None:
    """Return the frames per second of a video; None if they are not evenly spaced, or unknown."""
    if not len(described.intervals):
        return None
    rate = 1 / max(float(described.intervals.mean()), 1e-9)
    nearest = round(rate * 1000) / 1000
    if not MIN_FRAME_RATE <= nearest <= MAX_FRAME_RATE:
        return None
    return nearest if described.differs_from(nearest) is None else None


def times_of(video: Path, described: VideoDescription, num_frames: int) -> np.ndarray | None:
    """Return when frames are shown, `[T]` seconds from the first on; None where the file does not say."""
    if (rate := rate_of(described)) is not None:
        return np.arange(num_frames) / rate
    times = frame_times(video)
    return times[:num_frames] - times[0] if len(times) >= num_frames else None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a `.npz` file.

    Raises:
        WorldError: If it is damaged, or holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise
    except BROKEN_ARCHIVE as error:
        raise WorldError(f"{path} is not a readable file of arrays: {error}") from error


def action_arrays(arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Return arrays as columns, those of several numbers an action as several."""
    columns: dict[str, np.ndarray] = {}
    for name, values in arrays.items():
        is_action = values.ndim in (1, 2) or (values.ndim > 2 and name in ACTIONS)
        columns |= array_columns(name, values) if is_action else {}
    if not columns:
        raise WorldError(f"{where} holds no array of actions")
    return columns


@dataclass(slots=True)
class VideoRecording(Recording):
    """A video and the actions beside it."""

    name: str
    where: str
    video: Path
    trim: int
    _num_frames: int = 0

    @property
    def sidecar(self) -> Path:
        """The file of actions beside the video.

        Raises:
            WorldError: If there is none.
        """
        found = sidecar_of(self.video)
        if found is None:
            expected = ", ".join(SIDECARS)
            raise WorldError(
                f"{self.video} has no actions beside it: expected {self.video.stem} with {expected}"
            )
        return found

    def columns(self) -> dict[str, np.ndarray]:
        """Return all columns of the file beside the video."""
        sidecar = self.sidecar
        if sidecar.suffix == ".npz":
            return action_arrays(read_arrays(sidecar), str(sidecar))
        return read_rows(sidecar)

    def table(self) -> SourceTable:
        """Read actions, rewards and ends."""
        columns = self.columns()
        actions, others = split_columns(columns)
        where = f"{self.sidecar} beside {self.video.name}"
        if not actions:
            raise WorldError(f"{self.sidecar} holds no actions, but {', '.join(columns)}")
        described, num_rows = describe_video(self.video), len(next(iter(columns.values())))
        # All are decoded unless the index agrees with the rows: not all that it lists need be shown.
        is_agreed = described.num_frames - num_rows in (0, 1)
        num_frames = described.num_frames if is_agreed else count_decoded_frames(self.video)
        num_frames, fitted = fit_rows(actions | others, num_frames, self.trim, where)
        self._num_frames = num_frames
        times = times_of(self.video, described, num_frames)
        if "time" in others:
            check_times(others["time"], times, where)
        # Of arrays entry i is what action i brought, of rows what came with frame i.
        place = on_the_way if self.sidecar.suffix == ".npz" else beside
        rewards, ended, poses = (others.get(name) for name in ("reward", "ended", "pose"))
        poses = None if poses is None or len(poses) < num_frames else check_poses(poses, num_frames, where)
        return SourceTable(
            num_frames=num_frames,
            actions={name: fitted[name] for name in actions},
            rewards=None if rewards is None else place(check_rewards(rewards, where), num_frames),
            terminated=None if ended is None else place(as_ends(ended, where), num_frames),
            poses=poses,
            times=times,
        )

    def frames(self, resize: Resize = unchanged) -> Iterator[np.ndarray]:
        """Yield the frames in turn."""
        return frames_of_video(self.video, self._num_frames or self.table().num_frames, resize)


def beside(values: np.ndarray, num_frames: int) -> np.ndarray:
    """Return values of frames, `[T]`, 0 for a last one that has none."""
    return np.append(values, np.zeros(1, values.dtype))[:num_frames]


def check_times(told: np.ndarray, shown: np.ndarray | None, where: str) -> None:
    """Raise `WorldError` if times beside actions do not increase, or run away from those of the video."""
    if told.dtype.kind not in "iuf" or not np.isfinite(told).all():
        raise WorldError(f"{where} has times that are no finite numbers")
    backwards = np.flatnonzero(np.diff(told) < 0)
    if len(backwards):
        raise WorldError(f"{where} has times that do not increase, after row {backwards[0] + 1}")
    if shown is None or told.dtype.kind != "f":  # whole numbers may be milliseconds, or anything
        return
    count = min(len(told), len(shown))
    drift = float(np.abs(told[:count] - told[0] - shown[:count]).max())
    if drift > MAX_DRIFT_S:
        raise WorldError(f"{where} has times up to {drift:.2f} s away from those of the video")
