"""Keys: their places, named by what a US keyboard has there, and combinations of them."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from itertools import product
from typing import cast

import numpy as np
import pygame

from worldsim.actions import ActionAxis, ActionLayout
from worldsim.errors import WorldError

SYMBOLS = {
    "-": pygame.KSCAN_MINUS,
    "=": pygame.KSCAN_EQUALS,
    "[": pygame.KSCAN_LEFTBRACKET,
    "]": pygame.KSCAN_RIGHTBRACKET,
    "\\": pygame.KSCAN_BACKSLASH,
    ";": pygame.KSCAN_SEMICOLON,
    "'": pygame.KSCAN_APOSTROPHE,
    "`": pygame.KSCAN_GRAVE,
    ",": pygame.KSCAN_COMMA,
    ".": pygame.KSCAN_PERIOD,
    "/": pygame.KSCAN_SLASH,
}
# SDL has the letters and the digits in a row, 0 after 9.
PLACES = {letter: pygame.KSCAN_A + number for number, letter in enumerate(string.ascii_lowercase)}
PLACES |= {digit: pygame.KSCAN_1 + number for number, digit in enumerate("1234567890")} | SYMBOLS
"""Scancodes of the keys that print something, by what they print on a US keyboard."""
_NAMES = {scancode: name for name, scancode in PLACES.items()}
_NOT_PRINTED = 1 << 30
"""A bit of SDL's codes of keys that print nothing: they are the same in all layouts."""
_NUM_SCANCODES = 512
_MAX_PRINTED = 0x1100
"""Beyond the alphabets that keyboards have."""


def check_key(name: str) -> str:
    """Return a key's name as `key_names` gives it.

    Args:
        name: What a US keyboard has in its place, or SDL's name of a key that prints nothing. A character
            that no US key prints is the key that prints it, wherever that is.

    Raises:
        WorldError: If there is no such key.
    """
    if (lower := name.lower()) in PLACES:
        return lower
    return _name_of_code(_code_of(name))


def key_names(event: pygame.event.Event) -> list[str]:
    """Return the names of the key that an event pressed or let go; the first that means something counts.

    A symbol that the key prints comes before the key's place: on a French keyboard the key of the minus is
    where the US one has its 6. Without a place, as from a keyboard on the screen, the letter counts.
    """
    names = []
    is_shifted = getattr(event, "mod", 0) & pygame.KMOD_SHIFT
    if not is_shifted and (printed := getattr(event, "unicode", "")) in SYMBOLS:
        names.append(printed)
    is_printed = event.key > ord(" ") and event.key != pygame.K_DELETE and not event.key & _NOT_PRINTED
    place = _NAMES.get(getattr(event, "scancode", 0))
    # What a key other than these prints in a layout of its own, Escape say, counts: somebody chose that.
    is_dead = event.key == _NOT_PRINTED
    names.append(place if place and (is_printed or is_dead) else _name_of_code(event.key))
    if is_printed and not chr(event.key).isascii():
        names.append(chr(event.key))
    return names


def printed_names() -> dict[str, str]:
    """Return what the keys print in the layout in use, by their names; '' where that is not known.

    A symbol that the layout has anywhere without Shift is found by itself.
    """
    # As a table of all scancodes this gives the scancode of a key's code, which pygame has no function for.
    scancodes = pygame.key.ScancodeWrapper(cast("Iterable[bool]", range(_NUM_SCANCODES)))
    printed: dict[int, str] = {}
    for code in range(ord("!"), _MAX_PRINTED):
        if scancode := scancodes[code]:
            printed.setdefault(scancode, chr(code))
    own = set(printed.values())
    return {
        name: name if name in SYMBOLS and name in own else printed.get(scancode, "")
        for name, scancode in PLACES.items()
    }


def _code_of(name: str) -> int:
    try:
        return pygame.key.key_code(name)
    except ValueError as error:
        raise WorldError(f"there is no key {name!r}: keys have SDL's names, for example 'left'") from error


def _name_of_code(code: int) -> str:
    return pygame.key.name(code) or chr(code)


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
            yield (_code_of(key),), value
