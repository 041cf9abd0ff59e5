"""A player that walks back: what it saw it sees again, so that a memory has something to learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies import streams
from policies.base import Policy, check_range

REST_FRAMES = 10
OPPOSITE = np.array([0, 2, 1])
"""For each value of an axis of two opposite buttons, the one that undoes it."""


class ReturningPolicy:
    """Let another player lead some frames away, then undo them one by one, the last one first; then anew.

    Who walks in Doom slides on for half a second, and who turns turns faster the longer a key is held, also
    from one direction to the other. Sums of walks and turns are undone all the same if the player stands
    still before and after each way, and lets all keys go for a frame between two actions. Where a wall stops
    or deflects it on one way, it ends elsewhere; so on some excursions it only looks around.

    Between two excursions the other player goes on by itself for as many frames as an excursion has at least,
    or the player would stay around the place where the episode began.

    Args:
        num_values: Number of values of each axis; each must be two opposite buttons, or none of them.
        player: Leads away.
        out_frames: Minimum and maximum number of frames of a way out.
        look_share: Share of the excursions on which only the last axis is used, and it is turning in worlds
            that turn.

    Raises:
        ValueError: If an axis has other buttons, the frames are out of order, or the share is none.
    """

    def __init__(
        self,
        num_values: Sequence[int],
        player: Policy,
        out_frames: Sequence[int] = (8, 64),
        look_share: float = 0.5,
    ) -> None:
        if any(count != len(OPPOSITE) for count in num_values):
            raise ValueError(
                "the player that walks back needs axes of two opposite buttons, three values each, "
                f"got {list(num_values)}"
            )
        limits = check_range("out_frames", out_frames)
        if not 0 <= look_share <= 1:
            raise ValueError(f"look_share must lie in [0, 1], got {look_share}")
        self._player, self._out_frames, self._look_share = player, limits, look_share
        self._nothing = np.zeros(len(num_values), dtype=np.int64)
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start a new episode with an excursion."""
        self._rng = np.random.default_rng((seed, streams.RETURNING))
        self._player.reset(seed)
        self._planned: list[np.ndarray] = []  # the next one last
        self._last, self._wait = self._nothing, 0
        self._begin()

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[axes]` int64; the way back does not depend on the picture."""
        if self._planned:
            self._player.watch(observation)
            return self._planned.pop()
        if self._wait:
            self._wait -= 1
            if self._wait == 0:
                self._begin()
            return self._player.act(observation)
        action = self._player.act(observation)
        self._last = self._let_go_between(self._only_last(action) if self._looks else action)
        self._way_out.append(self._last)
        if len(self._way_out) == self._length:
            self._turn_round()
        return self._last

    def watch(self, observation: np.ndarray) -> None:
        """See a frame at which somebody else acts: the way back would lead elsewhere, so it starts again."""
        self._player.watch(observation)
        self._wait = 0
        self._begin()

    def _begin(self) -> None:
        self._way_out: list[np.ndarray] = []
        self._length = int(self._rng.integers(*self._out_frames, endpoint=True))
        self._looks = bool(self._rng.random() < self._look_share)
        self._planned, self._last = self._rest(), self._nothing

    def _turn_round(self) -> None:
        back = [OPPOSITE[action] for action in self._way_out]
        self._planned = [*self._rest(), *back, *self._rest()]
        self._wait = self._out_frames[0]

    def _rest(self) -> list[np.ndarray]:
        return [self._nothing] * REST_FRAMES

    def _only_last(self, action: np.ndarray) -> np.ndarray:
        return np.concatenate([self._nothing[:-1], action[-1:]])

    def _let_go_between(self, action: np.ndarray) -> np.ndarray:
        is_another = self._last.any() and (action != self._last).any()
        return self._nothing if is_another else action
