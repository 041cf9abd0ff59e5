"""A player that repeats what was played before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class RecordedPolicy:
    """Play the actions of a recorded episode, then press nothing.

    Args:
        num_values: Number of values of each axis.
        path: The episode's `NAME.jsonl`, one object a frame with its `action`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line holds no action that fits the axes.
    """

    def __init__(self, num_values: Sequence[int], path: str | Path) -> None:
        self._num_values = np.asarray(num_values, dtype=np.int64)
        self._actions = self._read(Path(path))
        self.reset(0)

    def __len__(self) -> int:
        return len(self._actions)

    def reset(self, seed: int) -> None:
        """Start from the first action again; there is nothing random."""
        self._next = 0

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next recorded action, `[axes]` int64; the picture does not matter."""
        if self._next >= len(self._actions):
            return np.zeros_like(self._num_values)
        self._next += 1
        return self._actions[self._next - 1].copy()

    def watch(self, observation: np.ndarray) -> None:
        """See a frame at which somebody else acts; the picture does not matter."""

    def _read(self, path: Path) -> list[np.ndarray]:
        if not path.is_file():
            raise FileNotFoundError(f"there is no recording {path}")
        actions = []
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                action = json.loads(line)["action"]
                if action is None and number == len(lines):
                    break
                actions.append(self._check(np.array(action)))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path} line {number} holds no action for this world: {error}") from error
        return actions

    def _check(self, action: np.ndarray) -> np.ndarray:
        if action.shape != self._num_values.shape or action.dtype.kind != "i":
            raise ValueError(f"expected {len(self._num_values)} whole numbers, got {action.tolist()}")
        if ((action < 0) | (action >= self._num_values)).any():
            raise ValueError(f"{action.tolist()} is outside the axes' {self._num_values.tolist()} values")
        return action.astype(np.int64)
