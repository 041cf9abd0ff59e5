"""Gymnasium's wrappers that count steps, told how long an episode is whose state was loaded underneath."""

from __future__ import annotations

import inspect

import gymnasium as gym
from gymnasium.wrappers import TimeAwareObservation, TimeLimit


def count_from(env: gym.Env, num_steps: int) -> None:
    """Let the wrappers that are stepping an environment count this step as the one after `num_steps`.

    `TimeLimit` and `TimeAwareObservation` count the steps since their own reset, and an environment knows
    nothing of what is wrapped around it. Only while it is stepped its wrappers can be found: they are among
    the callers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        wrapper = frame.f_locals.get("self")
        if isinstance(wrapper, TimeLimit) and wrapper.unwrapped is env:
            wrapper._elapsed_steps = num_steps
        elif isinstance(wrapper, TimeAwareObservation) and wrapper.unwrapped is env:
            wrapper.timesteps = num_steps + 1  # it counts a step before it takes it, a limit afterwards
        frame = frame.f_back
