"""A map of rooms, as a value: what is where, and which ways lead from room to room.

Lengths are in map units, of which a walking player makes up to 17 a frame; x is east, y is north.
"""

from __future__ import annotations

from dataclasses import dataclass

CELL = 448  # of the grid, of which each holds a room
THRESHOLD = 44  # from a wall to the place in front of a passage: the player's radius, and some more
SIDES = ("west", "north", "east", "south")  # clockwise, as walls are written
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Area:
    """A rectangle of floor, with what covers it.

    Attributes:
        west, south, east, north: Its borders.
        ceiling: Height above the floor.
        light: 0 dark to 255 bright.
        floor_flat, ceiling_flat: Names of textures.
        walls: Names of textures of the sides: west, north, east, south.
        panels: On each side, the name of a texture that part of its wall has; empty for none.
    """

    west: int
    south: int
    east: int
    north: int
    ceiling: int
    light: int
    floor_flat: str
    ceiling_flat: str
    walls: tuple[str, str, str, str]
    panels: tuple[str, str, str, str] = ("", "", "", "")

    @property
    def middle(self) -> Point:
        """The point x, y in its middle."""
        return (self.west + self.east) / 2, (self.south + self.north) / 2

    def contains(self, x: float, y: float) -> bool:
        """Whether a point lies inside or on the border."""
        return self.west <= x <= self.east and self.south <= y <= self.north


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """What joins two rooms, the first one west or south of the second.

    Attributes:
        rooms: Their numbers.
        runs_east: Whether it runs from west to east, else from south to north.
        area: Its floor, which touches both.
    """

    rooms: tuple[int, int]
    runs_east: bool
    area: Area

    def threshold(self, room: int) -> Point:
        """Return the point x, y in one of its rooms that is right in front of it."""
        x, y = self.area.middle
        is_first = room == self.rooms[0]
        if self.runs_east:
            return (self.area.west - THRESHOLD if is_first else self.area.east + THRESHOLD), y
        return x, (self.area.south - THRESHOLD if is_first else self.area.north + THRESHOLD)


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that stands in a room: its editor number, its place and where it looks, in whole degrees."""

    kind: int
    x: int
    y: int
    angle_degrees: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RoomMap:
    """Rooms, what joins them, and what stands in them.

    Attributes:
        columns, rows: Of the grid; room number `row * columns + column` is in that cell.
        rooms: All rooms; every one can be reached.
        passages: At most one for each two neighbours.
        decorations: Solid, and off the straight ways in a room between passages, its middle and the start.
        start: Where the player begins.
    """

    columns: int
    rows: int
    rooms: tuple[Area, ...]
    passages: tuple[Passage, ...]
    decorations: tuple[Thing, ...]
    start: Thing

    def find_room(self, x: float, y: float) -> int:
        """Return the number of the room whose cell holds a point; half of a passage belongs to each."""
        column, row = (int(value // CELL) for value in (x, y))
        return min(max(row, 0), self.rows - 1) * self.columns + min(max(column, 0), self.columns - 1)

    def neighbours(self, room: int) -> tuple[int, ...]:
        """Return the rooms that passages lead to from `room`, sorted."""
        return tuple(sorted(sum(one.rooms) - room for one in self.passages if room in one.rooms))

    def threshold(self, room: int, other: int) -> Point:
        """Return the point x, y in `room` that is right in front of the passage to `other`.

        From any such point, and from the start, the straight way to any other in the same room is free, and
        so is the way through the passage.
        """
        pair = (min(room, other), max(room, other))
        return next(passage.threshold(room) for passage in self.passages if passage.rooms == pair)
