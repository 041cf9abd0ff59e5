"""Action layouts: axes of mutually exclusive buttons.

A world's buttons are grouped into axes, so that no contradictory combination exists: on the axis `move`
one presses nothing (0), `forward` (1) or `backward` (2).
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from worldsim.errors import WorldError
from worldsim.storage.files import MAX_NAME, check_number, check_text, shown

OPPOSITES = {("forward", "backward"), ("left", "right"), ("up", "down")}


def as_whole_numbers(values: Any) -> np.ndarray | None:
    """Return whole numbers, in lists, arrays or tensors of any device, as an array; None if they are none."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # lists of different lengths, a tensor in bf16
        return None
    return array if array.dtype.kind in "iu" else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionAxis:
    """One axis of control: at most one of its buttons is down at a time.

    Attributes:
        name: What the axis does, for example `turn`.
        buttons: Value `i` of the axis presses `buttons[i - 1]`; value 0 presses nothing. None where there is
            nothing to press.
        keys: Default key names for each button, as SDL spells them (`"left"`, `"a"`).
        centres: Of an analog axis: the number in the game's units that each of its values stands for, value
            0 first; empty of buttons.
    """

    name: str
    buttons: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]
    centres: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for text in (self.name, *self.buttons, *(key for keys in self.keys for key in keys)):
            check_text(text, "the name of an action axis, a button or a key", MAX_NAME)
        if len(self.keys) != len(self.buttons):
            raise WorldError(
                f"action axis {self.name!r} needs one list of keys for each of its buttons, "
                f"got {len(self.buttons)} buttons and {len(self.keys)} lists of keys"
            )
        if self.centres and len(self.centres) != len(self.buttons) + 1:
            raise WorldError(
                f"action axis {self.name!r} needs a centre for each of its {len(self.buttons) + 1} values, "
                f"got {len(self.centres)}"
            )
        for centre in self.centres:
            check_number(centre, f"a centre of action axis {self.name!r}")

    @property
    def ends(self) -> tuple[int, int]:
        """Values of the lowest and of the highest centre; 0 and 0 of buttons."""
        if not self.centres:
            return 0, 0
        return int(np.argmin(self.centres)), int(np.argmax(self.centres))


NO_BUTTONS = ActionAxis(name="none", buttons=(), keys=())
"""Of a world in which nothing can be pressed; it has one value."""


@dataclass(frozen=True, slots=True)
class ActionLayout:
    """All axes of a world; an action is one int per axis, `[axes]` int64."""

    axes: tuple[ActionAxis, ...]

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes]
        if not names or len(set(names)) != len(names):
            raise WorldError(f"an action layout needs axes with different names, got {names}")

    @property
    def one_way(self) -> tuple[str, ...]:
        """Names of the axes whose buttons do not undo each other, as left and right do."""
        return tuple(axis.name for axis in self.axes if axis.buttons not in OPPOSITES)

    @property
    def num_values(self) -> tuple[int, ...]:
        """Number of values of each axis, counting "nothing"."""
        return tuple(len(axis.buttons) + 1 for axis in self.axes)

    @property
    def centres(self) -> tuple[tuple[float, ...], ...]:
        """Of each axis, the numbers that its values stand for; none of buttons."""
        return tuple(axis.centres for axis in self.axes)

    @property
    def buttons(self) -> tuple[str, ...]:
        """Every button as `axis/button`, in order."""
        return tuple(f"{axis.name}/{button}" for axis in self.axes for button in axis.buttons)

    @property
    def num_actions(self) -> int:
        """Number of all actions, counting the one that presses nothing."""
        return math.prod(self.num_values)

    def space(self) -> spaces.MultiDiscrete:
        """Return the Gymnasium space of one action."""
        return spaces.MultiDiscrete(np.array(self.num_values, dtype=np.int64))

    def discrete_space(self) -> spaces.Discrete:
        """Return the Gymnasium space of one action as a single number; `from_number` says what it presses."""
        return spaces.Discrete(self.num_actions)

    def from_number(self, number: Any) -> np.ndarray:
        """Return the action of a number, `[axes]` int64: they are counted up, the last axis fastest.

        With one axis the number is its value.

        Raises:
            WorldError: If it is no whole number, or there are not so many actions.
        """
        array = as_whole_numbers(number)
        if array is None or array.shape != ():
            raise WorldError(f"an action is one whole number, got {reprlib.repr(number)}")
        if not 0 <= array < self.num_actions:
            raise WorldError(f"an action is 0 to {self.num_actions - 1}, got {int(array)}")
        return np.array(np.unravel_index(int(array), self.num_values), dtype=np.int64)

    def to_number(self, action: np.ndarray) -> int:
        """Return the number of a valid action, which `from_number` takes."""
        return int(np.ravel_multi_index(tuple(action), self.num_values))

    def noop(self) -> np.ndarray:
        """Return the action that presses nothing, `[axes]` int64."""
        return np.zeros(len(self.axes), dtype=np.int64)

    def validate(self, action: Any) -> np.ndarray:
        """Return `action` as `[axes]` int64.

        Raises:
            WorldError: If it has another shape, is not of whole numbers or leaves the range of an axis.
        """
        array = as_whole_numbers(action)
        if array is None or array.shape != (len(self.axes),):
            names = ", ".join(axis.name for axis in self.axes)
            numbers = (
                f"an array of one whole number (for {names})"
                if len(self.axes) == 1
                else f"{len(self.axes)} whole numbers (one each for {names})"
            )
            raise WorldError(f"an action is {numbers}, got {reprlib.repr(action)}")
        for axis, value in zip(self.axes, array.tolist(), strict=True):
            if not 0 <= value <= len(axis.buttons):
                raise WorldError(f"action axis {axis.name!r} takes 0 to {len(axis.buttons)}, got {value}")
        return array.astype(np.int64)

    def describe(self, action: np.ndarray) -> str:
        """Return the names of the pressed buttons, for example `forward+left`, or `nothing`."""
        pressed = [
            axis.buttons[value - 1] for axis, value in zip(self.axes, action, strict=True) if value > 0
        ]
        return "+".join(pressed) or "nothing"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads."""
        return {
            "axes": [
                {"name": a.name, "buttons": list(a.buttons), "keys": [list(k) for k in a.keys]}
                | ({"centres": list(a.centres)} if a.centres else {})
                for a in self.axes
            ]
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ActionLayout:
        """Build a layout from `to_json`'s object.

        Raises:
            WorldError: If a field is missing or of the wrong form.
        """
        try:
            axes = tuple(
                ActionAxis(
                    name=axis["name"],
                    buttons=tuple(_list(axis["buttons"])),
                    keys=tuple(tuple(_list(keys)) for keys in _list(axis["keys"])),
                    centres=tuple(_list(axis.get("centres", []))),
                )
                for axis in _list(data["axes"])
            )
        except (KeyError, TypeError) as error:
            raise WorldError(
                f"the action layout is not of the expected form: {error!r} in {shown(data)}"
            ) from error
        return cls(axes)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {shown(value)}")
    return value
