"""What every player is, person or program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Policy(Protocol):
    """Chooses an action from the picture on the screen.

    An action is one whole number per axis of control, `[axes]` int64; 0 presses nothing on that axis.
    """

    def reset(self, seed: int) -> None:
        """Start a new episode; the same seed and the same pictures give the same actions."""
        ...

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[axes]` int64, for `observation`, `[height, width, 3]` uint8."""
        ...

    def watch(self, observation: np.ndarray) -> None:
        """See a frame, `[height, width, 3]` uint8, at which somebody else acts."""
        ...


def check_range(name: str, limits: Sequence[int], floor: int = 1) -> tuple[int, int]:
    """Return the least and the greatest of numbers that a policy draws from.

    Args:
        name: Of the argument.
        limits: Two numbers.
        floor: What the least may be at least.

    Raises:
        ValueError: If they are not two, or out of order.
    """
    if len(limits) != 2 or not floor <= limits[0] <= limits[1]:
        raise ValueError(f"{name} needs {floor} <= least <= greatest, got {list(limits)}")
    return limits[0], limits[1]
