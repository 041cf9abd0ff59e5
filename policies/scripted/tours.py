"""A player that knows its way: it leaves what it saw and comes back, turning, through a door or in a ring.

Distances are in map units of Doom, angles in degrees, counter-clockwise from east.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from policies import streams
from policies.base import FloorPlan, check_range
from policies.scripted.guided import BACK, HALF_TURN, LEFT, RIGHT, WHOLE_TURN, GuidedPlayer
from policies.scripted.returning import OPPOSITE

KINDS = ("turn-around", "leave-and-return", "loop")


class TourPolicy(GuidedPlayer):
    """Make one tour after the other, each followed by a rest.

    - `turn-around` turns on the spot, half the time by 360 degrees in one direction, else by 45 to 180
      degrees and back by the same key presses.
    - `leave-and-return` walks through rooms for some frames, by doors that were not just used where there are
      others, then undoes it all, the last frame first. It ends at the pose where it began.
    - `loop` walks round the shortest ring of rooms that leads through this one, and ends within a few units
      and degrees of the pose where it began. Where no ring leads through, it walks to the next room.

    `activity` is the kind of the tour; ` back` is added where key presses are undone.

    Before each tour but the first, the player walks on to another room. It never touches a wall: walking and
    turning are never pressed together, and it lets go and slides to a stop before each place it aims for.

    Args:
        num_values: Number of values of each axis; must be `NUM_VALUES`.
        kinds: The kinds of tours, drawn with equal shares.
        out_frames: Minimum and maximum number of frames of the way out of `leave-and-return`.

    Raises:
        ValueError: If the axes are others, a kind is unknown, or the frames are out of order.
    """

    STREAM = streams.TOURS
    NEEDS = "the player that tours needs three axes (move, strafe, turn) of three values each"

    def __init__(
        self, num_values: Sequence[int], kinds: Sequence[str] = KINDS, out_frames: Sequence[int] = (60, 160)
    ) -> None:
        if not kinds or set(kinds) - set(KINDS):
            raise ValueError(f"kinds of tours are {', '.join(KINDS)}, got {list(kinds)}")
        self._kinds, self._out_frames = tuple(kinds), check_range("out_frames", out_frames)
        super().__init__(num_values)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[3]` int64; it does not depend on the picture.

        Raises:
            ValueError: If no map or no pose was told.
        """
        if self._plan is None or not self._poses:
            raise ValueError("the player that tours is told no map here: only doom-fresh-rooms has one")
        return super().act(observation)

    def _play(self) -> Iterator[np.ndarray]:
        yield from self._rest()
        while True:
            kind = self._activity = self._kinds[self._rng.integers(len(self._kinds))]
            if kind == "turn-around":
                yield from self._turn_around()
            elif kind == "leave-and-return":
                yield from self._leave_and_return()
            else:
                yield from self._loop()
            self._activity = ""
            yield from self._rest()
            yield from self._stroll(came_from=None, num_rooms=1)
            yield from self._rest()

    def _turn_around(self) -> Iterator[np.ndarray]:
        way = LEFT if self._rng.random() < 0.5 else RIGHT
        if self._rng.random() < 0.5:
            heading = self._pose[2]
            yield from self._turn_by(way, WHOLE_TURN)
            yield from self._turn_to(heading)
            return
        begin = len(self._pressed)
        yield from self._turn_by(way, self._rng.uniform(HALF_TURN / 4, HALF_TURN))
        yield from self._undo(begin)

    def _leave_and_return(self) -> Iterator[np.ndarray]:
        begin = len(self._pressed)
        num_frames = int(self._rng.integers(*self._out_frames, endpoint=True))
        walk = self._stroll(came_from=None)
        for _ in range(num_frames):
            yield next(walk)
        yield from self._undo(begin)

    def _undo(self, begin: int) -> Iterator[np.ndarray]:
        """Press the opposite of all that was pressed since `begin`, the last first, between two rests."""
        way_out = self._pressed[begin:]
        yield from self._rest()
        self._activity += BACK
        for action in reversed(way_out):
            yield OPPOSITE[action]

    def _loop(self) -> Iterator[np.ndarray]:
        x, y, heading = self._pose
        room = self._map.find_room(x, y)
        ring = find_ring(self._map, room, self._rng)
        for here, there in zip([room, *ring], [*ring, room], strict=True):
            if ring:
                yield from self._pass(here, there)
        yield from self._walk_to((x, y))
        yield from self._turn_to(heading)

    def _stroll(self, came_from: int | None, num_rooms: float = math.inf) -> Iterator[np.ndarray]:
        """Walk from room to room, and back through the same door only where there is no other."""
        while num_rooms > 0:
            here = self._map.find_room(*self._pose[:2])
            doors = self._map.neighbours(here)
            others = [room for room in doors if room != came_from] or list(doors)
            there = others[self._rng.integers(len(others))]
            yield from self._pass(here, there)
            came_from, num_rooms = here, num_rooms - 1

    def _pass(self, here: int, there: int) -> Iterator[np.ndarray]:
        yield from self._walk_to(self._map.threshold(here, there))
        yield from self._walk_to(self._map.threshold(there, here))

    @property
    def _map(self) -> FloorPlan:
        assert self._plan is not None
        return self._plan


def find_ring(plan: FloorPlan, room: int, rng: np.random.Generator) -> list[int]:
    """Return the other rooms of a shortest ring through `room`, in their order, or none if there is no ring.

    Which way round, and which of several, is drawn.
    """
    doors = [int(door) for door in rng.permutation(list(plan.neighbours(room)))]
    rings = []
    for first in doors:
        for last in doors:
            if first != last and (way := find_way(plan, first, last, avoid=room)):
                rings.append(way)
    return min(rings, key=len, default=[])


def find_way(plan: FloorPlan, start: int, end: int, *, avoid: int) -> list[int]:
    """Return a shortest way from room to room that does not lead through `avoid`; empty if there is none."""
    ways, seen = deque([[start]]), {avoid, start}
    while ways:
        way = ways.popleft()
        if way[-1] == end:
            return way
        for room in plan.neighbours(way[-1]):
            if room not in seen:
                seen.add(room)
                ways.append([*way, room])
    return []
