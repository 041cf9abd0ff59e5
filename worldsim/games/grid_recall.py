"""Grid recall, a game of random tiles seen through a small view that moves by whole tiles.

A grid of 85 x 85 tiles of MiniGrid's, another one for each seed, of which the player sees 7 x 7. Nothing
tells what lies outside of the view but the memory of having been there. The view shifts and never turns; so a
walk is undone exactly by the opposite moves in the opposite order (the protocol of StateSpaceDiffuser,
arXiv 2505.22246).
The grid has no border: it goes on at its other side.
"""

# H W frame size, R C rows and columns of tiles, K kinds of tiles, P pixels of a tile's side

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np

from worldsim.actions import ActionAxis, ActionLayout
from worldsim.errors import WorldError
from worldsim.games.entry import MAX_SEED, GameEntry, Observation, RealGame

SIDE = 85
"""Tiles along each side of the grid."""
VIEW = 7
"""Tiles along each side of what is seen."""
TILE = 16
"""Pixels along each side of a tile."""
SHAPES = ("Ball", "Box", "Key", "Floor")
"""MiniGrid's objects that a tile shows, each in all of its six colours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridEntry(GameEntry):
    """A grid; no game ends, and nothing is rewarded."""

    game: str = f"grid recall, {SIDE} x {SIDE} tiles of {len(SHAPES) * 6} kinds, {VIEW} x {VIEW} seen"
    licence: str = "tiles as MiniGrid draws them (MIT)"
    height: int = VIEW * TILE
    width: int = VIEW * TILE
    recorded_by: str = "out-and-back"
    episode_frames: int = 401
    tics_per_second: float = 10.0  # for whoever watches: a grid has no time of its own
    lossless: bool = True

    def engine_version(self) -> str:
        """Return MiniGrid's."""
        return f"MiniGrid {import_minigrid().__version__}"

    def open(self, *, labelled: bool = False) -> GridGame:
        """Draw the tiles."""
        return GridGame(self)


GRID_RECALL = GridEntry(
    name="grid-recall",
    actions=ActionLayout(
        (
            ActionAxis(name="move", buttons=("up", "down"), keys=(("up", "w"), ("down", "s"))),
            ActionAxis(name="strafe", buttons=("left", "right"), keys=(("left", "a"), ("right", "d"))),
        )
    ),
)
STEPS = np.array([0, -1, 1])
"""By the value of an axis, how many tiles it moves the player: down for `move`, right for `strafe`."""


class GridGame(RealGame):
    """A grid to walk on.

    Poses are x (to the right) and y (down) of the tile in the middle, 0 to 84, and the angle 0.

    Args:
        entry: Buttons and name.

    Raises:
        WorldError: If MiniGrid is not installed.
    """

    def __init__(self, entry: GridEntry = GRID_RECALL) -> None:
        self.entry = entry
        self._tiles = draw_tiles()
        self._grid: np.ndarray | None = None
        self._place = np.array([SIDE // 2, SIDE // 2])

    def reset(self, seed: int, start: str = "") -> Observation:
        """Begin in the middle of the grid of a seed, 0 to `MAX_SEED`."""
        if not 0 <= seed <= MAX_SEED:
            raise WorldError(f"the seed of a grid must be 0 to {MAX_SEED}, got {seed}")
        self._grid = np.random.default_rng(seed).integers(len(self._tiles), size=(SIDE, SIDE))
        self._place = np.array([SIDE // 2, SIDE // 2])
        return self._observe()

    def step(self, action: np.ndarray) -> Observation:
        """Move by an action, `[2]` of the entry's layout.

        Raises:
            WorldError: If the action does not fit, or no episode is under way.
        """
        if self._grid is None:
            raise WorldError("the game has not been started: call reset first")
        self._place = (self._place + STEPS[self.entry.actions.validate(action)]) % SIDE
        return self._observe()

    @property
    def kinds(self) -> np.ndarray:
        """Numbers of the tiles in view, `[7, 7]` int64."""
        if self._grid is None:
            raise WorldError("the game has not been started: call reset first")
        around = np.arange(VIEW) - VIEW // 2
        rows, columns = (self._place[:, None] + around) % SIDE
        return self._grid[np.ix_(rows, columns)]

    def _observe(self) -> Observation:
        tiles = self._tiles[self.kinds]  # [R, C, P, P, 3]
        frame = tiles.swapaxes(1, 2).reshape(VIEW * TILE, VIEW * TILE, 3)
        row, column = self._place
        return Observation(frame, (float(column), float(row), 0.0))


def import_minigrid() -> ModuleType:
    """Import MiniGrid, or say how to install it."""
    try:
        import minigrid
    except ImportError as error:
        raise WorldError(f'grid recall needs MiniGrid: pip install -e ".[grid]" ({error})') from error
    return minigrid


@cache
def draw_tiles() -> np.ndarray:
    """Return the picture of each kind of tile, `[24, 16, 16, 3]` uint8, as MiniGrid draws them.

    Raises:
        WorldError: If MiniGrid is not installed.
    """
    import_minigrid()
    from minigrid.core import world_object
    from minigrid.core.constants import COLOR_NAMES
    from minigrid.core.grid import Grid

    objects = [getattr(world_object, shape)(colour) for shape in SHAPES for colour in COLOR_NAMES]
    tiles = np.stack([Grid.render_tile(each, tile_size=TILE) for each in objects])
    tiles = tiles.round().astype(np.uint8)
    tiles.setflags(write=False)  # they are shared
    return tiles
