"""An environment in a process of its own: where it hangs or crashes, whoever plays it goes on."""

from __future__ import annotations

from contextlib import ExitStack, closing, suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from worldsim.errors import WorldError
from worldsim.games.entry import Observation, RealGame
from worldsim.games.gym.config import GymConfig
from worldsim.games.gym.game import GymEntry, GymGame, describe_env
from worldsim.games.gym.making import told
from worldsim.runtime.child import Child, leave_the_terminal

STEP_TIMEOUT = 60.0
"""Seconds that an environment may take for a step, unless told otherwise."""
MAKING_TIMEOUT = 60.0
"""Seconds that there are at least to make a game and begin an episode, however fast its steps are."""


class ApartGame(RealGame):
    """A running environment in another process.

    Attributes:
        entry: What is played, made by looking at the environment there.

    Args:
        env_id: As `describe_env` takes it.
        config: How it is made, seen and pressed.
        step_timeout: Seconds that it may take for a step; to be made, and to begin an episode, it has
            `MAKING_TIMEOUT` at least.

    Raises:
        WorldError: If it takes longer, crashes, or cannot be a game.
    """

    def __init__(self, env_id: str, config: GymConfig, step_timeout: float = STEP_TIMEOUT) -> None:
        self._timeout, self._making = step_timeout, max(step_timeout, MAKING_TIMEOUT)
        self._child = Child(_serve, (env_id, config), env_id)
        try:
            entry = self._child.ask(None, "while it is made", self._making)
            self.entry: GymEntry = entry  # type: ignore[override] - nobody sets another one
        except BaseException:
            self.close()
            raise

    def reset(self, seed: int, start: str = "") -> Observation:
        """Begin an episode of a seed; there are no other starts.

        Raises:
            WorldError: As from `GymGame`, or if it takes too long, or crashes.
        """
        return self._child.ask(seed, "in reset", self._making)

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
    with closing(ApartGame(env_id, config, step_timeout)) as game:
        return game.entry


def _serve(connection: Connection, env_id: str, config: GymConfig) -> None:
    """Answer requests (`_answer`) until the connection is closed, then close the environment."""
    leave_the_terminal()
    with ExitStack() as stack, suppress(EOFError, OSError):  # once nobody wants to know any more
        entry: GymEntry | None = None
        game: GymGame | None = None
        while True:
            request: Any = connection.recv()
            try:
                with told(f"{env_id} fails"):  # of other errors some cannot be sent
                    entry = entry or describe_env(env_id, config)
                    game = game if request is None else game or stack.enter_context(closing(entry.open()))
                    answer: Any = _answer(entry, game, request)
            except WorldError as error:
                answer = error
            connection.send(answer)


def _answer(entry: GymEntry, game: GymGame | None, request: int | np.ndarray | None) -> Any:
    """Return the entry for None, how an episode begins for its seed, for an action what it leads to."""
    if game is None or request is None:
        return entry
    return game.step(request) if isinstance(request, np.ndarray) else game.reset(request)
