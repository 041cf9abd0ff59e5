"""A person at the keys: held keys, told by whatever owns the keyboard, as an action."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from policies.base import Policy

# keys[axis][value - 1] are the names of the keys that choose this value of this axis.
KeyTable = Sequence[Sequence[Sequence[str]]]


class KeyboardPolicy(Policy):
    """Press what the held keys say; keys of different values of one axis cancel each other.

    Set `held` to the names of the keys that are down before each `act`.

    Args:
        num_values: Number of values of each axis.
        keys: For each axis, for each value from 1, the names of its keys.

    Raises:
        ValueError: If the table does not fit the axes or a key has two meanings.
    """

    def __init__(self, num_values: Sequence[int], keys: KeyTable) -> None:
        self._num_axes = len(num_values)
        self._meaning: dict[str, tuple[int, int]] = {}
        if [len(axis) + 1 for axis in keys] != list(num_values):
            raise ValueError(
                f"the table of keys has axes of {[len(axis) + 1 for axis in keys]} values, "
                f"but the world's have {list(num_values)}"
            )
        for axis, values in enumerate(keys):
            for value, names in enumerate(values, start=1):
                for name in names:
                    if name in self._meaning:
                        raise ValueError(f"key {name!r} is used twice")
                    self._meaning[name] = (axis, value)
        self.held: Collection[str] = ()

    @property
    def keys(self) -> frozenset[str]:
        """Names of all keys that mean something."""
        return frozenset(self._meaning)

    def reset(self, seed: int) -> None:
        """Start a new episode; keys still held stay held."""

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the action of the held keys, `[axes]` int64."""
        action = np.zeros(self._num_axes, dtype=np.int64)
        pressed = {self._meaning[name] for name in self.held if name in self._meaning}
        for axis, value in pressed:
            if not any(other != value for same, other in pressed if same == axis):
                action[axis] = value
        return action
