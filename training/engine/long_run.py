"""Runs of many steps that save now and then, and stop when they are asked to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from tqdm import tqdm

from worldsim.runtime.interrupt import StopRequest


def run_on(
    steps: Iterable[int],
    save: Callable[[], None],
    *,
    begin: int,
    end: int,
    unit: str,
    seconds_between_saves: float = 0.0,
    max_minutes: float = 0.0,
) -> None:
    """Make steps until there are no more, the time is up or somebody stops it; save now and then.

    Args:
        steps: Yields how many steps were made so far.
        save: Writes what happened, and where to go on.
        begin: Steps of earlier runs.
        end: Steps in all, for the progress bar.
        unit: Of the progress bar.
        seconds_between_saves: Least time between two saves on the way.
        max_minutes: Time after which it stops; 0 is no limit.
    """
    began = saved = time.monotonic()
    with StopRequest() as stop, tqdm(total=end, initial=begin, unit=unit) as progress:
        for num_steps in steps:
            progress.update(num_steps - progress.n)
            now = time.monotonic()
            if now - saved >= seconds_between_saves:
                save()
                saved = now
            if stop.requested or 0 < 60 * max_minutes <= now - began:
                break
