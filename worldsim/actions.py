"""What a player can press: axes of mutually exclusive buttons.

A world's buttons are grouped into axes, so that no contradictory combination exists: on the axis `move`
one presses nothing (0), `forward` (1) or `backward` (2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from worldsim.errors import WorldError
from worldsim.files import MAX_NAME, check_text, shown


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionAxis:
    """One axis of control: at most one of its buttons is down at a time.

    Attributes:
        name: What the axis does, for example `turn`.
        buttons: Value `i` of the axis presses `buttons[i - 1]`; value 0 presses nothing.
        keys: Default key names for each button, as SDL spells them (`"left"`, `"a"`).
    """

    name: str
    buttons: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        for text in (self.name, *self.buttons, *(key for keys in self.keys for key in keys)):
            check_text(text, "the name of an action axis, a button or a key", MAX_NAME)
        if not self.buttons or len(self.keys) != len(self.buttons):
            raise WorldError(
                f"action axis {self.name!r} needs one list of keys for each of its buttons, "
                f"got {len(self.buttons)} buttons and {len(self.keys)} lists of keys"
            )


@dataclass(frozen=True, slots=True)
class ActionLayout:
    """All axes of a world; an action is one int per axis, `[axes]` int64."""

    axes: tuple[ActionAxis, ...]

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes]
        if not names or len(set(names)) != len(names):
            raise WorldError(f"an action layout needs axes with different names, got {names}")

    @property
    def num_values(self) -> tuple[int, ...]:
        """Number of values of each axis, counting "nothing"."""
        return tuple(len(axis.buttons) + 1 for axis in self.axes)

    @property
    def buttons(self) -> tuple[str, ...]:
        """Every button as `axis/button`, in order."""
        return tuple(f"{axis.name}/{button}" for axis in self.axes for button in axis.buttons)

    def space(self) -> spaces.MultiDiscrete:
        """Return the Gymnasium space of one action."""
        return spaces.MultiDiscrete(np.array(self.num_values, dtype=np.int64))

    def noop(self) -> np.ndarray:
        """Return the action that presses nothing, `[axes]` int64."""
        return np.zeros(len(self.axes), dtype=np.int64)

    def validate(self, action: Any) -> np.ndarray:
        """Return `action` as `[axes]` int64.

        Raises:
            WorldError: If it has another shape, is not of whole numbers or leaves the range of an axis.
        """
        array = np.asarray(action)
        if array.shape != (len(self.axes),) or array.dtype.kind not in "iu":
            names = ", ".join(axis.name for axis in self.axes)
            raise WorldError(
                f"an action is {len(self.axes)} whole numbers (one each for {names}), got {action!r}"
            )
        for axis, value, count in zip(self.axes, array, self.num_values, strict=True):
            if not 0 <= value < count:
                raise WorldError(f"action axis {axis.name!r} takes 0 to {count - 1}, got {int(value)}")
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
