"""Gameplay video on disk: `NAME.mp4` beside `NAME.jsonl`, and one `dataset.json` for the folder.

Line i of the jsonl is one JSON object about frame i (here broken in two):

    {"action": [1, 0, 2], "reward": 0.0, "terminated": false,
     "pose": {"x": 1.0, "y": 2.0, "angle_degrees": 90.0}, "player": "human"}

`action` is the action taken at frame i, which leads to frame i + 1; it is null on the last frame. `reward`
is what the game gave on the way to frame i and `terminated` says that the game ended there; both are
optional, and so are `pose`, `labels`, numbers whose names `dataset.json` lists, `player`, the name of who
chose the action, `sha256`, the first digits of the checksum of the frame before it was encoded, and on the
first line `game_seed` and `game_start`, which decided the game.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.data.dataset_info import INFO_FILE, PART_SUFFIX, DatasetInfo
from worldsim.data.episode_table import POSE_KEYS, EpisodeTable, check_row, read_table
from worldsim.data.video import (
    VideoDescription,
    VideoWriter,
    count_decoded_frames,
    describe_video,
    read_video,
)
from worldsim.errors import WorldError
from worldsim.runtime.interrupt import defer_interrupt
from worldsim.storage.files import plain, read_lines, sync, without_litter

__all__ = [
    "DatasetInfo",
    "Episode",
    "EpisodeTable",
    "EpisodeWriter",
    "count_episode_frames",
    "count_lines",
    "list_episodes",
    "read_episode",
    "read_table",
    "verify",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode(EpisodeTable):
    """One recording.

    Attributes:
        frames: `[T, height, width, 3]` uint8.
    """

    name: str
    frames: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)


ROWS_AT_ONCE = 256
"""Of a table, that are written together: less time for each."""


class EpisodeWriter(AbstractContextManager["EpisodeWriter"]):
    """Record one episode; its files appear under their names only when it is whole.

    Use as a context manager. Leaving by an exception removes what was written, or keeps it as a valid,
    shorter episode if `keep_on_error`.

    Args:
        folder: Dataset folder; it and its `dataset.json` are created if missing.
        keep_on_error: Keep the frames so far when an exception (Ctrl-C too) ends the recording.
        in_batches: Encode frames as `VideoWriter` does in batches: where nobody waits for the next one.

    Raises:
        WorldError: If the folder holds episodes of another size or with other buttons.
        OSError: If the folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        info: DatasetInfo,
        *,
        keep_on_error: bool = False,
        in_batches: bool = False,
    ) -> None:
        if not (folder / INFO_FILE).exists():
            info.save(folder)
        elif (found := DatasetInfo.load(folder)).shape_and_buttons != info.shape_and_buttons:
            raise WorldError(
                f"{folder} holds video of {found.name} ({found.width} x {found.height}), which cannot be "
                f"mixed with {info.name} ({info.width} x {info.height}): the sizes or buttons differ"
            )
        self._info = info
        self._keep_on_error = keep_on_error
        self._video_path, self._table_path = folder / f"{name}.mp4", folder / f"{name}.jsonl"
        self._rows: list[dict[str, Any]] = []
        self._num_written = 0
        self._table = _part(self._table_path).open("w", encoding="utf-8")
        try:
            self._video = VideoWriter(
                _part(self._video_path),
                height=info.height,
                width=info.width,
                frame_rate=info.frame_rate,
                lossless=info.lossless,
                in_batches=in_batches,
            )
        except BaseException:
            self._discard()
            raise

    @property
    def num_frames(self) -> int:
        """Frames added so far."""
        return self._video.num_frames

    def add(
        self,
        frame: np.ndarray,
        action: np.ndarray | None,
        *,
        reward: float | None = None,
        terminated: bool | None = None,
        pose: tuple[float, float, float] | None = None,
        labels: Sequence[float] | None = None,
        player: str | None = None,
        sha256: str | None = None,
        game_seed: int | None = None,
        game_start: str | None = None,
    ) -> None:
        """Append a frame and the action taken at it.

        Args:
            frame: `[height, width, 3]` uint8.
            action: `[axes]` whole numbers; None on the last frame only.
            reward: Given on the way to this frame, finite.
            pose: x, y and angle in degrees.
            labels: A number for each of the dataset's `labels`.
            sha256: First digits of the SHA-256 of the frame, which the video does not keep exactly.
            game_seed: Which game is played; of the first frame only.
            game_start: Where it was asked to begin; likewise.

        Raises:
            WorldError: If one of them is not what it must be; nothing is appended then.
            OSError: If the disk is full.
        """
        # A request to stop may have come between a row and its frame: it then has none.
        del self._rows[self.num_frames - self._num_written :]
        if self._rows and self._rows[-1]["action"] is None:
            raise WorldError(f"{self._video_path.name}: only the last frame of an episode has no action")
        row: dict[str, Any] = {"action": None}
        if action is not None:
            row["action"] = self._info.actions.validate(action).tolist()
        given = {"reward": reward, "terminated": terminated, "player": player, "sha256": sha256}
        for key, value in (given | {"game_seed": game_seed, "game_start": game_start}).items():
            if value is not None:
                row[key] = plain(value)
        if pose is not None:
            row["pose"] = {key: plain(value) for key, value in zip(POSE_KEYS, pose, strict=True)}
        if labels is not None:
            row["labels"] = [plain(value) for value in labels]
            if len(labels) != len(self._info.labels):
                raise WorldError(
                    f"{self._video_path.name}: {len(labels)} labels for a dataset of {len(self._info.labels)}"
                )
        unchecked = row | {"action": None}  # the action has just been validated
        check_row(unchecked, self._info.actions, f"{self._table_path} line {self.num_frames + 1}")
        if reward is not None:
            row["reward"] = round(float(row["reward"]), 6)
        if pose is not None:
            row["pose"] = {key: round(float(value), 3) for key, value in row["pose"].items()}
        if labels is not None:
            row["labels"] = [_shorten(value) for value in row["labels"]]
        self._rows.append(row)
        self._video.write(frame)
        if len(self._rows) > ROWS_AT_ONCE:
            with defer_interrupt(only_raised=True):
                self._write_rows(ROWS_AT_ONCE)

    def close(self) -> None:
        """Finish the episode and put its files in place; without frames there is none.

        Raises:
            OSError: If the disk is full; nothing is left then.
        """
        with defer_interrupt():
            try:
                self._finish()
            finally:
                self._discard()  # nothing, once the files are in place

    def _write_rows(self, number: int) -> None:
        self._table.write("".join(json.dumps(row) + "\n" for row in self._rows[:number]))
        self._num_written += number
        del self._rows[:number]

    def _finish(self) -> None:
        left = self.num_frames - self._num_written
        if left:
            # What the last action led to was never seen.
            self._rows[left - 1]["action"] = None
            self._write_rows(left)
        self._table.close()
        self._video.close()
        if self._num_written:
            # The jsonl comes last: it is what makes an episode exist.
            for path in (self._video_path, self._table_path):
                sync(_part(path))
                _part(path).replace(path)
            sync(self._table_path.parent)

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None or self._keep_on_error:
            self.close()
            return
        with defer_interrupt(), suppress(OSError):  # the error under way is the one to report
            try:
                self._table.close()
                self._video.close()
            finally:
                self._discard()

    def _discard(self) -> None:
        for path in (self._video_path, self._table_path):
            _part(path).unlink(missing_ok=True)


