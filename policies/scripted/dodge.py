"""A player of Take Cover that sees nothing but the picture: it runs back and forth and dodges fireballs.

A fireball flies straight to where the player stood when it was thrown. The picture tells where each one is,
how fast it crosses the floor, and where the player stands between the walls. For each way to run, the player
works out how near each fireball would pass, and takes the best. Lengths are in map units, times in frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.base import ScriptedPlayer

HORIZON, BOTTOM = 0.4, 0.92  # rows looked at, as shares of the height: down to the bar of health
# Nothing but a fireball is so many times as green as the floor, also when a hit tinges it all with red.
BALL_GREEN = 2.0
BALL_WIDTH, BALL_SPEED = 14.5, 19.0
MIN_WIDTH = 0.012  # as a share of the picture's; what is narrower is a monster about to throw
WALL_BROWN = 14  # a wall's red over its blue; floor and ceiling are grey
WALL_HEIGHT = 83.0  # as a share of the picture's, times the distance
ROOM, RADIUS = 368.0, 16.0  # from the middle of the floor to where the player stops, and on to the wall
TOP_SPEED, KEPT = 16.0, 0.82  # each frame the speed goes 18 % of the way to the one wanted
HIT = 24.0  # a fireball that passes nearer than this hits
AHEAD = 24  # frames looked ahead
PRESSES = {-1: 1, 0: 0, 1: 2}  # value of the axis for each way to run: left, neither, right
# Ways to run and frames until turning round.
PLANS = ((0, AHEAD), *((way, turn) for way in (-1, 1) for turn in (4, 8, 12, AHEAD)))
# Where nothing threatens it runs as it likes, but off the walls: a way drawn with these shares, for so long.
WHIMS, WHIM_SHARES, WHIM_FRAMES = (-1, 0, 1), (0.4, 0.2, 0.4), (5, 50)
NEAR_WALL = 300.0


@dataclass(slots=True)
class Fireball:
    """How far ahead it is, where across the floor, how fast across it, and in how many frames it was seen."""

    distance: float
    across: float = 0.0
    speed: float = 0.0
    age: int = 0

    def advance(self) -> None:
        """Fly on for a frame."""
        self.distance -= BALL_SPEED
        self.across += self.speed

    def correct(self, distance: float, place: float, slope: float) -> None:
        """Take in how far away and in which direction it is seen from `place`."""
        self.distance += 0.4 * (distance - self.distance)
        change = place + slope * self.distance - self.across
        self.speed = float(np.clip(self.speed + max(1 / (self.age + 1), 0.25) * change, -15, 15))
        self.across += 0.6 * change
        self.age += 1


class DodgePolicy(ScriptedPlayer):
    """Run back and forth, and dodge."""

    NUM_VALUES = (3,)
    NEEDS = "the player that dodges needs one axis (strafe) of three values"

    def reset(self, seed: int) -> None:
        """Start a new episode."""
        self._rng = np.random.default_rng(seed)
        self._fireballs: list[Fireball] = []
        self._place, self._speed = 0.0, 0.0
        self._whim, self._whim_frames = 0, 0

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[1]` int64, for `observation`, `[height, width, 3]` uint8."""
        self.watch(observation)
        self._draw_whim()
        way, _ = min(PLANS, key=lambda plan: self._danger(*plan))
        self._place, self._speed = run(self._place, self._speed, way)
        return np.array([PRESSES[way]], dtype=np.int64)

    def watch(self, observation: np.ndarray) -> None:
        """See a frame at which somebody else acts: where one stands, and what flies."""
        place = find_place(observation)
        if place is not None:
            self._place += 0.5 * (place - self._place)
        self._follow(find_fireballs(observation))

    def _draw_whim(self) -> None:
        if self._whim_frames == 0:
            self._whim = int(self._rng.choice(WHIMS, p=WHIM_SHARES))
            self._whim_frames = int(self._rng.integers(*WHIM_FRAMES, endpoint=True))
        self._whim_frames -= 1
        if abs(self._place) > NEAR_WALL:
            self._whim = -int(np.sign(self._place))

    def _follow(self, seen: np.ndarray) -> None:
        """Match the fireballs in the picture, `[count, 2]` of `find_fireballs`, with those known."""
        for fireball in self._fireballs:
            fireball.advance()
        unseen = [fireball for fireball in self._fireballs if fireball.distance > -BALL_SPEED]
        self._fireballs = []
        for middle, width in seen:
            # With 90 degrees of view, half the picture's width is as much across as it is ahead.
            found = Fireball(0.5 * BALL_WIDTH / width)
            found.across = self._place + 2 * middle * found.distance
            is_whole = abs(middle) + width / 2 < 0.49  # not cut off by the picture's edge
            if same := [fireball for fireball in unseen if is_same(fireball, found)]:
                known = min(same, key=lambda fireball: abs(fireball.across - found.across))
                unseen.remove(known)
                if is_whole:
                    known.correct(found.distance, self._place, 2 * middle)
                self._fireballs.append(known)
            elif is_whole:
                self._fireballs.append(found)
        # Out of sight at the picture's edge, or hidden by a nearer one: they fly on all the same.
        self._fireballs += [fireball for fireball in unseen if fireball.age >= 2]

    def _danger(self, way: int, turn: int) -> float:
        """Return how dangerous it is to run `way` (-1, 0 or 1) and to turn round after `turn` frames."""
        places, speed = [self._place], self._speed
        for frame in range(AHEAD):
            place, speed = run(places[-1], speed, way if frame < turn else -way)
            places.append(place)
        danger = 0.02 * (way != self._whim) + 0.005 * (turn < AHEAD)
        danger += 0.3 * max(0.0, abs(places[AHEAD // 2]) / ROOM - 0.8)  # at a wall there is one way less
        for fireball in self._fireballs:
            frames = max(fireball.distance / BALL_SPEED, 0)
            if fireball.age and frames <= AHEAD:
                miss = np.interp(frames, range(AHEAD + 1), places) - fireball.across - fireball.speed * frames
                # The farther away, the less is known about where it will pass.
                danger += np.exp(-((miss / (HIT + frames)) ** 2)) / (1 + 0.1 * frames)
        return float(danger)


def is_same(known: Fireball, found: Fireball) -> bool:
    """Whether a fireball that was just found can be one that is known, and has flown on."""
    ratio = max(known.distance, 5.0) / found.distance
    return 0.6 < ratio < 1.65 and abs(known.across - found.across) < 25 + 0.12 * found.distance


def run(place: float, speed: float, way: int) -> tuple[float, float]:
    """Return place and speed a frame later, running `way`: -1 left, 1 right, 0 neither."""
    speed = KEPT * speed + (1 - KEPT) * TOP_SPEED * way
    if abs(place + speed) > ROOM:
        return float(np.copysign(ROOM, place)), 0.0
    return place + speed, speed


def find_fireballs(observation: np.ndarray) -> np.ndarray:
    """Return each fireball's middle and width, `[count, 2]`: shares of the picture's width, 0 its centre."""
    height, width = observation.shape[:2]
    green = observation[int(HORIZON * height) : int(BOTTOM * height), :, 1]
    bright = (green > BALL_GREEN * np.median(green)).any(axis=0)
    edges = np.flatnonzero(np.diff(bright.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    found = np.stack([edges.mean(axis=1) / width - 0.5, (edges[:, 1] - edges[:, 0]) / width], axis=1)
    return found[found[:, 1] > MIN_WIDTH]


def find_place(observation: np.ndarray) -> float | None:
    """Return how far right of the middle of the floor the player stands, or None if it cannot be seen.

    The walls at both ends meet the picture's edges, the higher the nearer they are.
    """
    height = observation.shape[0]
    picture = observation[: int(BOTTOM * height)].astype(np.int16)
    brown = picture[..., 0] - picture[..., 2] >= WALL_BROWN
    left, right = (float(brown[:, column].sum()) / height for column in (0, -1))
    nearer = max(left, right)
    if nearer == 0 or min(left, right) > 0.4 or nearer > 0.75:
        return None  # so near that its end is out of the picture, or all is red
    return float(np.copysign(ROOM + RADIUS - WALL_HEIGHT / nearer, right - left))
