"""Columns of actions into axes of buttons, analog values into bins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from worldsim.data.formats.source import Channel, Kind
from worldsim.errors import WorldError

SCALES = ("uniform", "mu-law")
ACROSS = re.compile(r"(^|[._])(x|dx|yaw|steer(ing)?|turn|pan)$", re.IGNORECASE)
UPRIGHT = re.compile(r"(^|[._])(y|dy|pitch|tilt)$", re.IGNORECASE)
"""Names of axes that go to the sides, and of those for which down is positive, as on a screen."""
MU = 10.0
"""Of mu-law bins, as in the agent that VPT released (arXiv 2206.11795)."""


@dataclass(frozen=True, slots=True)
class Axis:
    """How the values of a column become those of an axis.

    Attributes:
        channel: The column.
        centres: Values that are told apart, ascending; of a choice, the numbers of its options.
        rest: Which of them presses nothing; -1 if none does.
        scale: `uniform` or `mu-law`, where analog values go into bins; empty where each has its own button.
    """

    channel: Channel
    centres: tuple[float, ...]
    rest: int
    scale: str = ""

    @property
    def order(self) -> list[int]:
        """Places of the centres by the value of the axis: first the one at rest."""
        others = [place for place in range(len(self.centres)) if place != self.rest]
        return [self.rest, *others]

    @property
    def buttons(self) -> tuple[str, ...]:
        """Names of the buttons."""
        if self.channel.kind is Kind.BUTTON:
            return (self.channel.name.rpartition(".")[2],)
        if self.channel.kind is Kind.CHOICE:
            return tuple(self.channel.options[place] for place in self.order[1:])
        names = self._directions() or names_of(self.centres)
        return tuple(names[place] for place in self.order[1:])

    @property
    def is_both_ways(self) -> bool:
        """Whether it is analog and at rest somewhere inside of its range."""
        return self.channel.kind is Kind.ANALOG and self.rest not in (0, len(self.centres) - 1)

    def _directions(self) -> list[str]:
        """Return `left-2`, `left-1`, the one at rest, `right-1`, ...; nothing of axes without directions."""
        name = self.channel.name
        is_across, is_upright = (bool(pattern.search(name)) for pattern in (ACROSS, UPRIGHT))
        if not (is_across or is_upright) or not self.scale or not self.is_both_ways:
            return []
        ways = ("left", "right") if is_across else ("up", "down")
        if len(self.centres) == 3:
            return [ways[0], "", ways[1]]
        steps = (place - self.rest for place in range(len(self.centres)))
        return [f"{ways[step > 0]}-{abs(step)}" for step in steps]

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return the value of the axis for each value of the column, `[T]` int64.

        Analog values go to the nearest centre, on the mu-law scale where bins are spaced by it.

        Raises:
            WorldError: If a choice is none of its options.
        """
        if self.channel.kind is Kind.CHOICE and values.dtype.kind in "US":
            place = np.array([self.channel.options.index(str(value)) for value in values])
        else:
            places = np.array(self.centres)
            if self.channel.kind is not Kind.ANALOG and not np.isin(values, places).all():
                wrong = values[~np.isin(values, places)][0]
                raise WorldError(f"{self.channel.name} takes 0 to {len(places) - 1}, got {wrong}")
            numbers = values.astype(np.float64)
            if self.scale == "mu-law":
                most = float(np.abs(places).max())
                numbers, places = compress(numbers, most), compress(places, most)
            place = np.searchsorted((places[1:] + places[:-1]) / 2, numbers)
        lookup = np.empty(len(self.centres), dtype=np.int64)
        first = int(self.rest < 0)  # value 0 then stands for nothing that occurs
        lookup[self.order[first:]] = np.arange(first, len(self.centres) + first)
        return lookup[place]

    def describe(self) -> str:
        """Return in words which bins there are; empty for buttons and choices."""
        if self.channel.kind is not Kind.ANALOG:
            return ""
        low, high = self.centres[0], self.centres[-1]
        how = f"{self.scale} bins" if self.scale else "levels"
        return f"{self.channel.name} in {len(self.centres)} {how} from {low:.4g} to {high:.4g}"


def names_of(centres: Sequence[float]) -> list[str]:
    """Return numbers as short texts, all different."""
    digits, names = 4, [""]
    while digits < 18 and len(set(names)) < len(centres):
        names = [f"{centre:+.{digits}g}" for centre in centres]
        digits += 1
    return names


def compress(values: np.ndarray, most: float) -> np.ndarray:
    """Return values on the mu-law scale, where those near 0 lie further apart; `most` becomes 1."""
    return np.sign(values) * np.log1p(MU * np.abs(values).clip(0, most) / most) / np.log1p(MU)


def expand(values: np.ndarray, most: float) -> np.ndarray:
    """Return values of which `compress` makes these."""
    return np.sign(values) * np.expm1(np.abs(values) * np.log1p(MU)) * most / MU


def axis_of(channel: Channel, num_bins: int, scale: str) -> Axis:
    """Return how a column becomes an axis.

    Args:
        channel: The column, its limits known.
        num_bins: Of an analog value.
        scale: Of its bins, unless its format has a usual one; empty is that one, or uniform.
    """
    if channel.kind is Kind.BUTTON:
        return Axis(channel, (0.0, 1.0), 0)
    if channel.kind is Kind.CHOICE:
        return Axis(
            channel,
            tuple(map(float, range(len(channel.options)))),
            -1 if channel.rest is None else channel.rest,
        )
    if channel.levels:
        return Axis(channel, channel.levels, int(np.abs(channel.levels).argmin()))
    assert channel.limits is not None
    if channel.limits[0] >= channel.limits[1]:
        return Axis(channel, channel.limits[:1], 0)
    scale = scale or channel.scale or SCALES[0]
    low, high = channel.limits
    if scale == "uniform":
        centres = np.linspace(low, high, num_bins)
    else:
        most = max(abs(low), abs(high))
        first, last = compress(np.array(channel.limits), most)
        centres = expand(np.linspace(first, last, num_bins), most)
    centres[[0, -1]] = low, high  # exactly: whoever takes them may check
    rest = int(np.abs(centres).argmin())
    if abs(centres[rest]) < 1e-6 * max(abs(low), abs(high)):
        centres[rest] = 0.0
    return Axis(channel, tuple(centres.tolist()), rest, scale)


def with_limits(channels: Sequence[Channel], measured: Sequence[Channel]) -> list[Channel]:
    """Return channels, those of an unknown range as they were measured."""
    by_name = {channel.name: channel for channel in measured}
    return [
        replace(by_name[each.name], is_added=each.is_added, scale=each.scale)
        if each.kind is Kind.ANALOG and each.limits is None
        else each
        for each in channels
    ]


def axes_of(channels: Sequence[Channel], num_bins: int, scale: str) -> tuple[list[Axis], list[str]]:
    """Return the axes of columns, and the names of the columns that never change, which get none.

    Raises:
        WorldError: If none of them changes.
    """
    axes = [axis_of(channel, num_bins, scale) for channel in channels]
    unused = [axis.channel.name for axis in axes if not axis.buttons]
    if len(unused) == len(axes):
        raise WorldError(f"no action ever changes ({', '.join(unused)}): there is nothing to press")
    return [axis for axis in axes if axis.buttons], unused


def encode(axes: Sequence[Axis], actions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return actions as those of the layout, `[T, axes]` int64."""
    return np.stack([axis.encode(actions[axis.channel.name]) for axis in axes], axis=1)
