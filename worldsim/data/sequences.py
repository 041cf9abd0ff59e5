"""Turn folders of gameplay video into training sequences that never cross an episode border."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from worldsim.actions import ActionLayout
from worldsim.data.episodes import DatasetInfo, Episode, count_episode_frames, list_episodes, read_episode
from worldsim.errors import WorldError
from worldsim.runtime.cores import worker_count

MAX_WAITING_BYTES = 4 * 2**30
"""Of episodes that are decoded ahead: many workers and long episodes would fill the memory."""
FRAMES_PER_PROCESS = 2000
"""Frames for which it pays to start a process."""
PREFETCH = 2
"""Episodes that each process is given ahead."""
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class EpisodeReference:
    """An episode on disk, checked but not decoded."""

    folder: Path
    name: str
    num_frames: int
    info: DatasetInfo

    def num_bytes(self, size: tuple[int, int] | None = None) -> int:
        """Return how large it is when decoded; frames are scaled to `size` (height, width) if given."""
        height, width = size or (self.info.height, self.info.width)
        return self.num_frames * height * width * 3

    def read(self, *, size: tuple[int, int] | None = None) -> Episode:
        """Decode it; frames are scaled to `size` (height, width) if given."""
        return read_episode(self.folder, self.name, self.info, size=size)


def load_episodes(
    folders: Sequence[Path | str], expected_actions: ActionLayout | None = None
) -> list[EpisodeReference]:
    """List the episodes of some dataset folders without decoding them.

    Args:
        expected_actions: Buttons every folder must have; key names may differ.

    Raises:
        FileNotFoundError: If a folder or file is missing.
        WorldError: If a folder is empty, has other buttons, a video is not readable or its jsonl has
            another length.
    """
    if not folders:
        raise WorldError("no folder of gameplay video was given")
    references = []
    for folder in map(Path, folders):
        info = DatasetInfo.load(folder)
        expected = expected_actions or info.actions
        expected_actions = expected
        if info.actions.buttons != expected.buttons:
            raise WorldError(
                f"{folder} has the buttons {', '.join(info.actions.buttons)}, "
                f"but {', '.join(expected.buttons)} are needed"
            )
        for name in list_episodes(folder):
            references.append(EpisodeReference(folder, name, count_episode_frames(folder, name, info), info))
    return references


class EpisodeFrames(Dataset[tuple[Episode, Tensor] | Exception]):
    """Episodes by their place in a list, decoded where they are asked for.

    Frames are a tensor of their own, which processes hand on by sharing its memory. An exception is returned:
    a process that raises it would wrap it into the text of a traceback.

    Args:
        references: The episodes.
        size: Scale frames to this (height, width).
    """

    def __init__(self, references: Sequence[EpisodeReference], size: tuple[int, int] | None) -> None:
        self._references = references
        self._size = size

    def __len__(self) -> int:
        return len(self._references)

    def __getitem__(self, index: int) -> tuple[Episode, Tensor] | Exception:
        """Return an episode without frames, and its frames `[T, height, width, 3]` uint8."""
        try:
            episode = self._references[index].read(size=self._size)
        except (OSError, ValueError, MemoryError) as error:
            return error
        return replace(episode, frames=episode.frames[:0]), torch.from_numpy(episode.frames)


def decoding_processes(
    references: Sequence[EpisodeReference], asked: int, size: tuple[int, int] | None = None
) -> int:
    """Return how many processes to decode episodes with: as many as are asked for, if there is enough to do.

    None, for little video, is decoding in this process. What they decode ahead is at most `MAX_WAITING_BYTES`
    and half of the memory that processes can share here.

    Args:
        asked: At most so many; 0 means one per core.
    """
    num_frames = sum(reference.num_frames for reference in references)
    largest = max((reference.num_bytes(size) for reference in references), default=0)
    free = shutil.disk_usage(SHARED_MEMORY).free // 2 if SHARED_MEMORY.is_dir() else MAX_WAITING_BYTES
    fitting = min(MAX_WAITING_BYTES, free) // max(1, largest * PREFETCH)
    workers = min(worker_count(asked), num_frames // FRAMES_PER_PROCESS, len(references))
    if fitting < workers:
        logging.getLogger(__name__).warning(
            "decoding in %d processes instead of %d: memory that they can share holds no more",
            fitting,
            workers,
        )
    return min(workers, fitting)


def read_episodes(
    references: Sequence[EpisodeReference],
    *,
    num_workers: int = 0,
    size: tuple[int, int] | None = None,
    show_progress: bool = False,
    claim: Callable[[EpisodeReference], bool] = lambda _: True,
) -> Iterator[Episode]:
    """Decode episodes in parallel and yield them in order, holding only a few at a time.

    The workers are processes: threads wait for each other in Python between two frames.

    Args:
        num_workers: Processes; 0 means one per core. Little video is decoded in this process.
        size: Scale frames to this (height, width).
        claim: Asked in order, some episodes ahead of decoding; False leaves one out.

    Raises:
        WorldError: For the first episode that cannot be decoded.
    """
    workers = decoding_processes(references, num_workers, size)
    total = sum(reference.num_frames for reference in references)
    loader = DataLoader(
        EpisodeFrames(references, size),
        batch_size=None,
        sampler=(index for index, reference in enumerate(references) if claim(reference)),
        num_workers=workers,
        collate_fn=_unchanged,
        prefetch_factor=PREFETCH if workers else None,
        generator=torch.Generator(),  # it draws a seed for its workers: not from the one that trainings seed
    )
    with tqdm(total=total, unit="frame", unit_scale=True, desc="decoding", disable=not show_progress) as bar:
        for found in loader:
            if isinstance(found, Exception):
                raise found
            episode, frames = found
            bar.update(len(frames))
            yield replace(episode, frames=frames.numpy())


def _unchanged(found: Any) -> Any:
    return found


class SequenceIndex:
    """All places where a sequence of some length fits into one episode, for episodes laid end to end.

    Args:
        episode_lengths: Frames of each episode, in the order of the concatenation.
        sequence_length: Frames of a sequence; shorter episodes are skipped.

    Raises:
        WorldError: If no episode is long enough.
    """

    def __init__(self, episode_lengths: Sequence[int], sequence_length: int) -> None:
        if sequence_length < 1:
            raise WorldError(f"sequence_length must be at least 1, got {sequence_length}")
        lengths = np.asarray(episode_lengths, dtype=np.int64)
        counts = np.maximum(lengths - sequence_length + 1, 0)
        if counts.sum() == 0:
            longest = int(lengths.max(initial=0))
            raise WorldError(
                f"no episode is as long as a sequence of {sequence_length} frames; the longest has {longest}"
            )
        self.sequence_length = sequence_length
        self._lengths = lengths
        self._offsets = np.cumsum(lengths) - lengths
        self._ends = np.cumsum(counts)
        self._begins = self._ends - counts

    def __len__(self) -> int:
        return int(self._ends[-1])

    def start(self, index: np.ndarray) -> np.ndarray:
        """Return the global frame where valid start number `index`, 0 to `len(self) - 1`, lies."""
        episode = np.searchsorted(self._ends, index, side="right")
        return self._offsets[episode] + index - self._begins[episode]

    def sample(self, generator: np.random.Generator, batch_size: int) -> np.ndarray:
        """Return `[batch]` int64 global start positions, uniform over all valid starts."""
        return self.start(generator.integers(len(self), size=batch_size))

    def last_starts(self, episodes: np.ndarray) -> np.ndarray:
        """Return where a sequence ends with the last frame of its episode.

        Args:
            episodes: `[E]` bool, which episodes are asked for.

        Returns:
            Global start positions, int64, one for each of those episodes that is long enough.
        """
        fits = self._ends > self._begins
        return (self._offsets + self._lengths - self.sequence_length)[fits & episodes]
