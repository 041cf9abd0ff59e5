"""A grid of random tiles seen through a small view: gameplay video that walks away and comes back exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH
from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episodes import EpisodeWriter
from worldsim.model.frame_context import FrameContext
from worldsim.simulator import Prediction, Simulator
from worldsim.starts import Start
from worldsim.state import WorldState

TILE = 8
SIDE = 400
COLOURS = np.array(
    [[230, 30, 30], [30, 200, 30], [40, 60, 220], [230, 220, 40], [20, 20, 20], [240, 240, 240]]
)
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
        name="grid",
        width=WIDTH,
        height=HEIGHT,
        frame_rate=10.0,
        actions=TINY_ACTIONS,
        source="a grid of tiles",
    )
    info.save(folder)
    for episode in range(episodes):
        grid = np.random.default_rng((7, gap, episode)).integers(len(COLOURS), size=(SIDE, SIDE))
        rng = np.random.default_rng((gap, episode // 2 if is_paired else episode))
        actions = np.concatenate([out_and_back(rng, context, gap), np.zeros((tail, 3), dtype=np.int64)])
        with EpisodeWriter(folder, f"episode-{episode:03d}", info) as writer:
            walk(writer, grid, actions, has_poses=has_poses)
    return folder


def walk(writer: EpisodeWriter, grid: np.ndarray, actions: np.ndarray, *, has_poses: bool = True) -> None:
    """Record a walk over a grid from its middle on, `[T, 3]`."""
    place = np.array([SIDE // 2, SIDE // 2])
    for action in [*actions, None]:
        pose = (float(place[1]), float(place[0]), 0.0) if has_poses else None
        writer.add(view(grid, place), action, pose=pose)
        if action is not None and action.any():
            place = place + MOVES[tuple(action[:2].tolist())]


def write_walks(folder: Path, gaps: Sequence[int], *, context: int = 3, has_poses: bool = True) -> Path:
    """Write an episode for each gap, which walks out and back by so many frames; return the folder."""
    shape = {"width": WIDTH, "height": HEIGHT, "frame_rate": 10.0}
    info = DatasetInfo(name="grid", actions=TINY_ACTIONS, lossless=True, **shape)
    info.save(folder)
    for episode, gap in enumerate(gaps):
        rng = np.random.default_rng((9, episode))
        grid = rng.integers(len(COLOURS), size=(SIDE, SIDE))
        with EpisodeWriter(folder, f"episode-{episode:03d}", info) as writer:
            walk(writer, grid, out_and_back(rng, context, gap), has_poses=has_poses)
    return folder


class MapSimulator(Simulator):
    """Remembers a grid perfectly: its recurrent state is a map of all that was seen, its path is where it is.

    What it has not seen it draws in grey.
    """

    ROOM = 60
    """Tiles to each side of where it began."""

    def start(self, starts: Sequence[Start], seeds: Sequence[int]) -> WorldState:
        """Begin at the middle of an empty map; of the start only the last frame is looked at."""
        count, side = len(starts), 2 * self.ROOM
        memory = replace(
            self.world.denoiser.initial_memory(count),
            matrices=torch.zeros(1, count, 1, side, side * 3),
            phase=torch.zeros(count, 2),
        )
        frames = torch.stack([start.frames[-1] for start in starts])
        numbers = torch.zeros(count, dtype=torch.int64)
        state = WorldState(memory=memory, frame_index=numbers, seed=torch.tensor(list(seeds)), frames=frames)
        return self._written(state, frames)

    def predict(self, state: WorldState, actions: Tensor, poses: Tensor | None = None) -> Prediction:
        """Draw what the map shows where the action leads to."""
        phase = state.memory.phase + moves_of(actions)
        frames = torch.stack([self._look(state, row, phase[row]) for row in range(len(phase))])
        return Prediction(frames, phase, cast(FrameContext, None))

    def commit(self, state: WorldState, prediction: Prediction) -> WorldState:
        """Go there; write what was drawn."""
        memory = replace(state.memory, phase=prediction.latents)
        moved = replace(state, memory=memory, frame_index=state.frame_index + 1, frames=prediction.frames)
        return self._written(moved, prediction.frames)

    def commit_frames(
        self, state: WorldState, frames: Tensor, actions: Tensor, poses: Tensor | None = None
    ) -> WorldState:
        """Go there; write what is shown."""
        return self.commit(
            state, Prediction(frames, state.memory.phase + moves_of(actions), cast(FrameContext, None))
        )

    def _place(self, phase: Tensor) -> tuple[slice, slice]:
        row, column = (int(x) + self.ROOM for x in phase)
        return slice(row, row + HEIGHT // TILE), slice(column, column + WIDTH // TILE)

    def _look(self, state: WorldState, row: int, phase: Tensor) -> Tensor:
        rows, columns = self._place(phase)
        seen = state.memory.matrices[0, row, 0].unflatten(1, (-1, 3))[rows, columns]
        seen = torch.where(seen.sum(-1, keepdim=True) > 0, seen, 128.0)
        return seen.byte().repeat_interleave(TILE, dim=0).repeat_interleave(TILE, dim=1)

    def _written(self, state: WorldState, frames: Tensor) -> WorldState:
        matrices = state.memory.matrices.clone()
        for row, frame in enumerate(frames):
            rows, columns = self._place(state.memory.phase[row])
            tiles = frame[TILE // 2 :: TILE, TILE // 2 :: TILE].float()
            matrices[0, row, 0].unflatten(1, (-1, 3))[rows, columns] = tiles
        return replace(state, memory=replace(state.memory, matrices=matrices))


class StillSimulator(MapSimulator):
    """Remembers nothing: it draws the frame shown last again."""

    def predict(self, state: WorldState, actions: Tensor, poses: Tensor | None = None) -> Prediction:
        """Draw the last frame."""
        drawn = super().predict(state, actions)
        return replace(drawn, frames=state.frames)


def moves_of(actions: Tensor) -> Tensor:
    """Return rows and columns that actions `[B, 3]` move by, `[B, 2]` fp32."""
    steps = torch.tensor([0.0, -1.0, 1.0])
    return steps[actions[:, :2]]
