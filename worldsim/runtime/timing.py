"""Holding a frame rate, and measuring what a frame costs."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_IMPORTED_AT = time.perf_counter()
_MAX_STEPS = 10_000


class FrameClock:
    """Hold a frame rate by sleeping what is left of each frame; time that was lost is not made up for.

    Args:
        frame_rate: Frames per second; 0 never sleeps.

    Attributes:
        busy_seconds: What passed between the last two calls of `wait`, without the time slept.
    """

    def __init__(self, frame_rate: float) -> None:
        self._period = 1 / frame_rate if frame_rate > 0 else 0.0
        self._due = self._woken = time.perf_counter()
        self.busy_seconds = 0.0

    def wait(self) -> None:
        """Sleep until the next frame is due."""
        now = time.perf_counter()
        self.busy_seconds = now - self._woken
        self._due = max(self._due + self._period, now)
        if self._due > now:
            time.sleep(self._due - now)
        self._woken = time.perf_counter()


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Median of a duration, and what 90 % and 99 % of them do not exceed, in milliseconds."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, milliseconds: np.ndarray) -> Percentiles:
        """Measure durations `[N]`; zeros if there are none."""
        if len(milliseconds) == 0:
            return cls(0.0, 0.0, 0.0)
        return cls(*(float(value) for value in np.percentile(milliseconds, (50, 90, 99))))

    def __str__(self) -> str:
        return f"p50 {self.p50:6.1f}   p90 {self.p90:6.1f}   p99 {self.p99:6.1f} ms"


class StepTimes:
    """Durations of the latest steps, the part before the picture and the part after it apart.

    Keeps the latest 10,000, so that a long game costs no memory.
    """

    def __init__(self) -> None:
        self._predict: deque[float] = deque(maxlen=_MAX_STEPS)
        self._commit: deque[float] = deque(maxlen=_MAX_STEPS)

    def __len__(self) -> int:
        return len(self._commit)

    def add(self, predict_seconds: float, commit_seconds: float) -> None:
        """Note one step."""
        self._predict.append(predict_seconds)
        self._commit.append(commit_seconds)

    def predict_ms(self) -> np.ndarray:
        """Return the times to denoise and decode, `[N]` milliseconds."""
        return 1000 * np.fromiter(self._predict, dtype=np.float64)

    def commit_ms(self) -> np.ndarray:
        """Return the times to commit, `[N]` milliseconds."""
        return 1000 * np.fromiter(self._commit, dtype=np.float64)

    def latest_p50_ms(self, count: int = 60) -> float:
        """Return the median time of the latest whole steps; 0 if there are none."""
        first = max(0, len(self) - count)
        totals = [self._predict[i] + self._commit[i] for i in range(first, len(self))]
        return 1000 * float(np.median(totals)) if totals else 0.0


def seconds_since_start() -> float:
    """Return the age of this process; where the system does not say, of this module."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), in ticks since boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError):
        return time.perf_counter() - _IMPORTED_AT


def process_memory_bytes() -> int | None:
    """Return the memory this process holds, elsewhere than on Linux its peak; None if it is not known."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def steady_memory() -> Iterator[None]:
    """Keep Python's garbage collector from walking over everything loaded so far while frames are due."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
