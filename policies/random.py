"""A player that presses anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies.base import Policy, check_range


class RandomPolicy(Policy):
    """Hold an action drawn uniformly from all actions, then draw the next.

    Args:
        num_values: Number of values of each axis.
        hold_frames: Least and greatest number of frames an action is held.
    """

    def __init__(self, num_values: Sequence[int], hold_frames: Sequence[int] = (4, 25)) -> None:
        self._num_values = np.asarray(num_values, dtype=np.int64)
        self._hold_frames = check_range("hold_frames", hold_frames)
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start a new episode."""
        self._rng = np.random.default_rng(seed)
        self._frames_left = 0

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the held action, `[axes]` int64; the picture does not matter."""
        if self._frames_left == 0:
            self._action = self._rng.integers(self._num_values)
            self._frames_left = int(self._rng.integers(*self._hold_frames, endpoint=True))
        self._frames_left -= 1
        return self._action.copy()
