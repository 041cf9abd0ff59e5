"""Combinations of keys and the action of each, for programs that bring a window of their own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pygame

from worldsim.actions import ActionAxis, ActionLayout
from worldsim.errors import WorldError


def key_combinations(layout: ActionLayout) -> dict[tuple[int, ...], np.ndarray]:
    """Return what keys press that are held together, at most one of each axis: numbers of keys to an action.

    What presses nothing is left out.

    Raises:
        WorldError: If no window can be opened, without which there are no keys, or one is unknown.
    """
    try:
        pygame.display.init()  # key names are not complete before
    except pygame.error as error:
        raise WorldError(f"no window can be opened ({error}), so there are no keys") from error
    pressed: dict[tuple[int, ...], np.ndarray] = {}
    for chosen in product(*(list(_choices(axis)) for axis in layout.axes)):
        keys = tuple(sorted(code for codes, _ in chosen for code in codes))
        if keys:
            pressed[keys] = np.array([value for _, value in chosen], dtype=np.int64)
    return pressed


def _choices(axis: ActionAxis) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield the keys that may be held on an axis, and the value that they mean."""
    yield (), 0
    for value, keys in enumerate(axis.keys, start=1):
        for key in keys:
            try:
                yield (pygame.key.key_code(key),), value
            except ValueError as error:
                raise WorldError(
                    f"there is no key {key!r}: keys have SDL's names, for example 'left'"
                ) from error
