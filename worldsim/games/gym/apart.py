"""An environment in a process of its own: where it hangs or crashes, whoever plays it goes on."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from worldsim.games.entry import Observation, RealGame
from worldsim.games.gym.config import GymConfig
from worldsim.games.gym.game import GymEntry, GymGame, describe_env
from worldsim.runtime.child import Child, leave_the_terminal

STEP_TIMEOUT = 60.0
"""Seconds that an environment may take for a step, unless told otherwise."""


class ApartGame(RealGame):
    """A running environment in another process.

    Attributes:
        entry: What is played, made by looking at the environment there.

    Args:
        env_id: As `describe_env` takes it.
        config: How it is made, seen and pressed.
        step_timeout: Seconds that it may take to be made, to begin an episode, and for a step.

    Raises:
        WorldError: If it takes longer, crashes, or cannot be a game.
    """

    def __init__(self, env_id: str, config: GymConfig, step_timeout: float = STEP_TIMEOUT) -> None:
        self._timeout = step_timeout
        self._child = Child(_serve, (env_id, config), env_id)
        try:
            self.entry: GymEntry = self._child.ask(None, "while it is made", step_timeout)  # type: ignore[override]
        except BaseException:
            self.close()
            raise

    def reset(self, seed: int, start: str = "") -> Observation:
        """Begin an episode of a seed; there are no other starts.

        Raises:
            WorldError: As from `GymGame`, or if it takes too long, or crashes.
        """
        return self._child.ask(seed, "in reset", self._timeout)

    def step(self, action: np.ndarray) -> Observation:
        """Take a step with an action `[axes]`.

        Raises:
            WorldError: As from `GymGame`, or if it takes too long, or crashes.
        """
        return self._child.ask(np.asarray(action), "in step", self._timeout)

    def close(self) -> None:
        """End the process."""
        self._child.__exit__()


def describe_apart(env_id: str, config: GymConfig, step_timeout: float = STEP_TIMEOUT) -> GymEntry:
    """Look at an environment once in another process, and return its entry, as `describe_env` does.

    Raises:
        WorldError: As from `ApartGame`.
    """
    game = ApartGame(env_id, config, step_timeout)
    with game:
        return game.entry


def _serve(connection: Connection, env_id: str, config: GymConfig) -> None:
    """Answer None with the entry, a seed with how its episode begins, an action with what it leads to."""
    leave_the_terminal()
    game: GymGame | None = None
    entry: GymEntry | None = None
    while True:
        try:
            request: Any = connection.recv()
        except (EOFError, OSError):  # nobody wants to know any more
            return
        try:
            entry = entry or describe_env(env_id, config)
            if request is None:
                answer: Any = entry
            else:
                game = game or entry.open()
                answer = game.step(request) if isinstance(request, np.ndarray) else game.reset(request)
        except Exception as error:
            answer = error
        connection.send(answer)
