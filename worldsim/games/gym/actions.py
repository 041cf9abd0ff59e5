"""Actions of an environment as buttons, and buttons as its actions."""

# A action axes

from __future__ import annotations

import itertools
import math
import re
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from worldsim.actions import ActionLayout
from worldsim.data.axes import Axis, axis_of
from worldsim.data.default_keys import layout_of
from worldsim.data.formats.source import Channel, Kind
from worldsim.errors import WorldError
from worldsim.games.gym.names import NOOP, count_names

MAX_NUMBERS = 64
"""Of an action: whoever has more of them does not press buttons."""
COMPOUND = re.compile(r"(up|down)?(left|right)?(fire)?")
"""Atari's names of what several buttons at once do."""
STICKS = {"vertical": ("up", "down"), "horizontal": ("left", "right")}
"""Axes of two opposite buttons."""


class ActionMap(ABC):
    """How the actions of an environment and those of a layout become each other.

    Attributes:
        layout: The buttons.
        about: What else is to be said of them, in words.
    """

    layout: ActionLayout
    about: str

    @abstractmethod
    def decode(self, action: np.ndarray) -> Any:
        """Return the environment's action for a valid one of the layout, `[A]`; None where it is to wait."""

    @abstractmethod
    def encode(self, action: Any) -> np.ndarray:
        """Return the layout's action, `[A]` int64, that is nearest to one of the environment's.

        Raises:
            WorldError: If it is outside of its space: NaN, or of another shape.
        """


