"""Actions that are held for several frames, as agents of games commonly act (Mnih et al. 2015)."""

# N environments

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

Infos = list[dict[str, Any]]


class HeldActions(VecEnvWrapper):
    """Step every environment `num_frames` times with the same action; a step of this wrapper is one decision.

    The reward of a decision adds up its frames. Where an episode ends within them, the decision ends there:
    what the next episode brings in the frames that are left counts for nothing, and the decision's info is
    that of the last frame of the old one.

    Args:
        venv: Begins episodes anew in the step that ends them, as SB3's environments do.
        num_frames: Frames an action is held for, at least 1.

    Raises:
        ValueError: If that is fewer.
    """

    def __init__(self, venv: VecEnv, num_frames: int) -> None:
        if num_frames < 1:
            raise ValueError(f"actions must be held for at least 1 frame, got {num_frames}")
        super().__init__(venv)
        self.metadata: dict[str, Any] = dict(venv.metadata)
        if "render_fps" in self.metadata:
            self.metadata["render_fps"] /= num_frames  # of the decisions, which are what is shown
        self._num_frames = num_frames
        self._actions: np.ndarray | None = None

    def reset(self) -> Any:
        """Begin anew; returns the first observations."""
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions, `[N, A]`, for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, Infos]:
        """Return the last frame's observations, the rewards `[N]` of the frames, dones `[N]`, and infos."""
        assert self._actions is not None, "step_wait before step_async"
        rewards, ended = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        infos: Infos = [{} for _ in range(self.num_envs)]
        observations: Any = None
        for _ in range(self._num_frames):
            observations, gained, dones, told = self.venv.step(self._actions)
            rewards += np.where(ended, 0, gained)
            for row in np.flatnonzero(~ended):
                infos[row] = told[row]
            ended |= dones
        return observations, rewards, ended, infos
