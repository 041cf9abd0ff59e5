"""The interface of a player, person or program, and checks that players share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

Point = tuple[float, float]
Pose = tuple[float, float, float]


class Policy(Protocol):
    """Chooses an action from the picture on the screen.

    An action is one whole number per axis of control, `[axes]` int64; 0 presses nothing on that axis.
    """

    def reset(self, seed: int) -> None:
        """Start a new episode; the same seed and the same pictures give the same actions."""
        ...

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[axes]` int64, for `observation`, `[height, width, 3]` uint8."""
        ...

    def watch(self, observation: np.ndarray) -> None:
        """See a frame, `[height, width, 3]` uint8, at which somebody else acts; most players need not."""


class PlayedGame(Protocol):
    """What a player may want to know of the game; the entries of `worldsim.games.registry` tell it."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def players(self) -> Mapping[str, float]:
        """Its scripted players, keys of `policies.SCRIPTED`, with their shares of the episodes."""
        ...

    @property
    def one_way(self) -> Sequence[str]:
        """Names of the axes whose buttons do not undo each other."""
        ...

    @property
    def tells_map(self) -> bool:
        """Whether a `Navigator` is told its map."""
        ...


class FloorPlan(Protocol):
    """Rooms, known by their numbers, and the ways between them; points are x, y in the game's units."""

    def find_room(self, x: float, y: float) -> int:
        """Return the room that a point is in."""
        ...

    def neighbours(self, room: int) -> Sequence[int]:
        """Return the rooms that a way leads to from `room`."""
        ...

    def threshold(self, room: int, other: int) -> Point:
        """Return the point in `room` in front of the way to `other`; ways between such points are free."""
        ...


@runtime_checkable
class Navigator(Policy, Protocol):
    """A player that is told its map after `reset`, and where it is before each `act` or `watch`."""

    def enter(self, plan: FloorPlan) -> None:
        """Begin in a place with this map."""
        ...

    def locate(self, pose: Pose) -> None:
        """Stand at x, y in the game's units, looking along an angle in degrees, 90 to the north of east."""
        ...

    @property
    def activity(self) -> str:
        """What the action last returned is part of, in a word or two; empty if it has no name."""
        ...


class RunningGame(Protocol):
    """A running game that has an environment inside; `worldsim.games.gym.game.GymGame` is one."""

    @property
    def env(self) -> Any:
        """The environment, of Gymnasium."""
        ...

    @property
    def observation(self) -> Any:
        """The environment's own, of now."""
        ...

    def encode(self, action: Any) -> np.ndarray:
        """Return the action `[axes]` that is nearest to one of the environment's own."""
        ...


@runtime_checkable
class Insider(Policy, Protocol):
    """A player that while episodes are recorded knows more of its game than the picture.

    It is given the game before the first `reset`, and labels of the frame before each `act`, where there are
    some.
    """

    def join(self, game: Any) -> None:
        """Play this game."""
        ...

    @property
    def start(self) -> str:
        """Where an episode should begin for it, one of the game's `starts`; empty if it does not matter."""
        ...

    def inform(self, labels: Mapping[str, float]) -> None:
        """Know labels of the frame, by their names; the entries of games say what they mean."""
        ...


class ScriptedPlayer(Policy):
    """A player for the axes of one game.

    Attributes:
        NUM_VALUES: Number of values of each axis.
        NEEDS: Who needs which axes, in words.

    Args:
        num_values: Must be `NUM_VALUES`.

    Raises:
        ValueError: If the axes are others.
    """

    NUM_VALUES: ClassVar[tuple[int, ...]]
    NEEDS: ClassVar[str]

    def __init__(self, num_values: Sequence[int]) -> None:
        if tuple(num_values) != self.NUM_VALUES:
            raise ValueError(f"{self.NEEDS}, got axes of {list(num_values)} values")
        self.reset(0)

    def join(self, game: Any) -> None:
        """Play this game, of which rules need no more than they are told."""


def check_range(name: str, limits: Sequence[int], floor: int = 1) -> tuple[int, int]:
    """Return the minimum and the maximum of numbers that a policy draws from, at least `floor`.

    Raises:
        ValueError: If `limits`, the argument called `name`, are not two, or out of order.
    """
    if len(limits) != 2 or not floor <= limits[0] <= limits[1]:
        raise ValueError(f"{name} needs {floor} <= minimum <= maximum, got {list(limits)}")
    return limits[0], limits[1]
