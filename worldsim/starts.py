"""Start moments: a few real frames to watch before play begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episodes import EpisodeWriter, list_episodes, read_episode


@dataclass(frozen=True, slots=True)
class Start:
    """A moment to begin from: real frames to watch, the last of which is where play begins.

    Attributes:
        name: Name for a menu.
        frames: `[T, H, W, 3]` uint8.
        actions: `[T, A]` int64; action i leads from frame i to i + 1, the last one is not used.
    """

    name: str
    frames: Tensor
    actions: Tensor


def read_starts(folder: Path) -> list[Start]:
    """Read start moments from a folder of gameplay video, one per episode."""
    info = DatasetInfo.load(folder)
    starts = []
    for name in list_episodes(folder):
        episode = read_episode(folder, name, info)
        starts.append(Start(name, torch.from_numpy(episode.frames), torch.from_numpy(episode.actions)))
    return starts


def write_starts(folder: Path, starts: list[Start], info: DatasetInfo) -> None:
    """Write start moments as gameplay video."""
    info.save(folder)
    for start in starts:
        with EpisodeWriter(folder, start.name, info) as writer:
            for frame, action in zip(start.frames[:-1].numpy(), start.actions[:-1].numpy(), strict=True):
                writer.add(frame, action)
            writer.add(start.frames[-1].numpy(), None)
