"""The interface of a player, person or program, and checks that players share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        """See a frame, `[height, width, 3]` uint8, at which somebody else acts; most players need not."""


class PlayedGame(Protocol):
    """What a player may want to know of the game; the entries of `worldsim.games.registry` tell it."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def players(self) -> Mapping[str, float]:
        """Its scripted players, keys of `policies.SCRIPTED`, with their shares of the episodes."""
        ...

    @property
    def tells_map(self) -> bool:
        """Whether a `Navigator` is told its map."""
        ...


def check_axes(num_values: Sequence[int], needed: Sequence[int], needs: str) -> None:
    """Check the number of values of each axis.

    Raises:
        ValueError: If they are not the `needed` ones; it begins with `needs`, who needs what in words.
    """
    if tuple(num_values) != tuple(needed):
        raise ValueError(f"{needs}, got axes of {list(num_values)} values")


def check_range(name: str, limits: Sequence[int], floor: int = 1) -> tuple[int, int]:
    """Return the minimum and the maximum of numbers that a policy draws from, at least `floor`.

    Raises:
        ValueError: If `limits`, the argument called `name`, are not two, or out of order.
    """
    if len(limits) != 2 or not floor <= limits[0] <= limits[1]:
        raise ValueError(f"{name} needs {floor} <= least <= greatest, got {list(limits)}")
    return limits[0], limits[1]
