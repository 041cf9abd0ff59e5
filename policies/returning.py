"""A player that walks back: what it saw it sees again, so that a memory has something to learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies.base import Policy

# Beside the seed itself, so that where it turns back is independent of what the other player draws.
STREAM = 2
OPPOSITE = np.array([0, 2, 1])
"""For each value of an axis of two opposite buttons, the one that undoes it."""


class ReturningPolicy:
    """Let another player lead some frames away, let go, undo them one by one, the last one first; then anew.

    A game may turn faster the longer a key is held, and Doom does: letting go for a frame makes the way back
    begin as slowly as the way out.

    Between two such excursions that player goes on by itself for as many frames as an excursion has at least,
    or it would stay around the place where the episode began.

    Args:
        num_values: Number of values of each axis; each must be two opposite buttons, or none of them.
        player: Leads away.
        out_frames: Least and greatest number of frames of a way out.

    Raises:
        ValueError: If an axis has other buttons, or the frames are out of order.
    """

    def __init__(
        self, num_values: Sequence[int], player: Policy, out_frames: Sequence[int] = (8, 64)
    ) -> None:
        if any(count != len(OPPOSITE) for count in num_values):
            raise ValueError(
                "the player that walks back needs axes of two opposite buttons, three values each, "
                f"got {list(num_values)}"
            )
        least, greatest = out_frames
        if not 1 <= least <= greatest:
            raise ValueError(f"out_frames needs 1 <= least <= greatest, got {list(out_frames)}")
        self._player, self._out_frames = player, (least, greatest)
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start a new episode with an excursion."""
        self._rng = np.random.default_rng((seed, STREAM))
        self._player.reset(seed)
        self._way_back: list[np.ndarray] = []
        self._wait, self._out = 0, self._draw()

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[axes]` int64; the way back does not depend on the picture."""
        if self._out == 0 and self._way_back:
            return self._way_back.pop()
        if self._out == 0:
            self._wait, self._out = self._out_frames[0], self._draw()
        action = self._player.act(observation)
        if self._wait:
            self._wait -= 1
        else:
            self._out -= 1
            self._way_back.append(OPPOSITE[action])
            if self._out == 0:
                self._way_back.append(np.zeros_like(action))
        return action

    def _draw(self) -> int:
        return int(self._rng.integers(*self._out_frames, endpoint=True))
