"""Real games in processes of their own, which load neither PyTorch nor what trains in them."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from worldsim.games.entry import GameEntry
from worldsim.games.env import RealGameEnv
from worldsim.runtime.child import leave_the_terminal

Game = gym.Env[np.ndarray, np.ndarray]


def begin_game(game: GameEntry, max_episode_steps: int) -> Game:
    """Return a real game with a limit on its episodes, for a process that its parent stops.

    Raises:
        WorldError: If what plays it is not installed.
    """
    leave_the_terminal()
    return gym.wrappers.TimeLimit(RealGameEnv(game), max_episode_steps)
