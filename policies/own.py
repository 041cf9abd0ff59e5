"""A player of a user's own: a function by its import path, or an agent that Stable-Baselines3 saved.

It sees the environment's own observations and gives the environment's own actions. The game is played with
the buttons that are nearest to them, so that what is recorded is what was done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from policies.base import Policy, RunningGame

Player = Callable[[Any], Any]
"""Returns an environment's action for its observation."""
Begin = Callable[[Any, int], Player]
"""Returns who plays an episode, given the environment, after its reset, and a seed."""


class OwnPolicy(Policy):
    """Play as a function of the environment says.

    Args:
        num_values: Number of values of each axis; the game encodes the actions.
        path: `MODULE:NAME` of a function `begin(env, seed)` that returns, for each episode, a function from
            observations to actions; or the `.zip` of an agent.

    Raises:
        FileNotFoundError: If there is no such agent.
        ValueError: If there is no such function.
    """

    def __init__(self, num_values: Sequence[int], *, path: str) -> None:
        self._path = path
        if path.endswith(".zip"):
            if not Path(path).is_file():  # the rest is told when the game is there
                raise FileNotFoundError(f"there is no agent {path}")
            self._begin: Begin | None = None
        else:
            self._begin = find_function(path)
        self._game: RunningGame | None = None
        self.reset(0)

    def join(self, game: RunningGame) -> None:
        """Play this game.

        Raises:
            ValueError: If it has no environment inside, or the agent learned in another.
        """
        if not hasattr(game, "env"):
            raise ValueError("the player own plays environments (env=), not the games that are registered")
        self._game = game
        if self._path.endswith(".zip"):
            from policies.sb3_agent import begin_agent  # it brings PyTorch

            self._begin = begin_agent(self._path, game.env)

    @property
    def start(self) -> str:
        """Where an episode should begin: an environment has no such places."""
        return ""

    def inform(self, labels: Mapping[str, float]) -> None:
        """Know labels of the frame, of which an environment has none."""

    def reset(self, seed: int) -> None:
        """Start a new episode."""
        self._seed, self._player = seed, None

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[axes]` int64; the picture does not matter.

        Raises:
            ValueError: If the function fails, or gives something that is no action.
        """
        if self._game is None or self._begin is None:
            raise ValueError("the player own needs the game: it plays where episodes are recorded")
        try:
            if self._player is None:
                self._player = self._begin(self._game.env, self._seed)
            action = self._player(self._game.observation)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"the player {self._path} fails: {type(error).__name__}: {reason}") from error
        return self._game.encode(action)


def find_function(path: str) -> Any:
    """Return the function that `MODULE:NAME` names.

    Raises:
        ValueError: If there is none.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError(f"a player of your own is MODULE:NAME or AGENT.zip, got {path!r}")
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # of the module's own, too
        reason = " ".join(str(error).split())
        raise ValueError(f"there is no player {path}: {type(error).__name__}: {reason}") from error
    if not callable(found):
        raise ValueError(f"the player {path} is no function, but a {type(found).__name__}")
    return found
