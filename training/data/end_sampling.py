"""Ends are rare: sequences that hold one are drawn more often than they come."""

# B batch rows

from __future__ import annotations

import numpy as np

from training.data.latents import LatentVideo
from worldsim.data.sequences import SequenceIndex


class EndDraws:
    """Put sequences that hold the end of an episode in the place of a share of those that were drawn.

    Such a sequence runs past the end, so that ends are equally likely in many places of it. Where they come
    late only, the network can tell by how long it has been running, and learns that nobody dies early and
    many do later on (docs/decisions/0029).

    Args:
        video: With rewards and ends.
        index: All places where a sequence fits.
        share: Share of the sequences that hold an end.
        places: Of an end, counted from the last frame of a sequence backwards: 1 is that frame alone. None is
            all but the first frame.

    Attributes:
        frequency: How much rarer an end is in the video than among the frames that are drawn, 0 to 1.
    """

    def __init__(
        self, video: LatentVideo, index: SequenceIndex, share: float, places: int | None = None
    ) -> None:
        ended = video.ended_episodes()
        self._starts = index.last_starts(ended)
        self._share = share if len(self._starts) else 0.0
        self._places = max(1, index.sequence_length - 1 if places is None else places) if self._share else 1
        recorded = float(ended.sum()) / max(1, sum(video.lengths) - len(video.lengths))
        by_chance = len(self._starts) / len(index)
        ends = self._share + (1 - self._share) * by_chance  # of a sequence
        drawn = ends / (index.sequence_length - 1 - ends * (self._places - 1) / 2)
        self.frequency = min(1.0, recorded / drawn) if drawn else 1.0

    def replace(self, starts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return `starts` `[B]`, where sequences begin, with a share of them replaced.

        Those that hold an end by chance, as their last frame, run past it as well.
        """
        if not self._share:
            return starts
        is_end = rng.random(len(starts)) < self._share
        past = rng.integers(self._places, size=len(starts))
        starts = np.where(is_end, rng.choice(self._starts, size=len(starts)), starts)
        return np.where(np.isin(starts, self._starts), starts + past, starts)
