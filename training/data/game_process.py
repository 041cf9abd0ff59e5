"""Real games in processes of their own, which load neither PyTorch nor what trains in them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium as gym
import numpy as np

from worldsim.games.entry import GameEntry
from worldsim.games.env import RealGameEnv

Game = gym.Env[np.ndarray, np.ndarray]


def begin_game(game: GameEntry, max_episode_steps: int) -> Game:
    """Return a real game with a limit on its episodes, for a process that its parent stops.

    Raises:
        WorldError: If what plays it is not installed.
    """
    leave_the_terminal()
    return gym.wrappers.TimeLimit(RealGameEnv(game), max_episode_steps)


def leave_the_terminal() -> None:
    """Leave Ctrl-C to the parent of this worker: the engine would end before the parent could say so."""
    is_worker = multiprocessing.parent_process() is not None
    if is_worker and sys.platform != "win32" and os.getsid(0) != os.getpid():
        os.setsid()


@contextmanager
def interrupts_are_for_the_parent() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: a process inherits what is ignored."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
