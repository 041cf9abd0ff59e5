"""Players that do not look at the picture, to compare others with: still, random, and to and fro."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies.base import Policy, check_range

FIRST, SECOND = 1, 2


class StillPolicy(Policy):
    """Press nothing.

    Args:
        num_values: Number of values of each axis.
    """

    def __init__(self, num_values: Sequence[int]) -> None:
        self._num_axes = len(num_values)

    def reset(self, seed: int) -> None:
        """Start a new episode, which is no different."""

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return zeros, `[axes]` int64; the picture does not matter."""
        return np.zeros(self._num_axes, dtype=np.int64)


class RandomPolicy(Policy):
    """Hold an action drawn uniformly from all actions, then draw the next.

    Args:
        num_values: Number of values of each axis.
        hold_frames: Minimum and maximum number of frames an action is held.
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


class ToAndFroPolicy(Policy):
    """Hold the first button of an axis for half a period, then the second, and so on.

    Args:
        num_values: Number of values of each axis; the last one of three values is used.
        period_frames: Frames of a run there and back, at least 2.

    Raises:
        ValueError: If there is no such axis, or the period is too short.
    """

    def __init__(self, num_values: Sequence[int], period_frames: int = 120) -> None:
        axes = [axis for axis, count in enumerate(num_values) if count == 3]
        if not axes:
            raise ValueError(
                f"the player that runs to and fro needs an axis of three values, got {list(num_values)}"
            )
        if period_frames < 2:
            raise ValueError(f"period_frames must be at least 2, got {period_frames}")
        self._axis, self._num_axes = axes[-1], len(num_values)
        self._period_frames = period_frames
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start a new episode, somewhere in the run to the first side."""
        self._frame = int(np.random.default_rng(seed).integers(self._period_frames))

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[axes]` int64; the picture does not matter."""
        action = np.zeros(self._num_axes, dtype=np.int64)
        is_first = self._frame % self._period_frames < self._period_frames / 2
        action[self._axis] = FIRST if is_first else SECOND
        self._frame += 1
        return action
