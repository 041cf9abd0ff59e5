"""Default keys of imported buttons: by their names, and for the ends of sticks and mice in pairs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data.axes import ACROSS, UPRIGHT, Axis
from worldsim.data.formats.source import Kind

PAIRS = (("left", "right"), ("down", "up"), ("a", "d"), ("s", "w"))
DOWN_PAIRS = (("up", "down"), ("w", "s"))
BESIDE = {"left": "a", "right": "d", "up": "w", "down": "s"}
"""The other hand's keys, for the only stick there is."""
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
    "gas": ("up", "w"),
    "throttle": ("up", "w"),
    "brake": ("down", "s"),
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
    both_ways = [axis for axis in axes if axis.is_both_ways]
    ends = {}
    for axis in sorted(both_ways, key=lambda axis: not ACROSS.search(axis.channel.name)):
        is_upright = UPRIGHT.search(axis.channel.name)
        ends[axis.channel.name] = free.first_free(DOWN_PAIRS if is_upright else PAIRS)
    named = {axis.channel.name: _named(axis, free) for axis in axes if not axis.is_both_ways}
    if len(ends) == 1:
        ((only, pair),) = ends.items()
        ends[only] = pair + free.first_free([(BESIDE[pair[0]], BESIDE[pair[1]])])
    found = []
    for axis in axes:
        last = len(axis.buttons) - 1
        if axis.is_both_ways:
            pair = ends[axis.channel.name]
            keys = {0: pair[::2], last: pair[1::2]}
        elif axis.channel.kind is Kind.ANALOG:
            own = named[axis.channel.name][0] or free.first_free([(key,) for key in OTHERS])
            keys = {last if axis.rest == 0 else 0: own}
        else:
            own = named[axis.channel.name]
            keys = {i: each or free.first_free([(key,) for key in OTHERS]) for i, each in enumerate(own)}
        found.append(tuple(keys.get(place, ()) for place in range(last + 1)))
    return found


def layout_of(axes: Sequence[Axis]) -> ActionLayout:
    """Return the buttons of some axes, with their default keys."""
    pairs = zip(axes, default_keys(axes), strict=True)
    return ActionLayout(
        tuple(
            ActionAxis(
                name=axis.channel.name,
                buttons=axis.buttons,
                keys=keys,
                centres=tuple(axis.centres[place] for place in axis.order)
                if axis.channel.kind is Kind.ANALOG
                else (),
            )
            for axis, keys in pairs
        )
    )


def _named(axis: Axis, free: Keys) -> list[tuple[str, ...]]:
    """Return the keys of buttons that have them by name, an analog axis by its own.

    A single letter or digit is a key itself; of several words the last one counts: `move_left`.
    """
    names = [axis.channel.name] if axis.channel.kind is Kind.ANALOG else axis.buttons
    return [free.all_free(_keys_of(name.lower())) for name in names]


def _keys_of(name: str) -> tuple[str, ...]:
    last = re.split(r"[\s._-]", name)[-1]
    return NAMED.get(name) or NAMED.get(last) or ((name,) if re.fullmatch("[a-z0-9]", name) else ())
