"""A player that does nothing: how long one lasts, or how much one gains, without playing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies.base import Policy


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
