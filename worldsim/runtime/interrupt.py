"""Requests to stop, answered between two frames instead of inside one: Ctrl-C, `kill`, a closed terminal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if name in signal.Signals.__members__
)
"""What asks a program to end: Ctrl-C, `kill`, the terminal that is closed; Ctrl-Break on Windows."""


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end; what is under way ends as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class StopRequest:
    """While entered, a request to stop waits for the frame to end; a second Ctrl-C does not.

    On the way out a request that came is raised as `Stopped`. Under `nohup` the closed terminal is
    ignored, as it should be. In a thread other than the main one, where signals do not arrive, it does
    nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self.number = int(signal.SIGINT)
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._previous = _listen(self._request)
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        _restore(self._previous)
        if self.requested and error_type is None:
            raise Stopped(self.number)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested, self.number = True, number
        # A terminal that is closed says so more than once, and nobody at the keys is impatient then.
        if (handler := self._previous.pop(signal.SIGINT, None)) is not None:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def defer_interrupt(*, only_raised: bool = False) -> Iterator[None]:
    """Let requests to stop wait until the block is done; outside the main thread they never arrive anyway.

    Args:
        only_raised: Whether those that would end the process on the spot, where nobody is left to go on from
            what is half done, need not wait: a third of the cost, for blocks that are run for each frame.
    """
    arrived: list[int] = []
    numbers = [each for each in STOP_SIGNALS if not only_raised or callable(signal.getsignal(each))]
    previous = _listen(lambda number, frame: arrived.append(number), numbers)
    try:
        yield
    finally:
        _restore(previous)
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)


@contextmanager
def raising_interrupt() -> Iterator[None]:
    """Let each request to stop raise `Stopped`, a `KeyboardInterrupt` as Ctrl-C raises by itself.

    So one way out serves them all: files are finished, and nothing is left half-written. Once one came, more
    of them change nothing: a closed terminal sends several.
    """
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a worker, which was given this handler when it was forked
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        for each in previous:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    previous = _listen(stop, [number for number in STOP_SIGNALS if number != signal.SIGINT])
    try:
        yield
    finally:
        _restore(previous)


def _listen(
    handler: Callable[[int, FrameType | None], object], numbers: Sequence[int] = STOP_SIGNALS
) -> dict[int, Any]:
    """Handle requests; return what did before. What is handled outside of Python is left alone.

    So is a closed terminal that is ignored: somebody asked for that. Scripts ignore Ctrl-C for what they run
    in the background, and it still is how one asks that to stop.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in numbers}
    ignored = {number for number, old in before.items() if old is signal.SIG_IGN} - {
        signal.SIGINT,
        signal.SIGTERM,
    }
    handled = {number: old for number, old in before.items() if old is not None and number not in ignored}
    for number in handled:
        signal.signal(number, handler)
    return handled


def _restore(previous: dict[int, Any]) -> None:
    for number, handler in previous.items():
        signal.signal(number, handler)
    previous.clear()
