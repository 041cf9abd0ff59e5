"""Clips of recorded play to compare a world with, chosen by a seed and decoded a batch at a time."""

# B batch, T frames, A action axes, H W frame size

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from worldsim.actions import ActionLayout
from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episodes import Episode, EpisodeTable, read_table
from worldsim.data.sequences import EpisodeReference, load_episodes
from worldsim.errors import WorldError
from worldsim.model.memory.pose import relative_poses
from worldsim.simulator import Simulator
from worldsim.starts import Start
from worldsim.state import WorldState
from worldsim.world.world import World

Place = TypeVar("Place")
CACHE_BYTES = 3 * 2**29
"""Of decoded episodes: every measurement goes through all of them again, and decoding is slow."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A piece of a recorded episode, not decoded: the index of the episode and the first frame."""

    episode: int
    begin: int


@dataclass(frozen=True, slots=True)
class ClipBatch:
    """Decoded clips of one length.

    Attributes:
        clips: The B clips.
        first: Place of the first of them among all that were asked for.
        frames: `[B, T, H, W, 3]` uint8.
        actions: `[B, T, A]` int64; action i leads from frame i to i + 1.
        poses: `[B, T, 3]`, from where each frame was seen, as recorded; None where they are not.
    """

    clips: Sequence[Clip]
    first: int
    frames: Tensor
    actions: Tensor
    poses: Tensor | None = None

    @classmethod
    def of(cls, clips: Sequence[Clip], first: int, episodes: Sequence[Episode], length: int) -> ClipBatch:
        """Cut clips of `length` frames out of their episodes; the first of them has the place `first`."""
        pieces = [(e, slice(c.begin, c.begin + length)) for c, e in zip(clips, episodes, strict=True)]
        frames, actions = (
            torch.from_numpy(np.stack([getattr(episode, name)[piece] for episode, piece in pieces]))
            for name in ("frames", "actions")
        )
        found = [torch.from_numpy(e.poses[piece]) for e, piece in pieces if e.poses is not None]
        return cls(clips, first, frames, actions, torch.stack(found) if len(found) == len(pieces) else None)

    def path(self, world: World) -> Tensor | None:
        """Return the recorded poses as a world is told them, `[B, T, 3]` (`path_of`)."""
        if self.poses is None or world.on_level_map:
            return self.poses
        return relative_poses(self.poses)

    def begin_dreams(
        self, simulator: Simulator, context_frames: int, seed: int, *, are_told: bool = False
    ) -> WorldState:
        """Let a batch of dreams watch the first `context_frames` frames; each has its own noise.

        In a world that follows poses they find out from where, unless they `are_told`; in one that draws a
        level by its map they always are. That is of these frames; later ones are followed.
        """
        are_told |= simulator.world.on_level_map
        paths = self.poses if are_told and self.poses is not None else [None] * len(self.frames)
        rows = zip(self.frames, self.actions, paths, strict=True)
        starts = [
            Start(
                f"clip-{self.first + row}",
                frames[:context_frames],
                actions[:context_frames],
                None if path is None else path[:context_frames],
            )
            for row, (frames, actions, path) in enumerate(rows)
        ]
        return simulator.start(starts, [seed + self.first + row for row in range(len(starts))])


def start_of(episode: Episode, begin: int, end: int, world: World) -> Start:
    """Return the start of a dream of a world that watches some frames of an episode."""
    frames, actions = episode.frames[begin:end], episode.actions[begin:end]
    recorded = episode.poses if world.on_level_map else None
    poses = None if recorded is None else torch.from_numpy(recorded[begin:end])
    return Start(episode.name, torch.from_numpy(frames), torch.from_numpy(actions), poses)


class Recordings:
    """Recorded episodes of the real game, in the size and with the buttons of a world.

    Video of another size (height and width) is scaled. Only the first `num_episodes` count; 0 means all.

    Attributes:
        read: Decodes an episode by its index; the last ones are kept.

    Raises:
        FileNotFoundError: If there is no such folder or a file is missing.
        WorldError: If it holds no episode, one that cannot be read, or other buttons.
    """

    def __init__(
        self, folder: Path, actions: ActionLayout, size: tuple[int, int], num_episodes: int = 0
    ) -> None:
        self.folder = folder
        self.info = DatasetInfo.load(folder)
        found: list[EpisodeReference] = load_episodes([folder], actions)
        self.episodes = found[: num_episodes or None]
        self.size = size
        largest = max(self.lengths) * size[0] * size[1] * 3
        self.read = lru_cache(maxsize=max(1, CACHE_BYTES // largest))(self._decode)

    @property
    def lengths(self) -> list[int]:
        """Frames of each episode."""
        return [episode.num_frames for episode in self.episodes]

    def name(self, clip: Clip) -> str:
        """Return the name of a clip's episode."""
        return self.episodes[clip.episode].name

    def tables(self) -> list[EpisodeTable]:
        """Read actions and poses of every episode, without frames."""
        return [read_table(e.folder, e.name, e.info.actions) for e in self.episodes]

    @cached_property
    def have_poses(self) -> bool:
        """Whether every episode records from where its frames were seen."""
        return all(table.poses is not None for table in self.tables())

    def choose(self, length: int, count: int, seed: int) -> list[Clip]:
        """Choose places of `length` frames at random, all equally likely, sorted by episode.

        They are fewer than `count` where there are not so many places.

        Raises:
            WorldError: If no episode is that long.
        """
        places = [
            Clip(episode, begin)
            for episode, frames in enumerate(self.lengths)
            for begin in range(frames - length + 1)
        ]
        if not places:
            raise WorldError(
                f"the episodes in {self.folder} are too short: {length} frames are needed, "
                f"the longest has {max(self.lengths)}"
            )
        return pick(places, count, seed)

    def batches(self, clips: Sequence[Clip], length: int, batch_size: int) -> Iterator[ClipBatch]:
        """Decode clips, `batch_size` at a time, in order."""
        for first in range(0, len(clips), batch_size):
            chunk = clips[first : first + batch_size]
            yield ClipBatch.of(chunk, first, [self.read(clip.episode) for clip in chunk], length)

    def mean_frame(self, clips: Sequence[Clip], length: int) -> Tensor:
        """Return the mean of the first `length` frames of all clips, `[H, W, 3]` uint8."""
        total = torch.zeros(*self.size, 3, dtype=torch.float64)
        for batch in self.batches(clips, length, 1):
            total += batch.frames[0].to(torch.float64).mean(dim=0)
        return (total / len(clips)).round().to(torch.uint8)

    def _decode(self, index: int) -> Episode:
        return self.episodes[index].read(size=self.size)


def pick(places: Sequence[Place], count: int, seed: int) -> list[Place]:
    """Choose `count` places at random without repetition, in order."""
    chosen = np.random.default_rng(seed).permutation(len(places))[:count]
    return [places[index] for index in sorted(chosen.tolist())]
