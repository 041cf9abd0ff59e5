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
from worldsim.games.events import Measures
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
        labels: What is known of `frame` beside its pose, in the order of the entry's `labels`; empty where
            the game was not opened for them.
    """

    frame: np.ndarray
    pose: tuple[float, float, float] | None
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    labels: tuple[float, ...] = ()


class RealGame(AbstractContextManager["RealGame"]):
    """A game that runs, and can be recorded; a context manager.

    Attributes:
        entry: What is played.
        rooms: The map of this episode, for players that want to know; None where there is none.
    """

    entry: GameEntry
    rooms: RoomMap | None = None

    @abstractmethod
    def reset(self, seed: int, start: str = "") -> Observation:
        """Begin an episode; the same seed, 0 to `MAX_SEED`, gives the same place and the same game.

        Args:
            seed: Decides the game.
            start: One of the entry's `starts`, for a player with something to do there; empty leaves it to
                the seed.
        """

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
        recorded_players: Those who play instead where episodes are recorded to learn from: they also do what
            nobody wants to watch, idle, run into walls and die. Empty means `players`.
        recorded_by: Who plays, of the players of `training.collect`, where nobody is named.
        labels: Names of what is known of each frame beside its pose, numbers all of them.
        starts: Kinds of places where an episode can be asked to begin.
        measures: What can be measured by its labels; None if nothing.
        ending: What the player did when a game ended, in words.
        score: What the sum of its rewards is called.
        height, width: Of a frame, in pixels.
        episode_frames: Frames of the longest recorded episode.
        max_episode_steps: Frames after which the game itself cuts an episode off; None if it does not.
        tics_per_second: Steps a second of the game's own.
        tics_per_frame: Of these, how many an action is held for; a frame adds up their rewards.
        clock_unit: What these steps are called, in the plural.
        lossless: Whether recordings keep every pixel.
        tells_map: Whether each episode has a map of its own that players may know, `RealGame.rooms`.
    """

    name: str
    game: str
    licence: str
    actions: ActionLayout
    players: Mapping[str, float] = field(default_factory=dict)
    recorded_players: Mapping[str, float] = field(default_factory=dict)
    recorded_by: str = "scripted"
    labels: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    measures: Measures | None = None
    ending: str = "ended"
    score: str = "score"
    height: int
    width: int
    episode_frames: int
    max_episode_steps: int | None = None
    tics_per_second: float
    tics_per_frame: int = 1
    clock_unit: str = "frames"
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
    def open(self, *, labelled: bool = False) -> RealGame:
        """Return the game, ready for `reset`.

        Args:
            labelled: Let it read `labels` for each frame, if it has any, at a price in time.

        Raises:
            WorldError: If what plays it is not installed.
        """

    def dataset_info(self, source: str) -> DatasetInfo:
        """Describe a dataset recorded from this game; `source` says how."""
        shared = ("name", "width", "height", "frame_rate", "actions", "licence", "lossless", "environment")
        told: dict[str, Any] = {
            name: getattr(self, name) for name in (*shared, "labels", "max_episode_steps")
        }
        return DatasetInfo(source=source, **told)
