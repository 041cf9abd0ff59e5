"""A player that walks over a grid away from where it is, and back again by the same way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies import streams
from policies.base import check_range

REACH = 38
"""Tiles from where the episode began, along each axis, that it never goes beyond."""
STRAIGHT = 0.7
"""How often it goes on in the same direction where it could turn."""
REST = 0.1
"""Share of the frames between two excursions at which it presses nothing."""
MOVES = np.array([[1, 0], [2, 0], [0, 1], [0, 2]])
"""Up, down, left, right, as values of the axes."""
STEPS = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
"""Rows and columns that each of them moves by."""
OPPOSITE = np.array([1, 0, 3, 2])


class OutAndBackPolicy:
    """Wander, walk n moves out, and the n opposite moves back in the opposite order; then anew.

    The walk out goes straight on more often than not and steps on no tile of its own twice where it can help
    it, so that the way back shows what has long been out of sight. Wandering shows tiles again from
    elsewhere: ways that are undone say that the place is the same, not where it lies. The player counts its
    own moves: it needs no pose, but a game in which each of them is one tile.

    Args:
        num_values: Number of values of each axis; must be those of grid recall.
        out_frames: Minimum and maximum number n of moves out.
        context_frames: Minimum and maximum number of frames of wandering before.

    Raises:
        ValueError: If the axes are others, or numbers are out of order.
    """

    NUM_VALUES = (3, 3)

    def __init__(
        self,
        num_values: Sequence[int],
        out_frames: Sequence[int] = (4, 50),
        context_frames: Sequence[int] = (4, 64),
    ) -> None:
        if tuple(num_values) != self.NUM_VALUES:
            raise ValueError(f"out-and-back needs the axes {list(self.NUM_VALUES)}, got {list(num_values)}")
        self._out_frames = check_range("out_frames", out_frames)
        self._context_frames = check_range("context_frames", context_frames, floor=0)
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start a new episode."""
        self._rng = np.random.default_rng((seed, streams.OUT_AND_BACK))
        self._place = np.zeros(2, dtype=np.int64)
        self._direction = int(self._rng.integers(len(MOVES)))
        self._plan()

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[2]` int64; the picture does not matter."""
        if not self._planned:
            self._plan()
        return self._planned.pop().copy()

    def watch(self, observation: np.ndarray) -> None:
        """See a frame at which somebody else acts: where that leads is unknown, so the walk starts again."""
        self._place = np.zeros(2, dtype=np.int64)
        self._plan()

    def _plan(self) -> None:
        wander: list[np.ndarray] = []
        for rests in self._rng.random(self._draw(self._context_frames)) < REST:
            wander.append(np.zeros(2, dtype=np.int64) if rests else MOVES[self._move(set())])
        begin, visited = self._place, {self._tile(self._place)}
        out = [self._move(visited) for _ in range(self._draw(self._out_frames))]
        self._place = begin
        back = [MOVES[OPPOSITE[direction]] for direction in reversed(out)]
        self._planned = [*wander, *(MOVES[direction] for direction in out), *back][::-1]  # the next one last

    def _draw(self, limits: Sequence[int]) -> int:
        minimum, maximum = limits
        return int(self._rng.integers(minimum, maximum, endpoint=True))

    def _move(self, visited: set[tuple[int, int]]) -> int:
        """Choose a direction, go there, and add the tile to `visited`."""
        places = self._place + STEPS
        free = [
            bool(np.abs(place).max() <= REACH) and direction != OPPOSITE[self._direction]
            for direction, place in enumerate(places)
        ]
        fresh = [free[i] and self._tile(place) not in visited for i, place in enumerate(places)]
        choices = np.flatnonzero(fresh if any(fresh) else free)
        if not (self._direction in choices and self._rng.random() < STRAIGHT):
            self._direction = int(self._rng.choice(choices))
        self._place = places[self._direction]
        visited.add(self._tile(self._place))
        return self._direction

    def _tile(self, place: np.ndarray) -> tuple[int, int]:
        row, column = place.tolist()
        return row, column
