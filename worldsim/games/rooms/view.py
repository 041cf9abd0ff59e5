"""The view of a map of rooms from a pose, and which parts of it were in view before.

Surfaces are found by geometry alone, so poses that were recorded are enough; no game has to run. Things that
stand about are looked through: what is said of their pixels is said of the wall or floor behind them. The
eye's bobbing while walking, up to 8 units, is left out.
"""

# W columns of the picture, S stretches of a line of sight, N points

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldsim.games.rooms.map import RoomMap

HEIGHT, WIDTH = 120, 160  # of a frame
EYE = 41.0  # height of the player's eye above the floor
FOCUS = (WIDTH / 2, 1.2 * WIDTH / 2)  # pixels across and up for a slope of 1: 90 degrees, on pixels 1.2 high
MAX_STRETCHES = 24  # rooms and passages that one line of sight leads through
BLOCK = 4  # pixels; masks are judged in the middle of blocks of 4 x 4
# A point is hidden by what is nearer than it by more than this, in map units and as a share of its distance.
SLACK, SLACK_SHARE = 4.0, 0.02
BEYOND = 1e-3  # so far on from the end of one area, one is in the next


@dataclass(frozen=True, slots=True)
class Outlook:
    """The lines of sight of a pose, one for each column of the picture, cut where they enter another area.

    Distances are measured along the direction in which the player looks, in map units.

    Attributes:
        eye: x, y of the player.
        ahead, right: `[2]` unit vectors: where the player looks, and to the right of it.
        ends: `[W, S]` distance at which each stretch of the line ends; after the last one, that of the wall.
        ceilings: `[W, S]` height of the ceiling along each stretch; after the last one, that of the last.
    """

    eye: np.ndarray
    ahead: np.ndarray
    right: np.ndarray
    ends: np.ndarray
    ceilings: np.ndarray

    def find_points(self) -> np.ndarray:
        """Return the point x, y, z of a surface in the middle of each block, `[H/4, W/4, 3]`."""
        rows = np.arange(BLOCK / 2, HEIGHT, BLOCK)
        columns = np.arange(BLOCK // 2, WIDTH, BLOCK)
        rise = ((HEIGHT / 2 - rows) / FOCUS[1])[:, None]  # [H/4, 1]
        ends, ceilings = self.ends[columns], self.ceilings[columns]  # [W/4, S]
        lowest = np.minimum(ceilings, np.roll(ceilings, -1, axis=1))
        lowest[:, -1] = ceilings[:, -1]
        heights = EYE + rise[..., None] * ends  # [H/4, W/4, S], at the end of each stretch
        is_stopped = (heights > lowest) | (heights < 0) | (ends == ends[:, -1:])
        stretch = is_stopped.argmax(axis=-1)  # the first one that ends at a surface
        number = np.arange(len(columns))
        with np.errstate(divide="ignore"):
            level = np.where(rise > 0, (ceilings[number, stretch] - EYE) / rise, -EYE / rise)
        distance = np.minimum(np.where(level > 0, level, np.inf), ends[number, stretch])
        aside = ((columns + 0.5 - WIDTH / 2) / FOCUS[0])[None, :, None]
        ground = self.eye + distance[..., None] * (self.ahead + aside * self.right)
        return np.concatenate([ground, (EYE + rise * distance)[..., None]], axis=-1)

    def shows(self, points: np.ndarray) -> np.ndarray:
        """Return which points of surfaces, `[N, 3]`, are in view from here, `[N]` bool."""
        away = points[:, :2] - self.eye
        distance = away @ self.ahead
        with np.errstate(divide="ignore", invalid="ignore"):
            across = WIDTH / 2 + FOCUS[0] * (away @ self.right) / distance
            rise = (points[:, 2] - EYE) / distance
        is_framed = (distance > 1) & (np.abs(rise) * FOCUS[1] <= HEIGHT / 2)
        is_framed &= (across >= 0) & (across <= WIDTH)
        shown = np.zeros(len(points), dtype=bool)
        chosen = np.flatnonzero(is_framed)
        for offset in (-0.5, 0.5):  # a line of sight to its left or to its right
            column = np.clip(np.floor(across[chosen] + offset), 0, WIDTH - 1).astype(np.int64)
            shown[chosen] |= self._reaches(column, distance[chosen], rise[chosen])
        return shown

    def _reaches(self, column: np.ndarray, distance: np.ndarray, rise: np.ndarray) -> np.ndarray:
        ends, ceilings = self.ends[column], self.ceilings[column]  # [N, S]
        near = distance * (1 - SLACK_SHARE) - SLACK
        lowest = np.minimum(ceilings[:, :-1], ceilings[:, 1:])
        is_passed = ends[:, :-1] < near[:, None]
        is_blocked = is_passed & (EYE + rise[:, None] * ends[:, :-1] > lowest + SLACK)
        return (near <= ends[:, -1]) & ~np.any(is_blocked, axis=1)


def look(rooms: RoomMap, pose: np.ndarray) -> Outlook:
    """Return the lines of sight from a pose: x, y and the heading in degrees.

    Raises:
        ValueError: If the pose is not inside the map.
    """
    areas = [*rooms.rooms, *(passage.area for passage in rooms.passages)]
    borders = np.array([(area.west, area.south, area.east, area.north) for area in areas], dtype=float)
    heights = np.array([area.ceiling for area in areas], dtype=float)
    heading = np.deg2rad(pose[2])
    ahead = np.array([np.cos(heading), np.sin(heading)])
    right = np.array([ahead[1], -ahead[0]])
    aside = (np.arange(WIDTH) + 0.5 - WIDTH / 2) / FOCUS[0]
    ways = ahead + aside[:, None] * right  # [W, 2], per unit of distance
    eye = np.asarray(pose[:2], dtype=float)
    here = find_areas(np.broadcast_to(eye, (WIDTH, 2)), borders)
    if here[0] < 0:
        raise ValueError(f"the pose {eye.tolist()} is not inside the map")
    ends, ceilings = [], []
    for _ in range(MAX_STRETCHES):
        limits = np.where(ways > 0, borders[here][:, 2:], borders[here][:, :2])
        with np.errstate(divide="ignore", invalid="ignore"):
            leaves = np.where(ways == 0, np.inf, (limits - eye) / ways).min(axis=1)
        ends.append(leaves)
        ceilings.append(heights[here])
        there = find_areas(eye + (leaves + BEYOND)[:, None] * ways, borders)
        if (there < 0).all():
            break
        here = np.where(there < 0, here, there)
    return Outlook(eye, ahead, right, np.stack(ends, axis=1), np.stack(ceilings, axis=1))


def find_areas(points: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Return the number of the area that each point `[N, 2]` is in, `[N]`, or -1.

    Args:
        points: x, y of each.
        borders: West, south, east and north of each area, `[areas, 4]`.
    """
    west_south, east_north = borders[:, :2], borders[:, 2:]
    is_inside = np.all((points[:, None] >= west_south) & (points[:, None] <= east_north), axis=2)
    return np.where(is_inside.any(axis=1), is_inside.argmax(axis=1), -1)


def find_seen(rooms: RoomMap, context_poses: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Return which parts of some views were in view before, judged in blocks of 4 x 4 pixels.

    Args:
        rooms: The map.
        context_poses: `[C, 3]` x, y and heading in degrees of the frames that count as before.
        poses: `[T, 3]`, of the frames that are judged.

    Returns:
        `[T, 120, 160]` bool.

    Raises:
        ValueError: If a pose is not inside the map.
    """
    views = [look(rooms, pose) for pose in np.unique(np.asarray(context_poses, dtype=float), axis=0)]
    masks = []
    for pose in poses:
        points = look(rooms, pose).find_points()
        flat = points.reshape(-1, 3)
        seen = np.zeros(len(flat), dtype=bool)
        for view in views:
            left = np.flatnonzero(~seen)
            seen[left] = view.shows(flat[left])
        blocks = seen.reshape(points.shape[:2])
        masks.append(blocks.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1))
    return np.array(masks).reshape(-1, HEIGHT, WIDTH)
