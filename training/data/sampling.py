"""Sampling of training sequences: long ones in segments, and those that hold an end more often.

Segments of a long sequence follow each other (truncated back-propagation through time). Each row of a batch
plays through one, a segment a step. Rows are out of step with each other, so that every batch holds memories
of all ages (docs/decisions/0015). With 3 segments and 3 rows, a letter for each long sequence:

    step     0    1    2    3    4    5
    row 0    a0   a1   a2   d0   d1   d2
    row 1    b1   b2   e0   e1   e2   h0
    row 2    c2   f0   f1   f2   i0   i1
    block    0 for a, b, c; 1 for d, e, f; 2 for g, h, i

All rows begin at step 0 with an empty memory, wherever they are in their sequence.
"""

# B batch rows

from __future__ import annotations

import numpy as np

from training.data.latents import LatentVideo
from worldsim.data.sequences import SequenceIndex


def places_at(step: int, num_segments: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the block of each row's long sequence and the segment of it at a step, `[B]` each."""
    ahead = np.arange(batch_size) * num_segments // batch_size
    block, segment = np.divmod(step + ahead, num_segments)
    return block, segment


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
