"""The connection to an X server, whose loss ends a process on the spot: what is unsaved is saved first."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pygame

X11_LIBRARY = "libX11.so.6"
"""The one that SDL has loaded."""


@contextmanager
def saving_when_display_is_lost(save: Callable[[], str]) -> Iterator[None]:
    """While entered, save when the X server goes away; elsewhere a lost display raises errors as others do.

    Xlib ends the process once its handler returns, and no `finally` is reached.

    Args:
        save: Saves everything; returns a sentence about it.
    """

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
