"""The interface of a real game: its entry in the registry, the game while it runs, and what it shows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldsim.actions import ActionLayout
from worldsim.data.dataset_info import DatasetInfo
from worldsim.games.rooms.map import RoomMap

MAX_SEED = 2**32 - 1
"""Seeds of games are 0 to this."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a game shows after a step.

    Attributes:
        frame: `[height, width, 3]` uint8; may not be changed.
        pose: x, y in the game's units and the angle in degrees, counter-clockwise from east; belongs to
            `frame`. None where the game does not tell.
        reward: Given by the step that led here.
        terminated: Whether the game ended.
        truncated: Whether it was cut off.
    """

    frame: np.ndarray
    pose: tuple[float, float, float] | None
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False


class RealGame(AbstractContextManager["RealGame"]):
    """A game that runs, and can be recorded; a context manager.

    Attributes:
        entry: What is played.
        rooms: The map of this episode, for players that want to know; None where there is none.
    """

    entry: GameEntry
    rooms: RoomMap | None = None

    @abstractmethod
    def reset(self, seed: int) -> Observation:
        """Begin an episode; the same seed, 0 to `MAX_SEED`, gives the same place and the same game."""

    @abstractmethod
    def step(self, action: np.ndarray) -> Observation:
        """Hold an action, `[axes]` of the entry's layout, for one frame.

        Raises:
            WorldError: If the action does not fit, or no episode is under way.
        """

    def close(self) -> None:
        """Release what is held open."""

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class GameEntry(ABC):
    """All that the program knows of a game: how it is opened, played, seen and recorded.

    Attributes:
        name: Its name, and that of the world made from it.
        game: What is played, as datasets name it; equal names mean that equal seeds give equal games.
        licence: Licence of the pictures.
        actions: What a player can press.
        players: Its scripted players, by their names in `policies.SCRIPTED`, with how often each plays an
            episode, relative to the others. Without any there is no policy `scripted`.
        ending: What the player did when a game ended, in words.
        height, width: Of a frame, in pixels.
        episode_frames: Frames of the longest recorded episode.
        tics_per_second: Steps a second of the game's own.
        tics_per_frame: Of these, how many an action is held for; a frame adds up their rewards.
        lossless: Whether recordings keep every pixel.
        tells_map: Whether each episode has a map of its own that players may know, `RealGame.rooms`.
    """

    name: str
    game: str
    licence: str
    actions: ActionLayout
    players: Mapping[str, float] = field(default_factory=dict)
    ending: str = "ended"
    height: int
    width: int
    episode_frames: int
    tics_per_second: float
    tics_per_frame: int = 1
    lossless: bool = False
    tells_map: bool = False

    @property
    def one_way(self) -> tuple[str, ...]:
        """Names of the axes whose buttons do not undo each other."""
        return self.actions.one_way

    @property
    def environment(self) -> dict[str, Any]:
        """What makes an entry like this again, as a JSON object; empty where its name says it all."""
        return {}

    @property
    def frame_rate(self) -> float:
        """Frames a second at the game's own speed."""
        return self.tics_per_second / self.tics_per_frame

    @abstractmethod
    def engine_version(self) -> str:
        """Return what plays it, and in which version: `ViZDoom 1.3.0`.

        Raises:
            WorldError: If it is not installed.
        """

    @abstractmethod
    def open(self) -> RealGame:
        """Return the game, ready for `reset`.

        Raises:
            WorldError: If what plays it is not installed.
        """

    def dataset_info(self, source: str) -> DatasetInfo:
        """Describe a dataset recorded from this game; `source` says how."""
        shared = ("name", "width", "height", "frame_rate", "actions", "licence", "lossless", "environment")
        told: dict[str, Any] = {name: getattr(self, name) for name in shared}
        return DatasetInfo(source=source, **told)
