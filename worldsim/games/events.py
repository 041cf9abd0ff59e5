"""Declarations of a game for measures: its events, how pictures show them, and the meters in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Columns = Mapping[str, np.ndarray]
"""What is recorded of an episode, `[T]` each: its labels, `x`, `y` and `angle` of its poses, and what is
pressed on each axis; by the names of labels and axes.
"""
Find = Callable[[Columns], np.ndarray]
"""Returns of each frame whether something is so, `[T]` bool."""
Read = Callable[[np.ndarray], np.ndarray]
"""Reads a number from frames `[..., height, width, 3]` uint8, returns `[...]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sign:
    """Something that a picture shows or does not; what it looks like is learned from labelled recordings.

    Attributes:
        name: In words.
        rows, columns: First pixel, and the one after the last, of the part of the picture that is looked at.
        is_shown: Frames that show it, to learn from.
        is_hidden: Frames that do not; there may be others.
        is_sudden: Whether what has changed since the frame before is looked at, too.
    """

    name: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    is_shown: Find
    is_hidden: Find
    is_sudden: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """A number in the picture that grows.

    Attributes:
        name: In words.
        read: Reads it.
    """

    name: str
    read: Read


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that a button does, in some situations, and how the picture shows it.

    Attributes:
        name: In words.
        axis, button: What is pressed.
        quiet: Frames before, in which the button was not pressed; 0 where it may have been held.
        given: Frames at which pressing the button can do it.
        happens: Frames at which it has happened, as the game says.
        within: It happens, or does not, within so many frames.
        shows: What is to be seen then.
        is_certain: Only situations count in which the game did it; else its rate is measured, too.
        least_frames: Frames of these in which a sign is to be seen at least.
        needs_press: Whether it never happens without the button, which is then measured, too.
    """

    name: str
    axis: str
    button: str
    quiet: int
    given: Find
    happens: Find
    within: int
    shows: Sign | Count
    is_certain: bool = True
    least_frames: int = 1
    needs_press: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Meter:
    """A number that the picture shows, and whose end is the player's.

    Attributes:
        label: Its name among the labels.
        read: Reads it from a picture.
        least_change: Smaller changes are none.
        empty: At this or less the player is dead.
    """

    label: str
    read: Read
    least_change: float
    empty: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """All that can be measured of a game by its events.

    Attributes:
        events: What buttons do.
        meter: What tells how the player is.
        open_view: Shown where one can walk ahead, hidden before a wall that one has walked into.
        forward, backward, turn: Axis and button of each.
        num_rows: Rows of the picture above what is drawn over it.
    """

    events: tuple[Event, ...]
    meter: Meter
    open_view: Sign
    num_rows: int
    forward: tuple[str, str] = ("move", "forward")
    backward: tuple[str, str] = ("move", "backward")
    turn: tuple[str, str] = ("turn", "left")
