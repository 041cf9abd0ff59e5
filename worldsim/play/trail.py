"""The way that a player believes to have gone, as a small map: the poses that the states of a dream hold."""

# S side of the map in pixels, N points of the way

from __future__ import annotations

import numpy as np

from worldsim.model.memory.odometry import PERIODS
from worldsim.model.memory.pose import kept_poses
from worldsim.state import WorldState

SIZE, MARGIN = 120, 12
"""Pixels of the map, and what stays free at its edges."""
MIN_SPAN = 256.0
"""Map units that it shows at least: who turns on the spot sees no noise blown up."""
GRID, MIN_APART = 256.0, 12.0
"""Map units between two lines, and pixels at least."""
MAX_POINTS = 4096
VIEW_DEGREES, VIEW_LENGTH = 45.0, 11.0
"""To each side of the heading, and in pixels: what the player looks at."""
PAPER, LINES = (12, 12, 16), (38, 38, 48)
OLD, NEW, PLAYER = (80, 84, 110), (225, 225, 225), (255, 208, 64)


class Trail:
    """The poses of the frames of a dream, as its states hold them; empty in worlds that follow none."""

    def __init__(self) -> None:
        self._first, self._poses = 0, []
        self._picture: np.ndarray | None = None

    def add(self, state: WorldState) -> None:
        """Note the state after one more frame."""
        if state.memory.odometry is not None:
            self._picture = None
            self._poses.append(_pose_of(state))
            if len(self._poses) > MAX_POINTS:
                self._first += 1
                del self._poses[0]

    def go_to(self, state: WorldState) -> None:
        """Begin at a state anew; from a moment of the way so far the way to it is kept."""
        if state.memory.odometry is None:
            return
        number, pose = int(state.frame_index[0]), _pose_of(state)
        place = number - self._first
        if 0 <= place < len(self._poses) and self._poses[place] == pose:
            del self._poses[place + 1 :]
        else:
            self._first, self._poses = number, [pose]
        self._picture = None

    def picture(self) -> np.ndarray | None:
        """Return the map, `[S, S, 3]` uint8, the same object while it stays; None without a way."""
        if self._picture is None and self._poses:
            self._picture = draw_map(np.array(self._poses))
        return self._picture


def _pose_of(state: WorldState) -> tuple[float, ...]:
    return tuple(kept_poses(state.memory.phase)[0].tolist())


def draw_map(poses: np.ndarray) -> np.ndarray:
    """Draw a way of poses `[N, 3]`, x and y on a torus and degrees: `[S, S, 3]` uint8.

    The picture shows x to the right and y up, all of the way, lines every 256 units (every 512, 1,024 and so
    on where these would be crowded), and what the player looks at in the end.
    """
    steps = np.diff(poses[:, :2], axis=0)
    periods = np.array(PERIODS[:2])
    steps -= periods * np.round(steps / periods)  # the way goes on where it leaves the torus
    way = np.concatenate([poses[:1, :2], poses[0, :2] + steps.cumsum(axis=0)])
    low, high = way.min(axis=0), way.max(axis=0)
    scale = (SIZE - 2 * MARGIN) / max(MIN_SPAN, *(high - low))
    middle = (low + high) / 2
    picture = np.full((SIZE, SIZE, 3), PAPER, dtype=np.uint8)
    apart = GRID * 2 ** np.ceil(np.log2(max(1.0, MIN_APART / (GRID * scale))))
    marks = apart * (np.round(middle / apart) + np.arange(-SIZE, SIZE)[:, None])
    columns, rows = _pixels(marks, middle, scale).round().astype(int).T
    picture[rows[(rows >= 0) & (rows < SIZE)]] = LINES
    picture[:, columns[(columns >= 0) & (columns < SIZE)]] = LINES
    points = _pixels(way, middle, scale)
    age = np.linspace(0, 1, len(points))[:, None]
    _draw_line(picture, points, np.array(OLD) + age * (np.array(NEW) - np.array(OLD)))
    for side in (-VIEW_DEGREES, 0.0, VIEW_DEGREES):
        angle = np.deg2rad(poses[-1, 2] + side)
        length = VIEW_LENGTH if side else 0.0
        tip = points[-1] + length * np.array([np.cos(angle), -np.sin(angle)])
        _draw_line(picture, np.stack([points[-1], tip]), np.array([PLAYER, PLAYER]))
    return picture


def _pixels(places: np.ndarray, middle: np.ndarray, scale: float) -> np.ndarray:
    """Return where places `[N, 2]` are on the map, `[N, 2]`, columns first."""
    return np.array([1, -1]) * scale * (places - middle) + SIZE / 2


def _draw_line(picture: np.ndarray, points: np.ndarray, colours: np.ndarray) -> None:
    """Draw a line through points `[N, 2]` in pixels, two pixels wide, each piece in its colour `[N, 3]`."""
    lengths = np.abs(np.diff(points, axis=0)).max(axis=1, initial=0.0)
    counts = np.ceil(2 * lengths).astype(int) + 1
    piece = np.repeat(np.arange(len(counts)), counts)
    share = (np.arange(len(piece)) - np.repeat(counts.cumsum() - counts, counts)) / counts[piece]
    along = points[piece] + share[:, None] * (points[piece + 1] - points[piece])
    along, piece = np.concatenate([along, points[-1:]]), np.append(piece, len(points) - 1)
    for shift in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = (along - 0.5 + np.array(shift)).round().astype(int).clip(0, SIZE - 1).T
        picture[row, column] = colours[piece].astype(np.uint8)
