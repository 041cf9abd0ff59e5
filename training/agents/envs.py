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
from training.agents.action_repeat import HeldActions
from training.data.game_process import begin_game, interrupts_are_for_the_parent
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.sb3 import SB3VecEnv

SEEN = "seen"
"""Key of the observations: SB3 passes what is in a dictionary on as it is, also a tensor on a GPU."""

Infos = list[dict[str, Any]]


class SightVecEnv(VecEnvWrapper):
    """Let an agent see what players see: small frames, the last ones stacked; and scale its rewards.

    Observations are `{"seen": [N, F * 3, h, w] uint8}`, a tensor on `device`: what is seen never goes to the
    CPU and back. Frames of another device are brought there first.

    Args:
        venv: Gives frames `[N, H, W, 3]`, as arrays or as tensors.
        sight: What is seen of them.
        device: Where the agent computes.
        reward_scale: What rewards are multiplied by; those that `VecMonitor` adds up below are the game's.
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
    scenario: str,
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
        WorldError: If there is no such game, or what plays it is not installed.
    """
    begin = partial(begin_game, scenario, max_episode_steps)
    with interrupts_are_for_the_parent():
        envs = AsyncVectorEnv(
            [begin] * num_envs, copy=False, context="spawn", autoreset_mode=AutoresetMode.SAME_STEP
        )
    monitored = VecMonitor(SB3VecEnv(envs))
    return SightVecEnv(HeldActions(monitored, action_repeat), sight, device, reward_scale=reward_scale)
