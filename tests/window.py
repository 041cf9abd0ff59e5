"""Events of a keyboard, for tests of the window."""

from __future__ import annotations

import pygame


def post(kind: int, name: str, mod: int = 0) -> None:
    pygame.event.post(pygame.event.Event(kind, key=pygame.key.key_code(name), mod=mod))


def press(*names: str) -> None:
    for name in names:
        post(pygame.KEYDOWN, name)


def release(*names: str) -> None:
    for name in names:
        post(pygame.KEYUP, name)


def tap(name: str) -> None:
    press(name)
    release(name)
