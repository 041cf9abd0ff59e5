"""A player that looks away and back, or walks away and back along its own trail, and needs no map.

Another player leads it on between two excursions, and on the way out. Distances are in map units of Doom,
angles in degrees, counter-clockwise from east.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from policies import streams
from policies.base import Point, Policy, check_range
from policies.scripted.guided import (
    BACK,
    LEFT,
    NOTHING,
    RIGHT,
    STRAIGHT,
    WHOLE_TURN,
    GuidedPlayer,
    difference,
)

EXCURSIONS = ("look-around", "retrace")
LOOKS = (90.0, 180.0, WHOLE_TURN)  # looks away by so much and back, or once all around; all equally likely
PACES = ((1, 0), (1, 0), (3, 1), (1, 1))  # frames in which a turning key is held, and let go, in turn
PAUSE_FRAMES = (2, 12)  # before it looks back
LED_FRAMES = (24, 72)  # in which it is led on, after each excursion
REACH = 256.0  # a way out ends so far away, where it can be had within twice its frames
CROSSING = 24.0  # where the trail comes so near to itself, the way back cuts across
AHEAD = 40.0  # it steers for the point of the trail so far ahead
AIM, ASKEW = 5.0, 40.0  # errors of heading above which it turns, and above which it stands meanwhile
PATIENCE = 4  # times the frames of the way out, after which it gives up the way back


class ExcursionPolicy(GuidedPlayer):
    """Make one excursion after the other, from where another player leads it.

    - `look-around` stands, turns away by 90 or 180 degrees and back, or all around, at one of several speeds,
      and ends within 2 degrees of where it looked.
    - `retrace` lets the other player lead it away, turns round, walks back along its trail, without the
      detours, and ends within some 16 units and 2 degrees of the pose where it began.

    `activity` is the kind of the excursion; ` back` is added on the way back.

    Args:
        num_values: Number of values of each axis; must be `NUM_VALUES`.
        leader: Walks on between two excursions.
        kinds: The kinds of excursions, drawn with equal shares.
        out_frames: Minimum and maximum number of frames of the way out of `retrace`.

    Raises:
        ValueError: If the axes are others, a kind is unknown, or the frames are out of order.
    """

    STREAM = streams.EXCURSIONS
    NEEDS = "the player that looks around needs three axes (move, strafe, turn) of three values each"

    def __init__(
        self,
        num_values: Sequence[int],
        leader: Policy,
        kinds: Sequence[str] = EXCURSIONS,
        out_frames: Sequence[int] = (60, 160),
    ) -> None:
        if not kinds or set(kinds) - set(EXCURSIONS):
            raise ValueError(f"kinds of excursions are {', '.join(EXCURSIONS)}, got {list(kinds)}")
        self._leader, self._kinds = leader, tuple(kinds)
        self._out_frames = check_range("out_frames", out_frames)
        super().__init__(num_values)

    def reset(self, seed: int) -> None:
        """Start a new episode with an excursion."""
        self._leader.reset(seed)
        super().reset(seed)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[3]` int64, for `observation`, `[height, width, 3]` uint8.

        Raises:
            ValueError: If no pose was told.
        """
        self._picture, self._is_led = observation, False
        action = super().act(observation)
        if not self._is_led:
            self._leader.watch(observation)
        return action

    def watch(self, observation: np.ndarray) -> None:
        """See a frame at which somebody else acts: begin another excursion from here."""
        self._leader.watch(observation)
        super().watch(observation)

    def _play(self) -> Iterator[np.ndarray]:
        while True:
            yield from self._rest()
            kind = self._activity = self._kinds[self._rng.integers(len(self._kinds))]
            yield from self._look_around() if kind == "look-around" else self._retrace()
            self._activity = ""
            yield from self._pause()
            for _ in range(self._draw(LED_FRAMES)):
                yield self._follow()

    def _let_go(self, last: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Return what is pressed: no turning key right after the other, which would turn at full speed."""
        turns = np.array([0, 0, last[2] and action[2] and last[2] != action[2]])
        return np.where(turns, 0, action)

    def _look_around(self) -> Iterator[np.ndarray]:
        heading, angle = self._pose[2], float(self._rng.choice(LOOKS))
        ways = (LEFT, RIGHT) if self._rng.random() < 0.5 else (RIGHT, LEFT)
        yield from self._at_a_pace(self._turn_by(ways[0], angle))
        if angle < WHOLE_TURN:
            yield from self._pause()
            self._activity += BACK
            yield from self._at_a_pace(self._turn_by(ways[1], angle - 2 * STRAIGHT))
        yield from self._turn_to(heading)

    def _at_a_pace(self, turns: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Hold keys for some frames, and let go for some, over and over."""
        held, free = PACES[self._rng.integers(len(PACES))]
        for number, action in enumerate(turns, start=1):
            yield action
            if number % held == 0:
                yield from [NOTHING] * free

    def _retrace(self) -> Iterator[np.ndarray]:
        x, y, heading = self._pose
        num_frames, trail = self._draw(self._out_frames), [(x, y)]
        while len(trail) <= 2 * num_frames:
            yield self._follow()
            trail.append(self._pose[:2])
            if len(trail) > num_frames and math.dist(trail[0], trail[-1]) >= REACH:
                break
        yield from self._pause()
        self._activity += BACK
        frames_left = PATIENCE * num_frames
        for action in self._walk_back(without_detours([*trail, self._pose[:2]]), heading):
            if frames_left == 0:
                return
            yield action
            frames_left -= 1

    def _walk_back(self, trail: Sequence[Point], heading: float) -> Iterator[np.ndarray]:
        """Walk to the first point of a trail, from its last one, and look along a heading."""
        place = len(trail) - 1
        while place > 0:
            here = self._pose[:2]
            while place > 0 and math.dist(trail[place], here) < AHEAD:
                place -= 1
            x, y = trail[place]
            wanted = math.degrees(math.atan2(y - here[1], x - here[0]))
            error = difference(wanted, self._pose[2])
            turn = 0 if abs(error) < AIM else int(LEFT[2] if error > 0 else RIGHT[2])
            yield np.array([int(abs(error) < ASKEW), 0, turn])
        yield from self._walk_to(trail[0])
        yield from self._turn_to(heading)

    def _follow(self) -> np.ndarray:
        """Return what the leader presses."""
        self._is_led = True
        return self._leader.act(self._picture)

    def _pause(self) -> Iterator[np.ndarray]:
        yield from [NOTHING] * self._draw(PAUSE_FRAMES)

    def _draw(self, limits: tuple[int, int]) -> int:
        return int(self._rng.integers(*limits, endpoint=True))


def without_detours(trail: Sequence[Point]) -> list[Point]:
    """Return a trail of points without the loops in which it leads back to where it was."""
    kept: list[Point] = []
    for point in trail:
        for index, earlier in enumerate(kept[:-1]):
            if math.dist(earlier, point) < CROSSING and has_left(kept[index:]):
                del kept[index + 1 :]
                break
        kept.append(point)
    return kept


def has_left(points: Sequence[Point]) -> bool:
    """Whether a trail leads away from its first point, and not merely stands or creeps there."""
    return any(math.dist(points[0], point) > CROSSING for point in points)
