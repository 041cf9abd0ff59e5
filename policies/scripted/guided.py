"""A player that is told where it stands: it turns to headings and walks to places.

Distances are in map units of Doom, angles in degrees, counter-clockwise from east.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from policies.base import FloorPlan, Point, Pose, ScriptedPlayer
from policies.scripted.returning import REST_FRAMES

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


class GuidedPlayer(ScriptedPlayer):
    """Keep to a plan whose every action is chosen when the pose of its frame is known.

    Classes that derive say in `_play` what it does, in `ACTIVITY` what it is, and draw from `_rng`.

    Args:
        num_values: Number of values of each axis; must be `NUM_VALUES`.

    Raises:
        ValueError: If the axes are others.
    """

    NUM_VALUES = (3, 3, 3)
    STREAM: ClassVar[int]

    def reset(self, seed: int) -> None:
        """Start a new episode; its map, if it has one, comes next."""
        self._rng = np.random.default_rng((seed, self.STREAM))
        self._plan: FloorPlan | None = None
        self._poses: deque[Pose] = deque(maxlen=2)
        self._pressed: list[np.ndarray] = []
        self._activity = ""
        self._actions = self._play()

    def _play(self) -> Iterator[np.ndarray]:
        """Yield actions without end."""
        raise NotImplementedError

    def enter(self, plan: FloorPlan) -> None:
        """Begin in a place with this map."""
        self._plan = plan

    def locate(self, pose: Pose) -> None:
        """Stand at x, y and an angle in degrees."""
        self._poses.append(pose)

    @property
    def activity(self) -> str:
        """What the action last returned is part of; empty between two activities."""
        return self._activity

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[3]` int64.

        Raises:
            ValueError: If no pose was told.
        """
        if not self._poses:
            raise ValueError("a player that goes by its pose is told none here: only real games tell it")
        action = next(self._actions)
        self._pressed.append(self._let_go(self._pressed[-1] if self._pressed else NOTHING, action))
        return self._pressed[-1].copy()

    def _let_go(self, last: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Return what is pressed after `last`: another action not before all keys have been let go."""
        is_another = last.any() and action.any() and (action != last).any()
        return NOTHING if is_another else action

    def watch(self, observation: np.ndarray) -> None:
        """See a frame at which somebody else acts: make another plan from here."""
        self._pressed.append(NOTHING)
        self._activity = ""
        self._actions = self._play()

    def _turn_by(self, way: np.ndarray, angle: float) -> Iterator[np.ndarray]:
        turned, heading = 0.0, self._pose[2]
        while turned < angle - STRAIGHT / 2:
            yield way
            turned += abs(difference(self._pose[2], heading))
            heading = self._pose[2]

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


def difference(heading: float, other: float) -> float:
    """Return how far `heading` is to the left of `other`, -180 to 180 degrees."""
    return (heading - other + HALF_TURN) % WHOLE_TURN - HALF_TURN
