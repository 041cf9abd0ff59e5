"""Environments of somebody's own: a bright dot on a dark floor, and what can be wrong with one."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

warnings.filterwarnings("ignore", message=".*Overriding environment Dot-v0.*")
ROWS, COLUMNS, TILE = 32, 48, 4
SPACES = {
    "box": gym.spaces.Box(np.array([-1, 0]), np.array([1, 1]), dtype=np.float32),
    "discrete": gym.spaces.Discrete(4, start=1),
    "three": gym.spaces.MultiDiscrete([3, 3, 3]),
    "multi": gym.spaces.MultiDiscrete([3, 2]),
    "binary": gym.spaces.MultiBinary(4),
    "dict": gym.spaces.Dict({"move": gym.spaces.Discrete(3)}),
    "text": gym.spaces.Text(8),
    "graph": gym.spaces.Graph(gym.spaces.Discrete(3), None),
    "unbounded": gym.spaces.Box(-np.inf, np.inf, (1,)),
}


class Dot(gym.Env[Any, Any]):
    """A dot that moves across by the first number of an action.

    Args:
        action: What its actions are.
        seen: Its observations: a picture of so many channels, `vector`, or `both`.
        fault: What goes wrong at the third step, `hang` in the second episode alone.
        lasts: Steps until it terminates.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        render_mode: str | None = None,
        action: str = "box",
        seen: str = "rgb",
        fault: str = "",
        lasts: int = 40,
    ) -> None:
        self.render_mode, self.fault, self.lasts, self.seen = render_mode, fault, lasts, seen
        self.action_space, self.episodes = SPACES[action], 0
        picture = gym.spaces.Box(0, 255, self._shown().shape, np.uint8)
        vector = gym.spaces.Box(-np.inf, np.inf, (2,))
        spaces = {"vector": vector, "both": gym.spaces.Dict({"eye": picture, "place": vector})}
        self.observation_space = spaces.get(seen, picture)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(COLUMNS - TILE)), 0
        self.episodes += 1
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        number = action if np.ndim(action) == 0 else np.asarray(action).reshape(-1)[0]
        self.place = int(np.clip(self.place + round(4 * float(number)), 0, COLUMNS - TILE))
        self.steps += 1
        if self.steps >= 3:
            self._fail()
        reward = np.nan if self.steps >= 3 and self.fault == "reward" else 1.0
        return self._observe(), reward, self.steps >= self.lasts, False, {}

    def _fail(self) -> None:
        if self.fault == "crash":
            raise RuntimeError("the floor\nis lava")
        if self.fault == "hang" and self.episodes > 1:
            time.sleep(1000)
        if self.fault == "abort":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.fault == "exit":
            sys.exit(3)

    def render(self) -> Any:
        return None if self.fault == "blind" else self._shown()

    def _observe(self) -> Any:
        vector = np.zeros(2, dtype=np.float32)
        return {"vector": vector, "both": {"eye": self._shown(), "place": vector}}.get(
            self.seen, self._shown()
        )

    def _shown(self) -> np.ndarray:
        steps = getattr(self, "steps", 0)
        picture = np.full((ROWS + 2 * (self.fault == "grows" and steps >= 3), COLUMNS, 3), 30, dtype=np.uint8)
        place = getattr(self, "place", 0)
        picture[8 : 8 + TILE, place : place + TILE] = (240, 200, 40)
        if self.seen == "grey":
            return picture[..., 0]
        if self.seen == "rgba":
            return np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
        return picture.transpose(2, 0, 1) if self.seen == "chw" else picture


class Blinking(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that turns colours around."""

    def step(self, action: Any) -> Any:
        observation, *rest = self.env.step(action)
        return 255 - observation, *rest


gym.register("Dot-v0", entry_point=Dot, max_episode_steps=25)


def to_and_fro(env: gym.Env[Any, Any], seed: int) -> Callable[[Any], np.ndarray]:
    """Return a player that turns round at the ends."""
    way = 1.0

    def act(observation: Any) -> np.ndarray:
        nonlocal way
        place = env.unwrapped.place  # type: ignore[attr-defined]
        way = -1.0 if place >= COLUMNS - TILE else 1.0 if place == 0 else way
        return np.array([way, 0.0], dtype=np.float32)

    return act


def mad(env: gym.Env[Any, Any], seed: int) -> Callable[[Any], np.ndarray]:
    """Return a player whose action is NaN."""
    return lambda observation: np.array([np.nan, 0.0])


def stillborn() -> gym.Env[Any, Any]:
    """End the process instead of making an environment."""
    os._exit(7)
