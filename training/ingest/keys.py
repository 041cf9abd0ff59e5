"""Default keys of imported buttons: by their names, and for the ends of sticks and mice in pairs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from training.ingest.layout import Axis
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data.formats.source import Kind

ACROSS = re.compile(r"(^|[._])(x|dx|yaw|steer(ing)?|turn|pan)$", re.IGNORECASE)
UPRIGHT = re.compile(r"(^|[._])(y|dy|pitch|tilt)$", re.IGNORECASE)
"""Names of axes that go to the sides, and of those for which down is positive, as on a screen."""
PAIRS = (("left", "right"), ("down", "up"), ("a", "d"), ("s", "w"))
DOWN_PAIRS = (("up", "down"), ("w", "s"))
NAMED = {
    "forward": ("up", "w"),
    "back": ("down", "s"),
    "backward": ("down", "s"),
    "left": ("left", "a"),
    "right": ("right", "d"),
    "up": ("up", "w"),
    "down": ("down", "s"),
    "jump": ("space",),
    "attack": ("left ctrl",),
    "fire": ("left ctrl",),
    "use": ("left alt",),
    "sneak": ("left shift",),
    "walk": ("left shift",),
    "crouch": ("c",),
    "reload": ("r",),
    "drop": ("q",),
    "inventory": ("e",),
}
OTHERS = ("space", "left ctrl", "left shift", "left alt", *"wasdejyzxcvbfgrt")
"""For other buttons, first those that give no command of the player; what comes after them gets none."""


class Keys:
    """Keys that are still free."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def all_free(self, keys: Sequence[str]) -> tuple[str, ...]:
        """Take those of some keys that are free."""
        found = tuple(key for key in keys if key not in self._taken)
        self._taken.update(found)
        return found

    def first_free(self, candidates: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
        """Take the first of some groups of keys whose keys are all free; none if there is none."""
        for group in candidates:
            if not self._taken & set(group):
                self._taken.update(group)
                return group
        return ()


def default_keys(axes: Sequence[Axis]) -> list[tuple[tuple[str, ...], ...]]:
    """Return for each axis the keys of each of its buttons, no key twice.

    An analog axis has keys at its ends alone: what is between them has no key.
    """
    free = Keys()
    both_ways = [axis for axis in axes if is_both_ways(axis)]
    ends = {}
    for axis in sorted(both_ways, key=lambda axis: not ACROSS.search(axis.channel.name)):
        is_upright = UPRIGHT.search(axis.channel.name)
        ends[axis.channel.name] = free.first_free(DOWN_PAIRS if is_upright else PAIRS)
    named = {axis.channel.name: _named(axis, free) for axis in axes if axis.channel.kind is not Kind.ANALOG}
    found = []
    for axis in axes:
        last = len(axis.buttons) - 1
        if is_both_ways(axis):
            pair = ends[axis.channel.name]
            keys = {0: pair[:1], last: pair[1:]}
        elif axis.channel.kind is Kind.ANALOG:
            keys = {last if axis.rest == 0 else 0: free.first_free([(key,) for key in OTHERS])}
        else:
            own = named[axis.channel.name]
            keys = {i: each or free.first_free([(key,) for key in OTHERS]) for i, each in enumerate(own)}
        found.append(tuple(keys.get(place, ()) for place in range(last + 1)))
    return found


def layout_of(axes: Sequence[Axis]) -> ActionLayout:
    """Return the buttons of some axes, with their default keys."""
    pairs = zip(axes, default_keys(axes), strict=True)
    return ActionLayout(
        tuple(ActionAxis(name=axis.channel.name, buttons=axis.buttons, keys=keys) for axis, keys in pairs)
    )


def is_both_ways(axis: Axis) -> bool:
    """Return whether an axis is analog and at rest somewhere inside of its range."""
    return axis.channel.kind is Kind.ANALOG and axis.rest not in (0, len(axis.centres) - 1)


def _named(axis: Axis, free: Keys) -> list[tuple[str, ...]]:
    """Return the keys of buttons that have them by name; a single letter or digit is a key itself."""
    names = [button.lower() for button in axis.buttons]
    return [
        free.all_free(NAMED.get(name, (name,) if re.fullmatch("[a-z0-9]", name) else ())) for name in names
    ]