@dataclass(frozen=True, slots=True)
class ChoiceMap(ActionMap):
    """Of a Discrete space.

    Attributes:
        start: Number of its first option.
        presses: For each option, the layout's action.
    """

    layout: ActionLayout
    start: int
    presses: tuple[tuple[int, ...], ...]
    about: str = ""

    def decode(self, action: np.ndarray) -> int | None:
        """Return a number; None where nothing is pressed and no option does nothing."""
        pressed = tuple(action.tolist())
        return self.presses.index(pressed) + self.start if pressed in self.presses else None

    def encode(self, action: Any) -> np.ndarray:
        """Return what presses an option."""
        number = np.asarray(action)
        if number.size != 1 or number.dtype.kind not in "iu":
            raise WorldError(f"an action is one whole number, got {reprlib.repr(action)}")
        option = int(number.reshape(())) - self.start
        if not 0 <= option < len(self.presses):
            last = self.start + len(self.presses) - 1
            raise WorldError(f"an action is {self.start} to {last}, got {option + self.start}")
        return np.array(self.presses[option], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class ArrayMap(ActionMap):
    """Of a Box, MultiDiscrete or MultiBinary space.

    Attributes:
        rest: The environment's action where nothing is pressed, of its shape and type.
        columns: For each axis, which numbers of the flattened action it sets.
        values: For each axis, `[values, columns]` to what.
    """

    layout: ActionLayout
    rest: np.ndarray
    columns: tuple[tuple[int, ...], ...]
    values: tuple[np.ndarray, ...]
    about: str = ""

    def decode(self, action: np.ndarray) -> np.ndarray:
        """Return an array."""
        numbers = self.rest.copy().reshape(-1)
        for columns, values, value in zip(self.columns, self.values, action, strict=True):
            numbers[list(columns)] = values[value]
        return numbers.reshape(self.rest.shape)

    def encode(self, action: Any) -> np.ndarray:
        """Return for each axis the value nearest to what an array has there."""
        try:
            numbers = np.asarray(action, dtype=np.float64)
        except (TypeError, ValueError):
            numbers = np.array(np.nan)
        if numbers.shape != self.rest.shape or not np.isfinite(numbers).all():
            raise WorldError(
                f"an action is an array {list(self.rest.shape)} of finite numbers, got {reprlib.repr(action)}"
            )
        flat = numbers.reshape(-1)
        pairs = zip(self.columns, self.values, strict=True)
        distances = [np.abs(values - flat[list(columns)]).sum(axis=1) for columns, values in pairs]
        return np.array([each.argmin() for each in distances], dtype=np.int64)


def map_actions(
    space: gym.Space[Any], names: Sequence[str], bins: Sequence[int], scale: str, where: str
) -> ActionMap:
    """Return how the actions of a space become buttons.

    Args:
        space: Of one action.
        names: As `find_names` gives them; may be empty.
        bins: Numbers of values of the analog axes, or of all of them.
        scale: Of these, `uniform` or `mu-law`.
        where: Its environment, for errors.

    Raises:
        WorldError: If it is no space of numbers, or of unbounded ones, or names or bins do not fit it.
    """
    kinds = gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary, gym.spaces.Box
    if not isinstance(space, kinds):
        raise WorldError(
            f"{where} has actions that cannot be made buttons, a {type(space).__name__} space: wrap it so "
            "that they are Discrete, MultiDiscrete, MultiBinary or Box"
        )
    count = count_names(space)
    if names and len(names) != count:
        raise WorldError(f"{where} needs {count} action_names, got {len(names)}: {', '.join(names)}")
    if isinstance(space, gym.spaces.Discrete):
        return map_choices(space, names, where)
    if not 0 < count <= MAX_NUMBERS:
        raise WorldError(
            f"{where} has actions of {count} numbers; those of 1 to {MAX_NUMBERS} become buttons"
        )
    rest = np.zeros(space.shape, dtype=space.dtype)
    names = names or (["action"] if count == 1 else [f"action.{index}" for index in range(count)])
    if isinstance(space, gym.spaces.MultiBinary):
        return _joined(rest, list(_binary_axes(names)), where)
    if isinstance(space, gym.spaces.MultiDiscrete):
        counts, starts = space.nvec.reshape(-1).tolist(), space.start.reshape(-1).tolist()
        rest = space.start.astype(rest.dtype)
        return _joined(rest, list(_choice_axes(names, counts, starts)), where)
    axes = _analog_axes(space, names, bins, scale, where)
    constant = np.where(space.low == space.high, space.low, 0)
    return _joined(constant.astype(rest.dtype), [each for each in axes if each[0].buttons], where)


def map_choices(space: gym.spaces.Discrete, names: Sequence[str], where: str) -> ChoiceMap:
    """Return the map of a Discrete space.

    Names that combine directions and `fire`, as Atari's, become an axis for each where all combinations are
    there. Otherwise it is one axis, and the option whose name says that it does nothing presses nothing.
    Where there is none and the options have names, two of them are a button that is pressed or not; of more,
    each has its button, and the game stands still while none is pressed.
    """
    number, start = int(space.n), int(space.start)
    if number < 2:
        raise WorldError(f"{where} has a single action: there is nothing to press")
    if (found := _sticks(names)) is not None:
        return ChoiceMap(found[0], start, found[1])
    options = tuple(names) or tuple(map(str, range(start, start + number)))
    idle = [index for index, name in enumerate(options) if NOOP.fullmatch(name)]
    rest = idle[0] if idle else None if names and number > 2 else 0
    axis = axis_of(Channel(name="action", kind=Kind.CHOICE, options=options, rest=rest), 0, "")
    presses = tuple((axis.order.index(option),) for option in range(number))
    about = "" if rest is not None else "the game stands still while nothing is pressed"
    if rest is not None and not idle and names:
        about = f"{options[0]} while nothing is pressed"
    return ChoiceMap(layout_of([axis]), start, presses, about)


def _sticks(names: Sequence[str]) -> tuple[ActionLayout, tuple[tuple[int, ...], ...]] | None:
    """Return axes of compound names and what each option presses; None if they are no full product."""
    found = [COMPOUND.fullmatch(re.sub("^noop$", "", name)) for name in names]
    if not found or not all(found):
        return None
    parts = [each.groups(default="") for each in found if each]
    axes, columns = [], []
    for name, words, pressed in zip(
        (*STICKS, "fire"), (*STICKS.values(), ("fire",)), zip(*parts, strict=True), strict=True
    ):
        options = ("", *(word for word in words if word in pressed))
        if len(options) > 1:
            axes.append(axis_of(Channel(name=name, kind=Kind.CHOICE, options=options), 0, ""))
            columns.append([options.index(word) for word in pressed])
    presses = tuple(zip(*columns, strict=True))
    if len(axes) < 2 or set(presses) != set(itertools.product(*(range(len(a.buttons) + 1) for a in axes))):
        return None
    return (layout_of(axes), presses) if len(set(presses)) == len(presses) else None


Cells = tuple[Axis, tuple[int, ...], np.ndarray]
"""An axis, which numbers of an action it sets, and `[values, numbers]` to what."""


def _joined(rest: np.ndarray, cells: Sequence[Cells], where: str) -> ArrayMap:
    if not cells:
        raise WorldError(f"{where} has actions that never change: there is nothing to press")
    axes, columns, values = zip(*cells, strict=True)
    about = "; ".join(filter(None, (axis.describe() for axis in axes)))
    return ArrayMap(layout_of(axes), rest, columns, values, about)


def _binary_axes(names: Sequence[str]) -> Iterator[Cells]:
    left = {name: index for index, name in enumerate(names) if name}
    for stick, words in STICKS.items():
        if set(words) <= left.keys():
            channel = Channel(name=stick, kind=Kind.CHOICE, options=("", *words))
            yield (
                axis_of(channel, 0, ""),
                tuple(left.pop(word) for word in words),
                np.array([[0, 0], [1, 0], [0, 1]]),
            )
    for name, index in left.items():
        yield axis_of(Channel(name=name, kind=Kind.BUTTON), 0, ""), (index,), np.array([[0], [1]])


def _choice_axes(names: Sequence[str], counts: Sequence[int], starts: Sequence[int]) -> Iterator[Cells]:
    for index, (name, count, start) in enumerate(zip(names, counts, starts, strict=True)):
        if count > 1 and name:
            options = tuple(map(str, range(start, start + count)))
            axis = axis_of(Channel(name=name, kind=Kind.CHOICE, options=options), 0, "")
            yield axis, (index,), np.arange(start, start + count)[:, None]


def _analog_axes(
    space: gym.spaces.Box, names: Sequence[str], bins: Sequence[int], scale: str, where: str
) -> list[Cells]:
    lows, highs = (end.astype(np.float64).reshape(-1).tolist() for end in (space.low, space.high))
    if len(bins) not in (1, len(names)):
        raise WorldError(
            f"{where} has {len(names)} analog axes ({', '.join(names)}): give 1 or {len(names)} bins"
        )
    counts = list(bins) * (len(names) if len(bins) == 1 else 1)
    found: list[Cells] = []
    for index, (name, low, high, count) in enumerate(zip(names, lows, highs, counts, strict=True)):
        if not math.isfinite(high - low) or abs(high - low) > 1e30:
            raise WorldError(
                f"{where} has an action without bounds, {name} from {low:g} to {high:g}: wrap it, with "
                "gymnasium.wrappers:RescaleAction say"
            )
        levels: tuple[float, ...] = ()
        if space.dtype is not None and space.dtype.kind in "iu":
            levels = tuple(np.unique(np.linspace(low, high, count).round()).tolist())
        channel = Channel(name=name, kind=Kind.ANALOG, limits=(low, high), levels=levels)
        axis = axis_of(channel, count, scale)
        found.append((axis, (index,), np.array([[axis.centres[place]] for place in axis.order])))
    return found
