"""Turn folders of gameplay video into training sequences that never cross an episode border."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from worldsim.actions import ActionLayout
from worldsim.data.episodes import DatasetInfo, Episode, count_episode_frames, list_episodes, read_episode
from worldsim.errors import WorldError
from worldsim.runtime.cores import worker_count

MAX_WAITING_BYTES = 4 * 2**30
"""Of episodes that are decoded ahead: many workers and long episodes would fill the memory."""


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


def read_episodes(
    references: Sequence[EpisodeReference],
    *,
    num_workers: int = 0,
    size: tuple[int, int] | None = None,
    show_progress: bool = False,
) -> Iterator[Episode]:
    """Decode episodes in parallel and yield them in order, holding only a few at a time.

    The workers are threads: decoding leaves Python for nearly all of its time, and frames sent between
    processes would cost more than decoding them.

    Args:
        num_workers: Threads; 0 means one per core.
        size: Scale frames to this (height, width).
    """
    num_workers = worker_count(num_workers)
    total = sum(reference.num_frames for reference in references)
    waiting: deque[tuple[int, Future[Episode]]] = deque()
    remaining = deque(references)
    with (
        ThreadPoolExecutor(num_workers) as pool,
        tqdm(total=total, unit="frame", unit_scale=True, desc="decoding", disable=not show_progress) as bar,
    ):
        try:
            while True:
                while remaining and len(waiting) < num_workers + 1:
                    needed = remaining[0].num_bytes(size)
                    if waiting and needed + sum(each for each, _ in waiting) > MAX_WAITING_BYTES:
                        break
                    waiting.append((needed, pool.submit(remaining.popleft().read, size=size)))
                if not waiting:
                    return
                episode = waiting.popleft()[1].result()
                bar.update(len(episode))
                yield episode
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


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
