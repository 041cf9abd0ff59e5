"""Shared parts of the tests of the vector environment."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.world import World

N = 4
ACTIONS = np.random.default_rng(3).integers(0, 3, (12, N, 3))
"""12 steps of N tiny worlds."""


def make(world: World, num_envs: int = N, **settings: Any) -> ARL2WorldVectorEnv:
    """Return a vector environment of a loaded world."""
    return ARL2WorldVectorEnv(num_envs, world, **settings)
