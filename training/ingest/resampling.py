"""Frames and actions at another frame rate: a moment shows the frame that was last, and keeps all input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from worldsim.data.axes import Axis
from worldsim.data.formats.source import Channel, Kind, SourceTable
from worldsim.data.video import VideoDescription
from worldsim.errors import WorldError

EARLY = 0.25
"""Of the time between two frames: so much later a frame may be shown than the moment it is taken for."""


def times_of(table: SourceTable, frame_rate: float | None, where: str) -> np.ndarray:
    """Return when frames are shown, `[T]` seconds from the first on.

    Raises:
        WorldError: If neither the table nor the source says.
    """
    if table.times is not None:
        return table.times
    if frame_rate is None:
        raise WorldError(f"{where} does not say how many frames a second it shows: give frame_rate=")
    return np.arange(table.num_frames) / frame_rate


def is_even(times: np.ndarray, frame_rate: float) -> bool:
    """Return whether frames are shown at a rate, but for the rounding of times and a frame now and then."""
    intervals = np.diff(times)
    described = VideoDescription(num_frames=len(times), height=0, width=0, intervals=intervals)
    return described.differs_from(frame_rate) is None


def shown_frames(times: np.ndarray, frame_rate: float) -> np.ndarray:
    """Return which frame is shown at each moment of an even rate, `[N]` int64, ascending."""
    count = int(np.floor((times[-1] - times[0]) * frame_rate + EARLY)) + 1
    moments = times[0] + (np.arange(count) + EARLY) / frame_rate
    return np.searchsorted(times, moments, side="right") - 1


def resample(table: SourceTable, shown: np.ndarray, axes: Sequence[Axis]) -> SourceTable:
    """Return what happens at and between the frames that are shown.

    Between two of them a button counts as pressed if it was pressed at all, the choice is the most frequent,
    an analog value the mean, or the sum where values add up. A frame that is shown several times has its
    action each time, but its share of a sum. What came after the last one shown is told with it.

    Args:
        shown: `[N]` numbers of frames, ascending.
    """
    ends = np.append(shown[1:], table.num_frames)
    repeats = np.bincount(shown, minlength=table.num_frames)[shown]
    spans = list(zip(shown, np.maximum(ends, shown + 1), repeats, strict=True))
    combined = {}
    for axis in axes:
        values = table.actions[axis.channel.name]
        found = [_combined(values[begin:end], axis.channel, count) for begin, end, count in spans]
        combined[axis.channel.name] = np.array(found)
    return replace(
        table,
        num_frames=len(shown),
        actions=combined,
        rewards=None if table.rewards is None else _gathered(table.rewards, shown),
        terminated=None if table.terminated is None else _gathered(table.terminated, shown) > 0.5,
        poses=None if table.poses is None else table.poses[shown],
        times=None,
    )


def _combined(values: np.ndarray, channel: Channel, count: int) -> float | str:
    if channel.kind is Kind.BUTTON:
        return float(values.max())
    if channel.kind is Kind.ANALOG and channel.is_added:
        return float(values[0] / count + values[1:].sum())
    if channel.kind is Kind.ANALOG:
        return float(values.mean())
    options, first, counts = np.unique(values, return_index=True, return_counts=True)
    return options[np.lexsort((first, -counts))[0]].item()


def _gathered(values: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Return the sum of what came since the moment before; a frame that is shown again brings nothing."""
    total = np.concatenate([[0.0], np.cumsum(values.astype(np.float64))])
    begins = np.concatenate([[0], shown[:-1] + 1])
    ends = np.append(shown[:-1], len(values) - 1) + 1
    return total[ends] - total[np.minimum(begins, ends)]
