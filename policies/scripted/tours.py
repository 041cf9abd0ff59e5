"""A player that knows its way: it leaves what it saw and comes back, turning, through a door or in a ring.

Distances are in map units of Doom, angles in degrees, counter-clockwise from east.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from policies import streams
from policies.base import FloorPlan, Point, Pose, ScriptedPlayer, check_range
from policies.scripted.returning import OPPOSITE, REST_FRAMES

NOTHING = np.zeros(3, dtype=np.int64)
FORWARD, LEFT, RIGHT = (np.array(action) for action in ([1, 0, 0], [0, 0, 1], [0, 0, 2]))
# A walking key speeds the player up by so much each tic, of which there are two in a frame; what is left of
# its speed a tic later.
THRUST, KEPT = 25 * 2048 / 65536, 0.90625
NEAR = 16.0  # a place is reached within this distance: a frame's key press moves the player by as much
STRAIGHT = 3.6  # a heading is reached within this angle: a frame of turning is 3.5 degrees, then 7
SLOW = 1.0  # speed, in units a frame, below which nobody sees the player move
HALF_TURN, WHOLE_TURN = 180.0, 360.0
BACK = " back"
KINDS = ("turn-around", "leave-and-return", "loop")


class TourPolicy(ScriptedPlayer):
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

    NUM_VALUES = (3, 3, 3)
    NEEDS = "the player that tours needs three axes (move, strafe, turn) of three values each"

    def __init__(
        self, num_values: Sequence[int], kinds: Sequence[str] = KINDS, out_frames: Sequence[int] = (60, 160)
    ) -> None:
        if not kinds or set(kinds) - set(KINDS):
            raise ValueError(f"kinds of tours are {', '.join(KINDS)}, got {list(kinds)}")
        self._kinds, self._out_frames = tuple(kinds), check_range("out_frames", out_frames)
        super().__init__(num_values)

    def reset(self, seed: int) -> None:
        """Start a new episode; its map comes next."""
        self._rng = np.random.default_rng((seed, streams.TOURS))
        self._plan: FloorPlan | None = None
        self._poses: deque[Pose] = deque(maxlen=2)
        self._pressed: list[np.ndarray] = []
        self._activity = ""
        self._actions = self._make_tours()

    def enter(self, plan: FloorPlan) -> None:
        """Begin in a place with this map."""
        self._plan = plan

    def locate(self, pose: Pose) -> None:
        """Stand at x, y and an angle in degrees."""
        self._poses.append(pose)

    @property
    def activity(self) -> str:
        """The kind of the tour that the action last returned is part of; empty between two tours."""
        return self._activity

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[3]` int64; it does not depend on the picture.

        Raises:
            ValueError: If no map or no pose was told.
        """
        if self._plan is None or not self._poses:
            raise ValueError("the player that tours is told no map here: only doom-fresh-rooms has one")
        action = next(self._actions)
        last = self._pressed[-1] if self._pressed else NOTHING
        if last.any() and action.any() and (action != last).any():
            action = NOTHING  # what is undone must have been let go in between
        self._pressed.append(action)
        return action.copy()

    def watch(self, observation: np.ndarray) -> None:
        """See a frame at which somebody else acts: begin another tour from here."""
        self._pressed.append(NOTHING)
        self._activity = ""
        self._actions = self._make_tours()

    def _make_tours(self) -> Iterator[np.ndarray]:
        """Yield actions without end; each is chosen when the pose of its frame is known."""
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

    def _turn_by(self, way: np.ndarray, angle: float) -> Iterator[np.ndarray]:
        turned, heading = 0.0, self._pose[2]
        while turned < angle - STRAIGHT / 2:
            yield way
            turned += abs(difference(self._pose[2], heading))
            heading = self._pose[2]

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

    def _walk_to(self, place: Point) -> Iterator[np.ndarray]:
        """Walk straight to a place, and stand still there."""
        while math.dist(place, stop := self._stopping_place()) > NEAR:
            heading = math.degrees(math.atan2(place[1] - stop[1], place[0] - stop[0]))
            if abs(difference(heading, self._pose[2])) > STRAIGHT:
                yield from self._turn_to(heading)
            else:
                yield FORWARD
        while math.hypot(*self._step()) > SLOW:
            yield NOTHING

    def _turn_to(self, heading: float) -> Iterator[np.ndarray]:
        while abs(error := difference(heading, self._pose[2])) > STRAIGHT / 2:
            yield LEFT if error > 0 else RIGHT

    def _stopping_place(self) -> Point:
        """Return where the player slides to if no key is pressed from here on."""
        x, y, heading = self._pose
        thrust = THRUST if self._pressed and self._pressed[-1][0] else 0.0
        along = (math.cos(math.radians(heading)), math.sin(math.radians(heading)))
        stop = []
        for place, step, share in zip((x, y), self._step(), along, strict=True):
            # The step is the sum of two tics' speeds, first + second; second = KEPT * first + thrust.
            speed = (KEPT * step + thrust * share) / (1 + KEPT)
            stop.append(place + speed * KEPT / (1 - KEPT))
        return stop[0], stop[1]

    def _step(self) -> Point:
        """Return how far the player moved in the last frame."""
        first, last = self._poses[0], self._poses[-1]
        return last[0] - first[0], last[1] - first[1]

    def _rest(self) -> Iterator[np.ndarray]:
        yield from [NOTHING] * REST_FRAMES

    @property
    def _pose(self) -> Pose:
        return self._poses[-1]

    @property
    def _map(self) -> FloorPlan:
        assert self._plan is not None
        return self._plan


def difference(heading: float, other: float) -> float:
    """Return how far `heading` is to the left of `other`, -180 to 180 degrees."""
    return (heading - other + HALF_TURN) % WHOLE_TURN - HALF_TURN


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
