"""Names of an environment's actions: what it tells of them, or what is known of Gymnasium's own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from enum import EnumMeta
from typing import Any

import gymnasium as gym

from worldsim.games.gym.making import Env, told

NOOP = re.compile(r"no-?op|no-?push|nothing|do-nothing|none|idle|stay|still|wait|coast|done")
"""Names of options that press nothing; MiniGrid's `done` does."""
OPTIONS = {
    "Acrobot": ("left", "nothing", "right"),
    "Blackjack": ("stick", "hit"),
    "CarRacing": ("nothing", "right", "left", "gas", "brake"),
    "CartPole": ("left", "right"),
    "CliffWalking": ("up", "right", "down", "left"),
    "FrozenLake": ("left", "down", "right", "up"),
    "LunarLander": ("nothing", "left", "up", "right"),
    "MountainCar": ("left", "nothing", "right"),
    "Taxi": ("down", "up", "right", "left", "pickup", "drop"),
}
NUMBERS = {
    "BipedalWalker": ("hip-1", "knee-1", "hip-2", "knee-2"),
    "CarRacing": ("steer", "gas", "brake"),
    "LunarLander": ("main", "steer"),
    "MountainCarContinuous": ("turn",),
    "Pendulum": ("torque",),
}
"""Of Gymnasium's own environments: the options of Discrete spaces, and the numbers of Box spaces."""


def count_names(space: gym.Space[Any]) -> int:
    """Return how many names the actions of a space have: one for each option, or for each number."""
    return int(space.n) if isinstance(space, gym.spaces.Discrete) else math.prod(space.shape or (1,))


def find_names(env: Env, env_id: str) -> list[str]:
    """Return names of the options or numbers of an environment's actions; empty where nothing is known.

    An empty name among them is of a number that means nothing.
    """
    space = env.action_space
    for names in _own_names(env):
        if len(names) == count_names(space):
            return [clean(name) for name in names]
    base = re.sub(r"(Continuous)?-v\d+$", r"\1", env_id.rpartition(":")[2])
    known = OPTIONS if isinstance(space, gym.spaces.Discrete) else NUMBERS
    names = known.get(base, known.get(base.removesuffix("Continuous"), ()))
    return list(names) if len(names) == count_names(space) else []


def clean(name: str | None) -> str:
    """Return a name in small letters, its words joined by hyphens."""
    return re.sub(r"[\s_]+", "-", (name or "").strip().lower())


def _own_names(env: Env) -> Iterator[list[str | None]]:
    if env.has_wrapper_attr("get_action_meanings"):
        with told("get_action_meanings of the environment fails"):
            yield list(env.get_wrapper_attr("get_action_meanings")())
    for attribute in ("action_names", "action_meanings", "actions", "buttons"):
        if not env.has_wrapper_attr(attribute):
            continue
        found = env.get_wrapper_attr(attribute)
        if isinstance(found, EnumMeta):
            found = [each.name for each in sorted(found, key=lambda each: each.value)]  # type: ignore[attr-defined]
        if isinstance(found, list | tuple) and all(isinstance(each, str | None) for each in found):
            yield list(found)
