"""Out-and-back episodes: frames that show again what was seen before, by recorded poses.

Frame `turn + k` shows what frame `turn - k` showed. The frame at which the player turns back is counted once:
pairing the two halves of `2 n` frames mirrored would be off by one.
"""

# B batch, T frames, N episodes, K frames of the way back, A action axes, H W frame size

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from worldsim.actions import ActionLayout
from worldsim.data.dataset_info import INFO_FILE
from worldsim.data.episodes import EpisodeTable, read_table
from worldsim.data.sequences import EpisodeReference, read_episodes
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Clip, ClipBatch, Recordings
from worldsim.settings import check_settings, setting

MIN_EPISODES = 128
"""Fewer make intervals that say little; a report says where there were fewer, and of how many a mean is."""
RECALL, PAIRS = "recall", "pairs"
NOT_SEEN = -1
SPLIT = "heldout"
"""`training.collect` puts episodes into such a folder inside of the one that it is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """How near position, in the game's units, and heading must come back; 0 where moves are undone."""

    distance: float = setting(0.0, "In the game's units.", minimum=0)
    angle_degrees: float = setting(0.0, "Of the heading.", minimum=0)

    def __post_init__(self) -> None:
        check_settings(self, "returning poses: ")

    def is_same(self, poses: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return where poses `[..., 3]` (x, y, degrees) are the same, `[...]` bool."""
        distance = np.hypot(poses[..., 0] - others[..., 0], poses[..., 1] - others[..., 1])
        turned = np.abs((poses[..., 2] - others[..., 2] + 180) % 360 - 180)
        return (distance <= self.distance) & (turned <= self.angle_degrees)


@dataclass(frozen=True, slots=True)
class WayBack:
    """Where an episode turns back, and what its way back shows again.

    Attributes:
        turn: The frame at which the player turns back.
        seen: `[K]` int64, for each frame after it the last one before it, or it, whose pose is the same;
            `NOT_SEEN` where there is none.
    """

    turn: int
    seen: np.ndarray


def find_way_back(poses: np.ndarray, gap: int, tolerance: Tolerance) -> WayBack | None:
    """Find where an episode of poses `[T, 3]` (x, y, degrees) turns back and undoes its last `gap` moves.

    Returns:
        The turn at which most poses of the way out come back on the way back, the latest of these; None where
        the last one does not come back, or the player never left.
    """
    turns = np.arange(gap, len(poses) - gap)
    if not len(turns):
        return None
    back = np.arange(1, gap + 1)
    closes = tolerance.is_same(poses[turns[:, None] + back], poses[turns[:, None] - back])
    stays = tolerance.is_same(poses[turns[:, None] - back], poses[turns][:, None]).all(axis=1)
    counts = np.where(closes[:, -1] & ~stays, closes.sum(axis=1), 0)
    best = len(turns) - 1 - int(counts[::-1].argmax())
    if not counts[best]:
        return None
    turn = int(turns[best])
    return WayBack(turn, last_seen(poses, turn, gap, tolerance))


def last_seen(poses: np.ndarray, turn: int, gap: int, tolerance: Tolerance) -> np.ndarray:
    """Return for each of `gap` frames after a turn the last frame up to it with the same pose, `[gap]`."""
    same = tolerance.is_same(poses[turn + 1 : turn + gap + 1, None], poses[None, : turn + 1])
    latest = turn - same[:, ::-1].argmax(axis=1)
    return np.where(same.any(axis=1), latest, NOT_SEEN)


@dataclass(frozen=True, slots=True)
class ReturnBatch:
    """Decoded episodes, cut to one length: context, way out, turn, way back.

    Attributes:
        turn: The frame at which all turn back, counted from the beginning of the clips.
        seen: `[B, K]` bool, whether what a frame of the way back shows was seen before.
        names: Of the B episodes.
    """

    clips: ClipBatch
    turn: int
    seen: np.ndarray
    names: list[str]

    @property
    def real(self) -> Tensor:
        """Real frames of the way back, `[B, K, H, W, 3]` uint8."""
        return self.clips.frames[:, self.turn + 1 :]

    @property
    def actions(self) -> Tensor:
        """Actions that lead to them, `[B, K, A]` int64."""
        return self.clips.actions[:, self.turn : -1]


class ReturnSet:
    """The episodes of one gap, frames out and frames back, in the size and with the buttons of a world.

    Args:
        folder: Dataset folder whose episodes walk away and come back.
        context_frames: Frames before the way out, at most.
        num_episodes: Use only the first so many; 0 means all.

    Attributes:
        names: Of the episodes that are measured, N of them.
        gaps: `[N, K]` int64, frames from the last time that a frame of the way back was seen up to it, 0
            where it was not seen.
        context_frames: Frames before the way out.
        recordings: All episodes of the folder, those that do not come back too.
        source: Where the video came from.
        summary: What was found, in words.

    Raises:
        FileNotFoundError: If there is no such folder or a file is missing.
        WorldError: If it has other buttons, no poses, or fewer than two episodes come back.
    """

    def __init__(
        self,
        folder: Path,
        gap: int,
        actions: ActionLayout,
        size: tuple[int, int],
        *,
        tolerance: Tolerance,
        context_frames: int,
        num_episodes: int = 0,
    ) -> None:
        self.folder, self.gap, self.size = folder, gap, size
        recordings = Recordings(folder, actions, size, num_episodes)
        self.recordings, self.source = recordings, recordings.info.source
        found = [self._find(table, tolerance) for table in recordings.tables()]
        kept = [(e, way) for e, way in zip(recordings.episodes, found, strict=True) if way is not None]
        self.summary = f"{len(kept)} of {len(found)} episodes of {folder} come back after {gap} frames"
        if len(kept) < 2:
            raise WorldError(
                f"{self.summary}: at least 2 are needed, with poses that agree within {tolerance.distance} "
                f"units and {tolerance.angle_degrees} degrees"
            )
        self._episodes: list[EpisodeReference] = [episode for episode, _ in kept]
        self._ways = [way for _, way in kept]
        self.names = [episode.name for episode in self._episodes]
        self.context_frames = min(context_frames, *(way.turn - gap for way in self._ways))
        seen = np.stack([way.seen for way in self._ways])
        shown = np.stack([way.turn + 1 + np.arange(gap) for way in self._ways])
        self.gaps = np.where(seen == NOT_SEEN, 0, shown - seen)

    def _find(self, table: EpisodeTable, tolerance: Tolerance) -> WayBack | None:
        if table.poses is None:
            raise WorldError(f"{self.folder} records no poses, so what comes back is not known")
        return find_way_back(table.poses, self.gap, tolerance)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def turn(self) -> int:
        """The frame at which all turn back, counted from the beginning of what is decoded."""
        return self.context_frames + self.gap

    def describe(self) -> dict[str, Any]:
        """Return what is measured, as a JSON object; `gap_frames` is how long the last frame was not seen."""
        return {
            "count": len(self),
            "names": self.names,
            "told": self.summary,
            "context_frames": self.context_frames,
            "gap_frames": {"least": int(self.gaps[:, -1].min()), "mean": float(self.gaps[:, -1].mean())},
            "seen_share": float((self.gaps > 0).mean()),
        }

    def only(self, rows: Sequence[int]) -> ReturnSet:
        """Return the set of some of the episodes, in this order."""
        chosen = copy(self)
        chosen._episodes = [self._episodes[row] for row in rows]
        chosen._ways = [self._ways[row] for row in rows]
        chosen.names, chosen.gaps = [self.names[row] for row in rows], self.gaps[list(rows)]
        return chosen

    def first(self, count: int) -> ReturnSet:
        """Return the set of the first `count` episodes at most; 0 is all."""
        return self.only(range(min(count or len(self), len(self))))

    def moves(self) -> list[np.ndarray]:
        """Return the actions of each episode from the beginning of the context to the end, `[T - 1, A]`."""
        return self._cut([table.actions for table in self._tables()], self.turn + self.gap)

    def poses(self) -> list[np.ndarray]:
        """Return the poses of each episode from the beginning of the context to the end, `[T, 3]`."""
        known = [table.poses for table in self._tables() if table.poses is not None]  # of all of them
        return self._cut(known, self.turn + self.gap + 1)

    def _cut(self, arrays: Sequence[np.ndarray], length: int) -> list[np.ndarray]:
        begins = [way.turn - self.turn for way in self._ways]
        return [array[begin:][:length] for array, begin in zip(arrays, begins, strict=True)]

    def game_seeds(self) -> list[int | None]:
        """Return which game each episode was played in, None where it is not recorded."""
        return [table.game_seed for table in self._tables()]

    def _tables(self) -> list[EpisodeTable]:
        return [read_table(e.folder, e.name, e.info.actions) for e in self._episodes]

    def batches(self, batch_size: int, multiple: int = 1) -> Iterator[ReturnBatch]:
        """Decode the episodes in parallel, in batches of nearly equal size; never one alone.

        Of about `batch_size`, in which `multiple` episodes stay together.
        """
        first, decoded = 0, read_episodes(self._episodes, size=self.size)
        for count in batch_sizes(len(self), batch_size, multiple):
            episodes = [next(decoded) for _ in range(count)]
            rows = range(first, first + count)
            clips = [Clip(row, self._ways[row].turn - self.turn) for row in rows]
            cut = ClipBatch.of(clips, first, episodes, self.turn + self.gap + 1)
            yield ReturnBatch(cut, self.turn, self.gaps[first:][:count] > 0, self.names[first:][:count])
            first += count


def batch_sizes(count: int, batch_size: int, multiple: int = 1) -> list[int]:
    """Return sizes of batches of `count` rows in all, about `batch_size` each and at least 2.

    All are multiples of `multiple`, as `count` must be.
    """
    num_batches = min(math.ceil(count / batch_size), count // 2)
    return [multiple * len(part) for part in np.array_split(np.arange(count // multiple), num_batches)]


def find_sets(data: Path, kind: str) -> dict[int, Path]:
    """Return the folders `KIND-NNN` of a folder by their gap, smallest first.

    The episodes of a gap lie in the folder itself or in `heldout` inside of it.
    """
    found: dict[int, Path] = {}
    for folder in data.glob(f"{kind}-*") if data.is_dir() else ():
        match = re.fullmatch(rf"{kind}-0*([1-9][0-9]*)", folder.name)
        if match is not None and (place := find_recordings(folder)) is not None:
            found[int(match.group(1))] = place
    return dict(sorted(found.items()))


def find_recordings(data: Path) -> Path | None:
    """Return the dataset folder that `data`, or `heldout` inside of it, is; None if neither is one."""
    return next((place for place in (data, data / SPLIT) if (place / INFO_FILE).is_file()), None)


def choose_sets(data: Path, kind: str, gaps: Sequence[int]) -> Mapping[int, Path]:
    """Return the folders of some gaps, of all that there are where none are named.

    Raises:
        FileNotFoundError: If there is none, or one that was asked for is missing.
    """
    found = find_sets(data, kind)
    missing = [f"{kind}-{gap:03d}" for gap in gaps if gap not in found]
    if missing or not found:
        raise FileNotFoundError(
            f"{data} holds no folder {' or '.join(missing) or kind + '-NNN'} of episodes that come back "
            "(docs/consistency.md says how to record them)"
        )
    return {gap: found[gap] for gap in (gaps or found)}
