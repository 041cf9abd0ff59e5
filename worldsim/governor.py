"""Holding a frame rate by drawing with fewer denoising steps."""

from __future__ import annotations

from collections import deque

import numpy as np

NUM_FRAMES = 16
"""Frames that are looked at before anything is changed."""
ROOM = 0.9
"""Share of a frame's time that one more step may fill, so that the steps do not go up and down."""
MAX_PATIENCE = 16
"""Most times `NUM_FRAMES` frames to wait before one more step is tried again that was too slow before."""


class Governor:
    """Says with how many denoising steps a frame rate is held: as many as were asked for, or fewer.

    A rise that turns out too slow is taken back, and the next one waits twice as long.

    Args:
        frame_rate: Frames per second to hold; 0 holds none.
        wanted: Denoising steps that were asked for.

    Attributes:
        frame_rate: Frames per second to hold.
        steps: Denoising steps to draw with.
    """

    def __init__(self, frame_rate: float, wanted: int) -> None:
        self.frame_rate = frame_rate
        self._wanted = self.steps = wanted
        self._frames: deque[tuple[float, float]] = deque(maxlen=NUM_FRAMES)
        self._patience, self._calm = 1, 0
        self._has_risen = False

    @property
    def wanted(self) -> int:
        """Denoising steps that were asked for."""
        return self._wanted

    def want(self, steps: int) -> None:
        """Ask for another number of steps, and begin with it."""
        self._wanted = self.steps = steps
        self._patience, self._has_risen = 1, False
        self.restart()

    def restart(self) -> None:
        """Forget what was measured: it says nothing about the frames to come."""
        self._frames.clear()
        self._calm = 0

    def note(self, busy_seconds: float, predict_seconds: float, *, may_rise: bool = True) -> bool:
        """Note what a frame took, without the time slept; returns whether `steps` has changed.

        Args:
            busy_seconds: All of it.
            predict_seconds: The part that grows with the steps.
            may_rise: Whether more steps may be chosen.
        """
        self._frames.append((busy_seconds, predict_seconds))
        if not self.frame_rate or len(self._frames) < NUM_FRAMES:
            return False
        busy, predict = (float(np.median(column)) for column in zip(*self._frames, strict=True))
        period = 1 / self.frame_rate
        if busy > period and self.steps > 1:
            if self._has_risen:
                self._patience = min(2 * self._patience, MAX_PATIENCE)
            self._change(self._fitting(busy, predict, period), has_risen=False)
            return True
        if may_rise and self.steps < self._wanted and busy + predict / self.steps < ROOM * period:
            self._calm += 1
            if self._calm >= self._patience * NUM_FRAMES:
                self._change(self.steps + 1, has_risen=True)
                return True
        else:
            self._calm = 0
        return False

    def _fitting(self, busy: float, predict: float, period: float) -> int:
        """Return how many steps fit, fewer than now."""
        per_step = predict / self.steps
        too_many = int(np.ceil((busy - period) / per_step)) if per_step > 0 else 1
        return max(1, self.steps - max(1, too_many))

    def _change(self, steps: int, *, has_risen: bool) -> None:
        self.steps, self._has_risen = steps, has_risen
        self.restart()
