"""Runs of many steps that save now and then, stop when they are asked to, and go on another day."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from tqdm import tqdm

from worldsim import state as states
from worldsim.errors import WorldError
from worldsim.evaluation.report.report import Report
from worldsim.runtime.interrupt import StopRequest
from worldsim.state import WorldState


class Resumable(Protocol):
    """What a run has done so far; without arguments nothing."""

    def __init__(self) -> None: ...
    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self: ...


Progress = TypeVar("Progress", bound=Resumable)


def begin_or_resume(
    report: Report, state_file: Path, kind: type[Progress], *, world: str
) -> tuple[Progress, WorldState | None]:
    """Return what an earlier run has done and the state of a world that it saved, or nothing and None.

    Raises:
        WorldError: If the report is of another kind of run, or the state of another world.
    """
    if not (report.path.is_file() and state_file.is_file()):
        return kind(), None
    try:
        progress = kind.from_json(report.data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WorldError(f"{report.path} cannot be resumed ({error}); choose another out= folder") from error
    return progress, states.load(state_file, world=world)


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
