"""Adaptive denoising steps and threads, to hold a frame rate."""

from __future__ import annotations

from collections import deque

import numpy as np

NUM_FRAMES = 16
"""Frames that are looked at before anything is changed."""
ROOM = 0.9
"""Share of a frame's time that one more step may fill, so that the steps do not go up and down."""
MAX_PATIENCE = 16
"""Most times `NUM_FRAMES` frames to wait before one more step is tried again that was too slow before."""

NUM_TRIED, FEWEST, LONG_SECONDS = 8, 3, 1.0
"""Frames of a trial of other threads; and those that must do where they take so long, or are `HOPELESS`."""
GAIN, HOPELESS, MUCH_SLOWER = 0.9, 1.5, 2.0
"""Share of a frame's time that a trial must come down to; and what makes a new one worthwhile."""
FRAMES_BETWEEN_TRIALS = 600


class Governor:
    """Says with how many denoising steps a frame rate is held: as many as were asked for, or fewer.

    A rise that turns out too slow is taken back, and the next one waits twice as long.

    Args:
        frame_rate: Frames per second to hold; 0 holds none.
        wanted: Denoising steps that were asked for.
    """

    def __init__(self, frame_rate: float, wanted: int) -> None:
        self.frame_rate = frame_rate
        self.wanted = self.steps = wanted
        self._frames: deque[tuple[float, float]] = deque(maxlen=NUM_FRAMES)
        self._patience, self._calm = 1, 0
        self._has_risen = False

    def want(self, steps: int) -> None:
        """Ask for another number of steps, and begin with it."""
        self.wanted = self.steps = steps
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
        if may_rise and self.steps < self.wanted and busy + predict / self.steps < ROOM * period:
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


class ThreadGovernor:
    """Says with how many threads frames come fastest, where the frame rate is not held; found by trying.

    Threads that share an operator wait for each other at its end. Where another program keeps a core busy
    they all wait for the one that shares it: two threads are then several times slower than one.

    Args:
        frame_rate: Frames per second to hold; 0 is as many as possible.
        most: Threads to begin with, and never to exceed; with 1 nothing is tried.
    """

    def __init__(self, frame_rate: float, most: int) -> None:
        self.threads = most
        self._most, self._frame_rate = most, frame_rate
        self._times: deque[float] = deque(maxlen=NUM_FRAMES)
        self._before: tuple[int, float] | None = None  # of a trial: the threads before it, and their time
        self._usual = np.inf  # time of a frame with these threads, the best that was seen
        self._tried: dict[int, tuple[float, int]] = {}  # time it did not beat, and how many trials failed
        self._num_frames = 0  # since the last trial

    @property
    def is_trying(self) -> bool:
        """Whether what is measured now decides whether these threads stay."""
        return self._before is not None

    def restart(self) -> None:
        """Forget what was measured: it says nothing about the frames to come."""
        self._times.clear()
        self._usual = np.inf

    def note(self, busy_seconds: float, *, is_recording: bool = False) -> bool:
        """Note what a frame took, without the time slept; returns whether `threads` has changed.

        Args:
            busy_seconds: All of it.
            is_recording: Whether a change would cut a recording: then only one that is needed is tried.
        """
        if self._most == 1:
            return False
        self._times.append(busy_seconds)
        self._num_frames += 1
        if self._before is not None:
            return self._judge(*self._before)
        if not self._has(NUM_FRAMES):
            return False
        median = float(np.median(self._times))
        is_slower = median > MUCH_SLOWER * self._usual
        self._usual = min(self._usual, median)
        if median * self._frame_rate <= 1 and self._frame_rate:
            return False
        threads = self._candidate(median)
        if threads is None or (is_recording and not (is_slower and threads < self.threads)):
            return False
        self._before = self.threads, median
        self._change(threads)
        return True

    def _has(self, num_frames: int) -> bool:
        """Whether enough was measured: so many frames, or some that nobody wants to wait for."""
        are_slow = len(self._times) >= FEWEST and sum(self._times) >= LONG_SECONDS
        return are_slow or len(self._times) >= num_frames

    def _candidate(self, median: float) -> int | None:
        """Return other threads that are worth a trial where a frame takes `median` seconds."""
        for threads in (self.threads // 2, min(2 * self.threads, self._most)):
            if threads < 1 or threads == self.threads:
                continue
            unbeaten, failures = self._tried.get(threads, (0.0, 0))
            wait = FRAMES_BETWEEN_TRIALS * min(2**failures, MAX_PATIENCE)
            if median > HOPELESS * unbeaten or self._num_frames >= wait:
                return threads
        return None

    def _judge(self, before: int, median_before: float) -> bool:
        """End a trial where it can be judged; returns whether the threads before it are back."""
        median = float(np.median(self._times))
        is_hopeless = len(self._times) >= FEWEST and min(self._times) > HOPELESS * median_before
        if not self._has(NUM_TRIED) and not is_hopeless:
            return False
        self._before = None
        if median < GAIN * median_before:
            self._tried[before] = median, 0
            self._usual, self._num_frames = median, 0
            return False
        failures = self._tried.get(self.threads, (0.0, 0))[1]
        self._tried[self.threads] = median_before, failures + 1
        self._change(before)
        self._usual = median_before
        return True

    def _change(self, threads: int) -> None:
        self.threads, self._num_frames = threads, 0
        self.restart()
