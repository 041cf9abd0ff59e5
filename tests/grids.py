"""A grid of random tiles seen through a small view: gameplay video that walks away and comes back exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH
from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episodes import EpisodeWriter

TILE = 8
SIDE = 400
COLOURS = np.array([[230, 30, 30], [30, 200, 30], [40, 60, 220], [230, 220, 40], [20, 20, 20], [240, 240, 240]])
MOVES = {(1, 0): (-1, 0), (2, 0): (1, 0), (0, 1): (0, -1), (0, 2): (0, 1)}
"""Rows and columns by the values of the axes move and strafe."""
UNDO = np.array([0, 2, 1])


def view(grid: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return the frame `[HEIGHT, WIDTH, 3]` whose upper left tile is at `place` (row, column)."""
    rows, columns = HEIGHT // TILE, WIDTH // TILE
    cells = grid[place[0] : place[0] + rows, place[1] : place[1] + columns]
    return COLOURS[cells].astype(np.uint8).repeat(TILE, axis=0).repeat(TILE, axis=1)


def out_and_back(rng: np.random.Generator, context: int, gap: int) -> np.ndarray:
    """Return actions `[context + 2 gap, 3]`: a walk, another one away, and the second one undone."""
    moves = np.array([(*move, 0) for move in MOVES])
    wander = moves[rng.integers(len(moves), size=context)]
    ways = moves[rng.choice([0, 2], size=gap)]  # up and left: it never crosses itself
    return np.concatenate([wander, ways, UNDO[ways][::-1]])


def write_recall_set(
    data: Path,
    gap: int,
    *,
    episodes: int = 4,
    context: int = 3,
    is_paired: bool = False,
    has_poses: bool = True,
    tail: int = 0,
) -> Path:
    """Write the folder of one gap, `recall-NNN` or, two episodes with the same actions each, `pairs-NNN`.

    Args:
        data: Where to.
        gap: Frames out, and frames back.
        episodes: How many.
        context: Frames before the way out.
        is_paired: Whether episodes 0 and 1, 2 and 3 and so on have the same actions; grids always differ.
        has_poses: Whether poses are recorded.
        tail: Frames of nothing after the way back.
    """
    folder = data / f"{'pairs' if is_paired else 'recall'}-{gap:03d}"
    info = DatasetInfo(
        name="grid", width=WIDTH, height=HEIGHT, frame_rate=10.0, actions=TINY_ACTIONS, source="a grid of tiles"
    )
    info.save(folder)
    for episode in range(episodes):
        grid = np.random.default_rng((7, gap, episode)).integers(len(COLOURS), size=(SIDE, SIDE))
        rng = np.random.default_rng((gap, episode // 2 if is_paired else episode))
        actions = np.concatenate([out_and_back(rng, context, gap), np.zeros((tail, 3), dtype=np.int64)])
        place = np.array([SIDE // 2, SIDE // 2])
        with EpisodeWriter(folder, f"episode-{episode:03d}", info) as writer:
            for action in [*actions, None]:
                pose = (float(place[1]), float(place[0]), 0.0) if has_poses else None
                writer.add(view(grid, place), action, pose=pose)
                if action is not None and action.any():
                    place = place + MOVES[tuple(action[:2].tolist())]
    return folder
