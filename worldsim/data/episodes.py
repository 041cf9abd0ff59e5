"""Gameplay video on disk: `NAME.mp4` beside `NAME.jsonl`, and one `dataset.json` for the folder.

Line i of the jsonl is one JSON object about frame i (here broken in two):

    {"action": [1, 0, 2], "reward": 0.0, "terminated": false,
     "pose": {"x": 1.0, "y": 2.0, "angle_degrees": 90.0}, "player": "human"}

`action` is the action taken at frame i, which leads to frame i + 1; it is null on the last frame. `reward`
is what the game gave on the way to frame i and `terminated` says that the game ended there; both are
optional, and so are `pose`, `player`, the name of who chose the action, `sha256`, the first digits of the
checksum of the frame before it was encoded, and on the first line `game_seed`, which decided the game.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.actions import ActionLayout
from worldsim.data.dataset_info import INFO_FILE, PART_SUFFIX, DatasetInfo
from worldsim.data.video import VideoWriter, count_frames, read_video
from worldsim.errors import WorldError
from worldsim.interrupt import defer_interrupt

__all__ = [
    "DatasetInfo",
    "Episode",
    "EpisodeTable",
    "EpisodeWriter",
    "count_episode_frames",
    "list_episodes",
    "read_episode",
    "read_table",
    "verify",
]


POSE_KEYS = ("x", "y", "angle_degrees")


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeTable:
    """What an episode's jsonl says; T frames, A action axes.

    Attributes:
        actions: `[T, A]` int64; row i leads to frame i + 1, the last row is nothing pressed.
        rewards: `[T]` float32, given on the way to each frame, or None if not recorded.
        terminated: `[T]` bool, or None if not recorded.
        poses: `[T, 3]` float32 x, y, angle in degrees, or None if not recorded.
        players: Names of who chose each action, T of them, empty where it is not recorded.
        game_seed: Which game was played, or None if not recorded.
    """

    actions: np.ndarray
    rewards: np.ndarray | None = None
    terminated: np.ndarray | None = None
    poses: np.ndarray | None = None
    players: tuple[str, ...] = ()
    game_seed: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode(EpisodeTable):
    """One recording.

    Attributes:
        name: Name of its files, without suffix.
        frames: `[T, height, width, 3]` uint8.
    """

    name: str
    frames: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)


class EpisodeWriter:
    """Record one episode; its files appear under their names only when it is whole.

    Use as a context manager. Leaving by an exception removes what was written, or keeps it as a valid,
    shorter episode if `keep_on_error`.

    Args:
        folder: Dataset folder; it and its `dataset.json` are created if missing.
        name: Name of the files, without suffix.
        info: Shape and buttons of the dataset.
        keep_on_error: Keep the frames so far when an exception (Ctrl-C too) ends the recording.

    Raises:
        WorldError: If the folder holds episodes of another size or with other buttons.
        OSError: If the folder cannot be written to.
    """

    def __init__(self, folder: Path, name: str, info: DatasetInfo, *, keep_on_error: bool = False) -> None:
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
        self._pending: dict[str, Any] | None = None
        self._table = _part(self._table_path).open("w")
        try:
            self._video = VideoWriter(
                _part(self._video_path),
                height=info.height,
                width=info.width,
                frame_rate=info.frame_rate,
                lossless=info.lossless,
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
        player: str | None = None,
        sha256: str | None = None,
        game_seed: int | None = None,
    ) -> None:
        """Append a frame and the action taken at it.

        Args:
            frame: `[height, width, 3]` uint8.
            action: `[axes]` whole numbers; None on the last frame only.
            reward: Given on the way to this frame.
            terminated: Whether the game ended at this frame.
            pose: x, y and angle in degrees.
            player: Name of who chose the action.
            sha256: First digits of the SHA-256 of the frame, which the video does not keep exactly.
            game_seed: Which game is played; of the first frame only.
        """
        if self._pending is not None and self._pending["action"] is None:
            raise WorldError(f"{self._video_path.name}: only the last frame of an episode has no action")
        row: dict[str, Any] = {"action": None}
        if action is not None:
            row["action"] = self._info.actions.validate(action).tolist()
        if reward is not None:
            row["reward"] = round(float(reward), 6)
        if terminated is not None:
            row["terminated"] = bool(terminated)
        if pose is not None:
            row["pose"] = {key: round(float(v), 3) for key, v in zip(POSE_KEYS, pose, strict=True)}
        if player is not None:
            row["player"] = player
        if sha256 is not None:
            row["sha256"] = sha256
        if game_seed is not None:
            row["game_seed"] = game_seed
        with defer_interrupt():  # so that video and table never disagree
            self._video.write(frame)
            if self._pending is not None:
                self._table.write(json.dumps(self._pending) + "\n")
            self._pending = row

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

    def _finish(self) -> None:
        if self._pending is not None:
            # What the last action led to was never seen.
            self._table.write(json.dumps(self._pending | {"action": None}) + "\n")
        self._table.close()
        self._video.close()
        if self._pending is not None:
            # The jsonl comes last: it is what makes an episode exist.
            _part(self._video_path).replace(self._video_path)
            _part(self._table_path).replace(self._table_path)

    def __enter__(self) -> EpisodeWriter:
        return self

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
    names = sorted(path.stem for path in folder.glob("*.jsonl"))
    if not names:
        raise WorldError(f"{folder} holds no episode: expected NAME.mp4 beside NAME.jsonl")
    return names


def count_episode_frames(folder: Path, name: str) -> int:
    """Return the number of frames of an episode, having checked that video and jsonl agree; decodes nothing.

    Raises:
        FileNotFoundError: If one of its files is missing.
        WorldError: If the video is not readable or the jsonl has another length.
    """
    lines = len((folder / f"{name}.jsonl").read_bytes().splitlines())
    frames = count_frames(folder / f"{name}.mp4")
    _check_lengths(folder, name, frames, lines)
    return frames


def read_table(folder: Path, name: str, actions: ActionLayout) -> EpisodeTable:
    """Read an episode's jsonl alone.

    Raises:
        FileNotFoundError: If it is missing.
        WorldError: If a line is not of the expected form.
    """
    path = folder / f"{name}.jsonl"
    pressed, rewards, terminated, poses, players, game_seed = [], [], [], [], [], None
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            pressed.append(row["action"])
            rewards.append(float(row["reward"]) if "reward" in row else None)
            terminated.append(bool(row["terminated"]) if "terminated" in row else None)
            players.append(str(row.get("player", "")))
            game_seed = int(row["game_seed"]) if "game_seed" in row else game_seed
            pose = row.get("pose")
            poses.append(None if pose is None else [float(pose[key]) for key in POSE_KEYS])
        except KeyError as error:
            raise WorldError(f"{path} line {number} has no field {error}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise WorldError(f"{path} line {number}: {error}") from error
    return EpisodeTable(
        actions=_stack_actions(path, pressed, actions),
        rewards=None if None in rewards else np.array(rewards, dtype=np.float32),
        terminated=None if None in terminated else np.array(terminated, dtype=bool),
        poses=None if None in poses else np.array(poses, dtype=np.float32).reshape(-1, 3),
        players=tuple(players),
        game_seed=game_seed,
    )


def read_episode(
    folder: Path, name: str, info: DatasetInfo | None = None, *, size: tuple[int, int] | None = None
) -> Episode:
    """Read and check one episode.

    Args:
        folder: Dataset folder.
        name: Name of the episode.
        info: The folder's description, if already loaded.
        size: Scale frames to this (height, width).

    Raises:
        FileNotFoundError: If a file is missing.
        WorldError: If the video cannot be decoded, the jsonl is malformed, or the two differ in length.
    """
    info = info or DatasetInfo.load(folder)
    table = read_table(folder, name, info.actions)
    frames = read_video(folder / f"{name}.mp4", size=size)
    _check_lengths(folder, name, len(frames), len(table.actions))
    if size is None and frames.shape[1:3] != (info.height, info.width):
        raise WorldError(
            f"{folder / name}.mp4 is {frames.shape[2]} x {frames.shape[1]}, "
            f"but {INFO_FILE} says {info.width} x {info.height}"
        )
    return Episode(
        name=name,
        frames=frames,
        actions=table.actions,
        rewards=table.rewards,
        terminated=table.terminated,
        poses=table.poses,
        players=table.players,
        game_seed=table.game_seed,
    )


def verify(folder: Path) -> int:
    """Decode and check every episode of a folder; return the number of frames.

    Raises:
        FileNotFoundError: If a file is missing.
        WorldError: At the first thing that is wrong.
    """
    info = DatasetInfo.load(folder)
    return sum(len(read_episode(folder, name, info)) for name in list_episodes(folder))


def _stack_actions(path: Path, pressed: list[Any], actions: ActionLayout) -> np.ndarray:
    if not pressed:
        return np.empty((0, len(actions.axes)), dtype=np.int64)
    if pressed[-1] is None:
        pressed = [*pressed[:-1], actions.noop().tolist()]
    try:
        stacked = np.array(pressed)
    except ValueError:  # rows of different lengths
        stacked = np.array(pressed, dtype=object)
    fits = stacked.ndim == 2 and stacked.shape[1] == len(actions.axes) and stacked.dtype.kind == "i"
    if fits and (stacked >= 0).all() and (stacked < actions.num_values).all():
        return stacked.astype(np.int64)
    for number, action in enumerate(pressed, start=1):  # slow, but it knows the line
        try:
            actions.validate(action)
        except WorldError as error:
            raise WorldError(f"{path} line {number}: {error}") from error
    raise AssertionError(f"{path}: the actions are valid one by one but not together")


def _part(path: Path) -> Path:
    return path.with_name(path.name + PART_SUFFIX)


def _check_lengths(folder: Path, name: str, num_frames: int, num_lines: int) -> None:
    if num_frames != num_lines:
        raise WorldError(
            f"{folder / name}.mp4 has {num_frames} frames but {name}.jsonl has {num_lines} lines"
        )
    if num_frames == 0:
        raise WorldError(f"{folder / name}.mp4 has no frames")
