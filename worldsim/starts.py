"""Start moments: a few real frames to watch before play begins."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldsim.actions import ActionLayout
from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episodes import (
    EpisodeWriter,
    count_episode_frames,
    count_lines,
    list_episodes,
    read_episode,
)
from worldsim.errors import WorldError
from worldsim.model.memory.pose import relative_poses
from worldsim.storage.images import fit_picture, read_picture

MAX_START_BYTES = 2**30
"""Of the decoded start moments of a world, which stay in memory: at 160 x 120, 18,000 frames."""
PICTURE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True, slots=True)
class Start:
    """A moment to begin from: real frames to watch, the last of which is where play begins.

    Attributes:
        name: Name for a menu.
        frames: `[T, H, W, 3]` uint8.
        actions: `[T, A]` int64; action i leads from frame i to i + 1, the last one is not used.
        poses: `[T, 3]`, x, y and heading in degrees where each frame was seen from; None where none are
            recorded.
    """

    name: str
    frames: Tensor
    actions: Tensor
    poses: Tensor | None = None


def path_of(starts: Sequence[Start], on_map: bool = False) -> Tensor | None:
    """Return where the frames of start moments were seen from, `[B, T, 3]`; None if none record it.

    Each lies on a map of its own, on which its first frame is seen from x, y and heading 0, as a dream is;
    in a world that is `on_map` they lie on that of its level.

    Raises:
        WorldError: If some record poses and some do not, or one that has to does not.
    """
    recorded = [start.poses for start in starts if start.poses is not None]
    if on_map:
        if without := [start.name for start in starts if start.poses is None]:
            raise WorldError(
                f"start {without[0]!r} records no poses, and the world draws one level by its map"
            )
        return torch.stack(recorded)
    if recorded and len(recorded) < len(starts):
        raise WorldError("a batch needs starts that all record poses, or none that does")
    return relative_poses(torch.stack(recorded)) if recorded else None


def read_starts(folder: Path) -> list[Start]:
    """Read start moments from a folder of gameplay video, one per episode.

    Raises:
        FileNotFoundError: If there is no such folder or a file is missing.
        WorldError: If one cannot be read, or they are more than `MAX_START_BYTES` together.
    """
    info = DatasetInfo.load(folder)
    names, starts = list_episodes(folder), []
    num_frames = sum(count_lines(folder, name) for name in names)
    if num_frames * info.height * info.width * 3 > MAX_START_BYTES:
        raise WorldError(
            f"{folder} holds {num_frames} frames of {info.width} x {info.height}: start moments of more "
            f"than {MAX_START_BYTES / 2**30:g} GiB are not read"
        )
    for name in names:
        episode = read_episode(folder, name, info)
        poses = None if episode.poses is None else torch.from_numpy(episode.poses)
        frames, actions = torch.from_numpy(episode.frames), torch.from_numpy(episode.actions)
        starts.append(Start(name, frames, actions, poses))
    return starts


def visible_detail(frame: np.ndarray) -> int:
    """Return how much there is to see in a frame `[H, W, 3]` uint8: the bytes it takes, coarsely coloured.

    A wall close by is a few large patches and takes few; a room with what is behind it takes many.
    """
    coarse = np.diff((frame >> 4).astype(np.int8), axis=1)
    return len(zlib.compress(coarse.tobytes()))


def is_picture(start: str, start_names: Sequence[str]) -> bool:
    """Return whether a start is a picture of the player's own, and no start moment of the world."""
    path = Path(start)
    return start not in start_names and (path.suffix.lower() in PICTURE_SUFFIXES or path.is_file())


def picture_start(path: Path, actions: ActionLayout, size: tuple[int, int], num_frames: int) -> Start:
    """Return a start moment made of a picture: one stands still before it.

    Args:
        path: Of the picture; what does not fit is cut off around its middle.
        actions: The world's buttons.
        size: Height and width of the world's frames.
        num_frames: How long one stands still.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: If it is no picture.
    """
    picture = torch.from_numpy(fit_picture(read_picture(path), *size))
    idle = torch.from_numpy(actions.noop()).repeat(num_frames, 1)
    return Start(path.name, picture.repeat(num_frames, 1, 1, 1), idle)


def draw_starts(
    folder: Path,
    count: int,
    num_frames: int,
    *,
    actions: ActionLayout,
    size: tuple[int, int],
    seed: int,
    frames_left: int = 1,
    with_poses: bool = False,
) -> list[Start]:
    """Draw start moments from recorded episodes: an episode first, then a place in it, all equally likely.

    Args:
        folder: Dataset folder.
        count: How many.
        num_frames: Real frames to watch at each.
        actions: The world's buttons.
        size: Height and width of the world's frames; video of another size is scaled.
        seed: Decides which.
        frames_left: Least number of frames that the real episode went on for afterwards.
        with_poses: Whether they tell where they were seen from, if that is recorded.

    Raises:
        FileNotFoundError: If there is no such folder or a file is missing.
        WorldError: If it has other buttons, no episode is long enough, or one cannot be read.
    """
    info = DatasetInfo.load(folder)
    if info.actions.num_values != actions.num_values:
        raise WorldError(
            f"{folder} was played with axes of {list(info.actions.num_values)} values, the world has "
            f"{list(actions.num_values)}: no start moments can be taken from it"
        )
    needed = num_frames + frames_left
    lengths = {name: count_episode_frames(folder, name, info) for name in list_episodes(folder)}
    names = [name for name, length in lengths.items() if length >= needed]
    if not names:
        raise WorldError(
            f"the episodes in {folder} are too short to begin from: {needed} frames are needed, "
            f"the longest has {max(lengths.values())}"
        )
    rng = np.random.default_rng(seed)
    places = sorted(
        (name, int(rng.integers(lengths[name] - needed + 1))) for name in rng.choice(names, count).tolist()
    )
    starts: list[Start] = []
    for name, group in groupby(places, key=lambda place: place[0]):  # each is decoded once
        episode = read_episode(folder, name, info, size=None if size == (info.height, info.width) else size)
        for _, begin in group:
            piece = slice(begin, begin + num_frames)
            # A copy: a view would keep the whole episode.
            frames, pressed = episode.frames[piece].copy(), episode.actions[piece].copy()
            recorded = episode.poses if with_poses else None
            poses = None if recorded is None else torch.from_numpy(recorded[piece].copy())
            named = f"{name}-{begin:05d}-{len(starts):04d}"
            starts.append(Start(named, torch.from_numpy(frames), torch.from_numpy(pressed), poses))
    return starts


def write_starts(folder: Path, starts: list[Start], info: DatasetInfo) -> None:
    """Write start moments as gameplay video."""
    info.save(folder)
    for start in starts:
        poses = None if start.poses is None else start.poses.tolist()
        with EpisodeWriter(folder, start.name, info) as writer:
            for index, frame in enumerate(start.frames.numpy()):
                action = start.actions[index].numpy() if index < len(start.frames) - 1 else None
                writer.add(frame, action, pose=None if poses is None else (*poses[index],))
