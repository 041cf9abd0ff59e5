"""Players that know where they are: who plays a real game tells them its map, and the pose of each frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from policies.base import Policy

Point = tuple[float, float]
Pose = tuple[float, float, float]


class FloorPlan(Protocol):
    """Rooms, known by their numbers, and the ways between them; points are x, y in the game's units."""

    def find_room(self, x: float, y: float) -> int:
        """Return the room that a point is in."""
        ...

    def neighbours(self, room: int) -> Sequence[int]:
        """Return the rooms that a way leads to from `room`."""
        ...

    def threshold(self, room: int, other: int) -> Point:
        """Return the point in `room` in front of the way to `other`; ways between such points are free."""
        ...


@runtime_checkable
class Navigator(Policy, Protocol):
    """A player that is told its map after `reset`, and where it is before each `act` or `watch`."""

    def enter(self, plan: FloorPlan) -> None:
        """Begin in a place with this map."""
        ...

    def locate(self, pose: Pose) -> None:
        """Stand at x, y in the game's units, looking along an angle in degrees, 90 to the north of east."""
        ...

    @property
    def activity(self) -> str:
        """What the action last returned is part of, in a word or two; empty if it has no name."""
        ...