def list_episodes(folder: Path) -> list[str]:
    """Return the names of a folder's episodes, sorted.

    Raises:
        FileNotFoundError: If the folder is missing or has no `dataset.json`.
        WorldError: If it holds no episode.
    """
    DatasetInfo.load(folder)
    names = sorted(path.stem for path in without_litter(folder.glob("*.jsonl")))
    if not names:
        raise WorldError(f"{folder} holds no episode: expected NAME.mp4 beside NAME.jsonl")
    return names


def count_lines(folder: Path, name: str) -> int:
    """Return the number of frames that an episode's jsonl is about; parses nothing.

    Raises:
        FileNotFoundError: If it is missing.
        WorldError: If it is too large.
    """
    return sum(1 for _ in read_lines(folder / f"{name}.jsonl"))


def count_episode_frames(folder: Path, name: str, info: DatasetInfo | None = None) -> int:
    """Return the number of frames of an episode, having checked that video, jsonl and description agree.

    No more than its first frame is decoded, unless the video's index and the jsonl disagree.

    Raises:
        FileNotFoundError: If one of its files is missing.
        WorldError: If the video is not readable, not of the size and frame rate of the description, or the
            jsonl has another length.
    """
    num_lines = count_lines(folder, name)
    _check_video(folder, name, info or DatasetInfo.load(folder), num_lines)
    return num_lines


