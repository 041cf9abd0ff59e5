"""Play without a display."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping

from worldsim.errors import WorldError
from worldsim.play.session import Player, PlaySession, steady_memory
from worldsim.runtime.interrupt import StopRequest

DRIVER = "SDL_VIDEODRIVER"
WINDOWLESS_DRIVERS = {"dummy", "offscreen"}


def has_display(environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> bool:
    """Return whether a window can be expected to open: on Linux with X11 or Wayland, elsewhere always."""
    variables = os.environ if environment is None else environment
    if variables.get(DRIVER) in WINDOWLESS_DRIVERS:
        return False
    if not platform.startswith("linux"):
        return True
    return bool(variables.get("DISPLAY") or variables.get("WAYLAND_DISPLAY"))


def choose_headless(asked: bool | None) -> bool:
    """Return whether to play without a window.

    Args:
        asked: What the person asked for; None leaves it to `has_display`.

    Raises:
        WorldError: If a window was asked for where there is no display.
    """
    if asked is False and not has_display():
        raise WorldError("there is no display to open a window on; headless=true plays without one")
    return not has_display() if asked is None else asked


def play_headless(
    session: PlaySession, player: Player, num_frames: int, name: str | None = None
) -> Iterator[int]:
    """Let a player play; yields the number of frames so far.

    The session must have been reset. Where the world ends an episode, the next begins at a start moment that
    is drawn. A request to stop ends it between two frames, as `KeyboardInterrupt`. `name` is
    what recordings call the player.
    """
    with StopRequest() as stop, steady_memory():
        for count in range(1, num_frames + 1):
            if stop.requested:
                return
            session.begin(player.act(session.observation), name)
            session.finish()
            if session.ended and count < num_frames:
                session.reset()
                player.reset(count)
            yield count
