"""Start states of long rollouts, in ordinary recordings in which nothing has to come back."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from pathlib import Path

import numpy as np

from worldsim.actions import ActionLayout
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import ClipBatch, Recordings
from worldsim.evaluation.inputs.out_and_back import ReturnBatch, batch_sizes


class StartStates:
    """Frames of ordinary recordings to begin long dreams at; nothing has to come back after them.

    A dream watches `context_frames` before the one that it begins at. There are `count` at most.

    Attributes:
        recordings: All episodes of the folder.
        source: Where the video came from.
        summary: What was found, in words.

    Raises:
        FileNotFoundError: If there is no such folder or a file is missing.
        WorldError: If it has other buttons, or no two places for so many frames.
    """

    def __init__(
        self,
        folder: Path,
        actions: ActionLayout,
        size: tuple[int, int],
        *,
        context_frames: int,
        count: int,
        seed: int,
    ) -> None:
        self.recordings, self.turn = Recordings(folder, actions, size), context_frames
        self.source = self.recordings.info.source
        self._clips = self.recordings.choose(context_frames + 1, count, seed)
        self.summary = f"{len(self._clips)} starts in {len(self.recordings.episodes)} episodes of {folder}"
        if len(self._clips) < 2:
            raise WorldError(f"{self.summary}, after {context_frames} frames each: at least 2 are needed")

    def __len__(self) -> int:
        return len(self._clips)

    @property
    def names(self) -> list[str]:
        """Of their episodes."""
        return [self.recordings.name(clip) for clip in self._clips]

    def first(self, count: int) -> StartStates:
        """Return the first `count` of them at most; 0 is all."""
        chosen = copy(self)
        chosen._clips = self._clips[: count or None]
        return chosen

    def batches(self, batch_size: int) -> Iterator[ReturnBatch]:
        """Decode them in batches of nearly equal size, never one alone; no frame follows the starts."""
        first = 0
        for count in batch_sizes(len(self), batch_size):
            clips = self._clips[first : first + count]
            decoded = next(self.recordings.batches(clips, self.turn + 1, count))
            batch = ClipBatch(clips, first, decoded.frames, decoded.actions, decoded.poses)
            yield ReturnBatch(batch, self.turn, np.zeros((count, 0), bool), self.names[first:][:count])
            first += count
