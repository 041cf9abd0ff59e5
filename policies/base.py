"""What every player is, person or program."""

from __future__ import annotations

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
