"""A player that repeats a recorded episode."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policies.base import Policy

MAX_BYTES = 2**29


class RecordedPolicy(Policy):
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

    def _read(self, path: Path) -> list[np.ndarray]:
        if not path.is_file():
            raise FileNotFoundError(f"there is no recording {path}")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} is larger than {MAX_BYTES / 2**20:g} MiB")
        actions = []
        with path.open("rb") as file:  # only a line feed ends a line: a name may hold what else breaks one
            lines = list(file)
        for number, line in enumerate(lines, start=1):
            try:
                action = json.loads(line)["action"]
                if action is None and number == len(lines):
                    break
                actions.append(self._check(action))
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{path} line {number} holds no action for this world: {error}") from error
        return actions

    def _check(self, action: Any) -> np.ndarray:
        counts = self._num_values.tolist()
        if not isinstance(action, list) or len(action) != len(counts):
            raise ValueError(f"expected {len(counts)} integers, got {str(action):.40}")
        if not all(type(value) is int for value in action):
            raise ValueError(f"expected integers, got {str(action):.40}")
        if not all(0 <= value < count for value, count in zip(action, counts, strict=True)):
            raise ValueError(f"{str(action):.40} is outside the axes' {counts} values")
        return np.array(action, dtype=np.int64)
