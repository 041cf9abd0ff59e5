"""Every real game that can be recorded, whatever plays it: Doom's scenarios and grids of tiles."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

import numpy as np

from worldsim.errors import WorldError
from worldsim.games.grid_recall import GRID_RECALL, GridGame, GridScenario, minigrid_version
from worldsim.games.rooms.map import RoomMap
from worldsim.games.scenarios import SCENARIOS, Scenario

AnyScenario = Scenario | GridScenario
GAMES: dict[str, AnyScenario] = {**SCENARIOS, GRID_RECALL.name: GRID_RECALL}


class Observation(Protocol):
    """What a game shows after a step."""

    @property
    def frame(self) -> np.ndarray:
        """`[height, width, 3]` uint8."""
        ...

    @property
    def pose(self) -> tuple[float, float, float]:
        """x, y in the game's units and the angle in degrees; belongs to `frame`."""
        ...

    @property
    def reward(self) -> float:
        """Given by the step that led here."""
        ...

    @property
    def terminated(self) -> bool:
        """Whether the game ended."""
        ...

    @property
    def truncated(self) -> bool:
        """Whether it was cut off."""
        ...


class Game(Protocol):
    """A game that can be recorded; a context manager."""

    @property
    def scenario(self) -> AnyScenario:
        """What is played."""
        ...

    @property
    def rooms(self) -> RoomMap | None:
        """The map of this episode, for players that want to know; None where there is none."""
        ...

    def reset(self, seed: int) -> Observation:
        """Begin an episode; the same seed, 0 to 2^32 - 1, gives the same one."""
        ...

    def step(self, action: np.ndarray) -> Observation:
        """Press `[axes]` for one frame."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def find_game(name: str) -> AnyScenario:
    """Return what is known of a game.

    Raises:
        WorldError: If there is none of that name.
    """
    if name not in GAMES:
        raise WorldError(f"there is no scenario {name!r}; known are {', '.join(sorted(GAMES))}")
    return GAMES[name]


def open_game(name: str) -> Game:
    """Return a game, ready for `reset`.

    Raises:
        WorldError: If there is no such game, or what plays it is not installed.
    """
    scenario = find_game(name)
    if isinstance(scenario, GridScenario):
        return GridGame(scenario)
    from worldsim.games.doom import DoomGame

    return DoomGame(scenario)


def engine_version(name: str) -> str:
    """Return what plays a game, and in which version: `ViZDoom 1.3.0`.

    Raises:
        WorldError: If it is not installed.
    """
    if isinstance(find_game(name), GridScenario):
        return f"MiniGrid {minigrid_version()}"
    from worldsim.games.doom import import_vizdoom

    return f"ViZDoom {import_vizdoom().__version__}"
