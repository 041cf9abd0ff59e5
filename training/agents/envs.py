"""Vector environments that train an agent: dreams of a world or real games, in the view of the agent."""

# N environments, F frames seen, h w size they are seen in

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor
from torch import Tensor

from policies.sight import Sight
from training.data.game_process import begin_game
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.games.entry import GameEntry
from worldsim.runtime.child import interrupts_are_for_the_parent
from worldsim.sb3 import SB3VecEnv

SEEN = "seen"
"""Key of the observations: SB3 passes what is in a dictionary on as it is, also a tensor on a GPU."""

Infos = list[dict[str, Any]]


class SightVecEnv(VecEnvWrapper):
    """Let an agent see what players see: small frames, the last ones stacked; and scale its rewards.

    Observations are `{"seen": [N, F * 3, h, w] uint8}`, a tensor on `device`: what is seen never goes to the
    CPU and back. `venv` gives frames `[N, H, W, 3]`, arrays or tensors; those of another device are brought
    there first. Rewards that `VecMonitor` adds up below are the game's, not multiplied by `reward_scale`.
    """

    def __init__(
        self, venv: VecEnv, sight: Sight, device: torch.device, *, reward_scale: float = 1.0
    ) -> None:
        space = gym.spaces.Dict({SEEN: gym.spaces.Box(0, 255, sight.shape, np.uint8)})
        super().__init__(venv, observation_space=space)
        self.metadata = venv.metadata
        self._sight, self._device, self._reward_scale = sight, device, reward_scale
        self._seen: Tensor | None = None

    def reset(self) -> dict[str, Tensor]:  # type: ignore[override] - tensors instead of arrays
        """Begin anew; returns what is seen."""
        self._seen = self._sight.begin(self._frames(self.venv.reset()))
        return {SEEN: self._seen}

    def step_wait(self) -> tuple[dict[str, Tensor], np.ndarray, np.ndarray, Infos]:  # type: ignore[override]
        """Return what is seen, scaled rewards `[N]`, dones `[N]`, and an info for each row."""
        observations, rewards, dones, infos = self.venv.step_wait()
        assert self._seen is not None, "step before reset"
        frames = self._frames(observations)
        seen = self._sight.follow(self._seen, frames)
        rows = np.flatnonzero(dones)
        if len(rows):
            index = torch.from_numpy(rows).to(self._device)
            finals = torch.stack([self._frames(infos[row]["terminal_observation"]) for row in rows])
            last_seen = self._sight.follow(self._seen[index], finals).cpu().numpy()
            for row, last in zip(rows, last_seen, strict=True):
                infos[row]["terminal_observation"] = {SEEN: last}
            seen = seen.index_copy(0, index, self._sight.begin(frames[index]))
        self._seen = seen
        return {SEEN: seen}, rewards * self._reward_scale, dones, infos

    def _frames(self, frames: Any) -> Tensor:
        return torch.as_tensor(frames, device=self._device)


class HeldActions(VecEnvWrapper):
    """Step every environment `num_frames` times with the same action (Mnih et al. 2015): one decision a step.

    The reward of a decision adds up its frames. Where an episode ends within them, the decision ends there:
    what the next episode brings in the frames that are left counts for nothing, and the decision's info is
    that of the last frame of the old one.

    `venv` begins episodes anew in the step that ends them, as SB3's environments do.

    Raises:
        ValueError: If actions are held for fewer frames than 1.
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


def make_dreams(
    envs: ARL2WorldVectorEnv,
    sight: Sight,
    device: torch.device,
    *,
    action_repeat: int = 1,
    reward_scale: float,
) -> SightVecEnv:
    """Return dreams, which give tensors, as SB3 takes them; returns and lengths of episodes are monitored."""
    monitored = VecMonitor(SB3VecEnv(envs, keeps_tensors=True))
    return SightVecEnv(HeldActions(monitored, action_repeat), sight, device, reward_scale=reward_scale)


def make_games(
    game: GameEntry,
    num_envs: int,
    sight: Sight,
    device: torch.device,
    *,
    max_episode_steps: int,
    action_repeat: int = 1,
    reward_scale: float,
) -> SightVecEnv:
    """Return real games, each in a process of its own, as SB3 takes them.

    Raises:
        WorldError: If what plays it is not installed.
    """
    begin = partial(begin_game, game, max_episode_steps)
    with interrupts_are_for_the_parent():
        envs = AsyncVectorEnv(
            [begin] * num_envs, copy=False, context="spawn", autoreset_mode=AutoresetMode.SAME_STEP
        )
    monitored = VecMonitor(SB3VecEnv(envs))
    return SightVecEnv(HeldActions(monitored, action_repeat), sight, device, reward_scale=reward_scale)
