"""The display: whether there is one, and its loss, before which what is unsaved is saved."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from worldsim.errors import WorldError

DRIVER = "SDL_VIDEODRIVER"
WINDOWLESS_DRIVERS = {"dummy", "offscreen"}
PAUSE_POLL_MS = 50
"""How often a paused window looks for events."""
X11_LIBRARY = "libX11.so.6"
"""The one that SDL has loaded."""


def has_display(environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> bool:
    """Return whether a window can be expected to open: on Linux with X11 or Wayland, elsewhere always."""
    variables = os.environ if environment is None else environment
    if variables.get(DRIVER) in WINDOWLESS_DRIVERS:
        return False
    if not platform.startswith("linux"):
        return True
    return bool(variables.get("DISPLAY") or variables.get("WAYLAND_DISPLAY"))


def choose_headless(asked: bool | None) -> bool:
    """Return whether to play without a window, as asked for; None leaves it to `has_display`.

    Raises:
        WorldError: If a window was asked for where there is no display.
    """
    if asked is False and not has_display():
        raise WorldError("there is no display to open a window on; headless=true plays without one")
    return not has_display() if asked is None else asked


@contextmanager
def saving_when_display_is_lost(save: Callable[[], str]) -> Iterator[None]:
    """While entered, save when the X server goes away; elsewhere a lost display raises errors as others do.

    Xlib ends the process once its handler returns, and no `finally` is reached. `save` returns a sentence.
    """
    import pygame  # which play without a window does not need

    def end(display: int | None) -> int:
        status = "error: the connection to the display was lost"
        try:
            status = f"{status}; {save()}"
        except Exception as error:  # nobody could handle it behind Xlib
            status = f"{status}; {error}"
        with suppress(OSError):
            sys.stderr.write(f"{status}\n")
            sys.stderr.flush()
        os._exit(1)

    if pygame.display.get_driver() != "x11":
        yield
        return
    handler = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(end)
    set_handler = ctypes.CDLL(X11_LIBRARY).XSetIOErrorHandler
    set_handler.restype = ctypes.c_void_p
    set_handler.argtypes = [ctypes.c_void_p]
    previous = set_handler(ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(previous)
