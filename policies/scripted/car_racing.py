"""A driver for Gymnasium's CarRacing that knows the track, for `policy=own`.

It steers to a point of the track some way ahead, and chooses a speed that the curve there allows. Each
episode has a style of its own, drawn from its seed: how fast, how far beside the middle, how often it lets go
and does something else for a moment, so that a world also sees grass, and the way back from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

STEPS_AHEAD, STEPS_PER_SPEED = 3, 0.08  # points of the track ahead, and more of them for each unit of speed
CURVE_AHEAD = 14  # points over which a curve is seen
STEER_GAIN, STEER_DAMPING = 2.2, 0.25
SLOW, GRIP = 22.0, 34.0  # speed in the sharpest curves, and how much less sharp ones allow
MAX_GAS, MAX_BRAKE = 1.0, 0.6
TRACK_WIDTH = 40 / 6  # half of it, in the game's units
LAPSE_FRAMES = (4, 20)  # of doing something else


@dataclass(frozen=True, slots=True)
class Style:
    """How an episode is driven.

    Attributes:
        top_speed: On straights, in the game's units.
        curve_speed: Multiple of what curves allow.
        offset: Beside the middle of the road, as a share of half its width; to the left if positive.
        lapse_share: How likely a lapse begins at a frame.
    """

    top_speed: float
    curve_speed: float
    offset: float
    lapse_share: float


def draw_style(rng: np.random.Generator) -> Style:
    """Return a style: a third of the episodes are driven for the best score, the others at anything."""
    if rng.random() < 1 / 3:
        return Style(top_speed=70.0, curve_speed=1.0, offset=0.0, lapse_share=0.0)
    return Style(
        top_speed=float(rng.uniform(15, 90)),
        curve_speed=float(rng.uniform(0.6, 1.5)),
        offset=float(rng.uniform(-0.8, 0.8)),
        lapse_share=float(rng.choice([0.0, 0.005, 0.02])),
    )


def drive(env: Any, seed: int) -> Callable[[Any], np.ndarray]:
    """Return who drives an episode: a function from observations, which it needs not, to actions `[3]`.

    Args:
        env: CarRacing with continuous actions.
        seed: Of the style, and of what it does in lapses.
    """
    driver = Driver(env.unwrapped, np.random.default_rng(seed))
    return lambda _: driver.act()


def race(env: Any, seed: int) -> Callable[[Any], np.ndarray]:
    """Return who drives every episode for the best score."""
    driver = Driver(env.unwrapped, np.random.default_rng(seed), Style(70.0, 1.0, 0.0, 0.0))
    return lambda _: driver.act()


class Driver:
    """The driver of one episode.

    Args:
        game: The environment itself, under its wrappers, after its reset.
        rng: What style and lapses are drawn from.
        style: Drawn if there is none.
    """

    def __init__(self, game: Any, rng: np.random.Generator, style: Style | None = None) -> None:
        self._game, self._rng = game, rng
        self._style = style or draw_style(rng)
        self._points = np.array([point[2:4] for point in game.track])  # [N, 2]
        ahead = np.roll(self._points, -1, axis=0) - self._points
        self._headings = np.arctan2(ahead[:, 1], ahead[:, 0])
        lefts = np.stack([-np.sin(self._headings), np.cos(self._headings)], axis=1)
        self._line = self._points + self._style.offset * TRACK_WIDTH * lefts
        self._lapse, self._lapse_frames = np.zeros(3, dtype=np.float32), 0

    def act(self) -> np.ndarray:
        """Return steering (-1 to the left), gas and brake, `[3]` float32."""
        if self._lapse_frames == 0 and self._rng.random() < self._style.lapse_share:
            self._lapse_frames = int(self._rng.integers(*LAPSE_FRAMES, endpoint=True))
            self._lapse = self._rng.uniform([-1, 0, 0], [1, 1, 0.3]).astype(np.float32)
        if self._lapse_frames:
            self._lapse_frames -= 1
            return self._lapse
        return self._follow()

    def _follow(self) -> np.ndarray:
        hull = self._game.car.hull
        place, speed = np.array(hull.position), float(np.linalg.norm(hull.linearVelocity))
        nearest = int(np.linalg.norm(self._points - place, axis=1).argmin())
        reach = STEPS_AHEAD + round(STEPS_PER_SPEED * speed)
        target = self._line[(nearest + reach) % len(self._line)] - place
        heading = hull.angle + np.pi / 2  # at angle 0 the car looks up
        error = wrap(np.arctan2(target[1], target[0]) - heading)
        steer = -STEER_GAIN * error + STEER_DAMPING * hull.angularVelocity
        over = self._headings[(nearest + np.arange(reach, reach + CURVE_AHEAD)) % len(self._headings)]
        bend = float(np.abs(wrap(over - self._headings[nearest])).max())
        allowed = min(self._style.top_speed, self._style.curve_speed * (SLOW + GRIP / max(bend, 0.35)))
        allowed *= 1 - 0.5 * min(abs(error), 1.0)
        gas = np.clip(0.15 * (allowed - speed), 0, MAX_GAS) * (abs(steer) < 0.9 or speed < 20)
        brake = np.clip(0.05 * (speed - allowed - 5), 0, MAX_BRAKE)
        return np.array([np.clip(steer, -1, 1), gas, brake], dtype=np.float32)


def wrap(angles: Any) -> Any:
    """Return angles in radians from -pi to pi."""
    return (angles + np.pi) % (2 * np.pi) - np.pi