def read_episode(
    folder: Path, name: str, info: DatasetInfo | None = None, *, size: tuple[int, int] | None = None
) -> Episode:
    """Read and check one episode.

    Args:
        size: Scale frames to this (height, width).

    Raises:
        FileNotFoundError: If a file is missing.
        WorldError: If the video cannot be decoded or is not of the size and frame rate of the description,
            the jsonl is malformed, or the two differ in length.
    """
    info = info or DatasetInfo.load(folder)
    table = read_table(folder, name, info.actions)
    if table.labels is not None and table.labels.shape[1] != len(info.labels):
        raise WorldError(
            f"{folder / name}.jsonl has {table.labels.shape[1]} labels a line, but {INFO_FILE} names "
            f"{len(info.labels)}"
        )
    described = _check_video(folder, name, info, len(table.actions))
    frames = read_video(folder / f"{name}.mp4", size=size, described=described)
    _check_lengths(folder, name, len(frames), len(table.actions))
    known = {each.name: getattr(table, each.name) for each in fields(table)}
    return Episode(name=name, frames=frames, **known)


def verify(folder: Path) -> int:
    """Decode and check every episode of a folder; return the number of frames.

    Raises:
        FileNotFoundError: If a file is missing.
        WorldError: At the first thing that is wrong.
    """
    info = DatasetInfo.load(folder)
    return sum(len(read_episode(folder, name, info)) for name in list_episodes(folder))


def _shorten(value: float) -> float:
    """Return a number with three digits after the point, or none if they are zeros."""
    short = round(float(value), 3)
    return int(short) if short.is_integer() else short


def _part(path: Path) -> Path:
    return path.with_name(path.name + PART_SUFFIX)


def _check_video(folder: Path, name: str, info: DatasetInfo, num_lines: int) -> VideoDescription:
    """Return the description of a video that agrees with its jsonl and with its folder's."""
    path = folder / f"{name}.mp4"
    video = describe_video(path)
    if video.height and (video.height, video.width) != (info.height, info.width):
        raise WorldError(
            f"{path} is {video.width} x {video.height}, but {INFO_FILE} says {info.width} x {info.height}"
        )
    if (found := video.differs_from(info.frame_rate)) is not None:
        raise WorldError(f"{path} shows {found} frames a second, but {INFO_FILE} says {info.frame_rate:g}")
    # Not all that an index lists need be shown: it is not believed if it contradicts the jsonl.
    num_frames = video.num_frames if video.num_frames == num_lines else count_decoded_frames(path)
    _check_lengths(folder, name, num_frames, num_lines)
    return video


def _check_lengths(folder: Path, name: str, num_frames: int, num_lines: int) -> None:
    if num_frames != num_lines:
        raise WorldError(
            f"{folder / name}.mp4 has {num_frames} frames but {name}.jsonl has {num_lines} lines"
        )
    if num_frames == 0:
        raise WorldError(f"{folder / name}.mp4 has no frames")
