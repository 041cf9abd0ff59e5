"""Ends are rare: sequences that hold one are drawn more often than they come."""

# B batch rows

from __future__ import annotations

import numpy as np

from training.frames import LatentVideo
from worldsim.data.sequences import SequenceIndex


class EndDraws:
    """Put sequences that hold the end of an episode in the place of a share of those that were drawn.

    Such a sequence runs up to half a segment past the end, else every end would be the last frame of a
    sequence, and the network could tell ends by how long it has been running.

    Args:
        video: With rewards and ends.
        index: All places where a sequence fits.
        share: Share of the sequences that hold an end.
        segment_length: Frames of a segment, of which a sequence has one or more.

    Attributes:
        frequency: How much rarer an end is in the video than among the frames that are drawn, 0 to 1.
    """

    def __init__(self, video: LatentVideo, index: SequenceIndex, share: float, segment_length: int) -> None:
        ended = video.ended_episodes()
        self._starts = index.last_starts(ended)
        self._share = share if len(self._starts) else 0.0
        self._most_past = max(1, segment_length // 2)
        recorded = float(ended.sum()) / max(1, sum(video.lengths) - len(video.lengths))
        by_chance = len(self._starts) / len(index)
        frames = index.sequence_length - 1 - self._share * (self._most_past - 1) / 2
        drawn = (self._share + (1 - self._share) * by_chance) / frames
        self.frequency = min(1.0, recorded / drawn) if drawn else 1.0

    def replace(self, starts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return `starts` `[B]`, where sequences begin, with a share of them replaced."""
        if not self._share:
            return starts
        is_end = rng.random(len(starts)) < self._share
        past = rng.integers(self._most_past, size=len(starts))
        return np.where(is_end, rng.choice(self._starts, size=len(starts)) + past, starts)
