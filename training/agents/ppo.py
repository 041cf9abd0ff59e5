"""Stable-Baselines3's PPO around our network: built, trained, gone on with, and written as a policy."""

# N environments

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import gymnasium as gym
import numpy as np
import torch
from lightning_fabric import Fabric
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from tqdm import tqdm

from policies.ppo import ActorNetwork, PolicyDescription, SightEncoder, save_policy
from policies.sight import Sight
from training.agents.envs import SEEN
from training.agents.rollout_buffer import DeviceRolloutBuffer
from training.agents.settings import PPOConfig
from training.engine.optimizers import check_optimizer
from training.engine.run_folder import RunFolder, progress_of
from worldsim.runtime.interrupt import StopRequest
from worldsim.storage.files import read_text, sync, write_text
from worldsim.storage.tensors import filling, swap_folder

POLICY_FOLDER, PROGRESS_FILE = "policy", "progress.csv"
ENCODER, HEAD = "features_extractor.encoder.", "action_net."
LOGGED = {"entropy": "train/entropy_loss"} | {
    name: f"train/{name}" for name in ("approx_kl", "clip_fraction", "value_loss", "explained_variance")
}
"""What SB3 calls the columns of the last update."""
COLUMNS = ("steps", "minutes", "steps_per_second", "mean_return", "mean_frames", *LOGGED, "learning_rate")
MEAN_EPISODES = 100
"""Least number of episodes that means are of: the latest ones."""


class Extractor(BaseFeaturesExtractor):
    """Our encoder in the place of SB3's; pictures arrive between 0 and 1."""

    def __init__(self, observation_space: gym.Space, sight: Sight) -> None:
        super().__init__(observation_space, SightEncoder.num_features)
        self.encoder = SightEncoder(sight)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Return features `[N, features]`."""
        return self.encoder(observations[SEEN])


@dataclass(kw_only=True, slots=True)
class Clock:
    """How far training is, and where it ends: at one of its limits, whichever comes first.

    Steps are decisions, of all environments together; `max_seconds` 0 is no limit.
    """

    total_steps: int
    max_seconds: float
    steps: int = 0
    seconds: float = 0.0

    @property
    def left(self) -> float:
        """The share of training that is left, 1 to 0."""
        by_time = self.seconds / self.max_seconds if self.max_seconds else 0.0
        return max(0.0, 1 - max(self.steps / self.total_steps, by_time))


class Agent:
    """An agent in training, and its run's folder: checkpoints, `progress.csv`, and the policy as it stands.

    Args:
        run: The folder; training goes on from its newest checkpoint.
        envs: From `training.agents.envs`.
        seed: Of its weights, its actions, and the environments.
        describe: Returns the policy's description at a time.
    """

    def __init__(
        self,
        run: RunFolder,
        envs: VecEnv,
        config: PPOConfig,
        clock: Clock,
        *,
        sight: Sight,
        device: torch.device,
        seed: int,
        describe: Callable[[Clock], PolicyDescription],
    ) -> None:
        self.run, self.clock, self._envs = run, clock, envs
        self._describe, self._sight = describe, sight
        self.fabric = Fabric(
            accelerator=device.type, devices=[device.index or 0] if device.type == "cuda" else 1
        )
        self._seed(seed)
        num_steps = config.steps_of(envs.num_envs)
        self.ppo = PPO(
            "MultiInputPolicy",
            envs,
            learning_rate=lambda _: config.learning_rate * clock.left,  # SB3 knows no limit of time
            n_steps=num_steps,
            batch_size=min(config.batch_size, num_steps * envs.num_envs),
            n_epochs=config.n_epochs,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            clip_range=config.clip_range,
            ent_coef=config.ent_coef,
            vf_coef=config.vf_coef,
            max_grad_norm=config.max_grad_norm,
            rollout_buffer_class=DeviceRolloutBuffer,
            stats_window_size=max(MEAN_EPISODES, envs.num_envs),
            policy_kwargs={
                "features_extractor_class": Extractor,
                "features_extractor_kwargs": {"sight": sight},
                "net_arch": [],
            },
            device=device,
        )
        self.ppo.set_logger(Logger(folder=None, output_formats=[]))
        self._resume()
        self._seed(seed + clock.steps)  # after a resume other episodes than at the beginning

    def _seed(self, seed: int) -> None:
        # Not by SB3's own argument: on a GPU it would also choose slower convolutions, for the world, too.
        set_random_seed(seed)
        self._envs.seed(seed)

    @property
    def policy_folder(self) -> Path:
        """Where the policy is written."""
        return self.run.path / POLICY_FOLDER

    def train(self, checkpoint_seconds: float) -> None:
        """Learn until a limit is reached; leave a checkpoint and the policy.

        Raises:
            KeyboardInterrupt: After Ctrl-C, once they are written.
        """
        with StopRequest() as stop, Progress(self, stop, checkpoint_seconds) as progress:
            left = self.clock.total_steps - self.clock.steps
            self.ppo.learn(left, callback=progress, reset_num_timesteps=False)
            self.checkpoint()

    def checkpoint(self) -> None:
        """Write where training stands, and the policy as it is now; each completely or not at all."""
        state = {
            "policy": self.ppo.policy.state_dict(),
            "optimizer": self.ppo.policy.optimizer.state_dict(),
            "steps": self.clock.steps,
            "seconds": self.clock.seconds,
        }
        if (progress := self.run.path / PROGRESS_FILE).is_file():
            sync(progress)  # a run that goes on from here does not write these lines again
        self.run.save(self.fabric, state, self.clock.steps)
        self.export()

    def export(self) -> None:
        """Write the policy, without anything of SB3."""
        network = actor_of(self.ppo.policy, self._sight)
        with filling(self.policy_folder) as part:
            save_policy(part, network, self._describe(self.clock))
            swap_folder(part, self.policy_folder)

    def _resume(self) -> None:
        path = self.run.latest()
        if path is None:
            return
        self.run.load(path, lambda: self._restore(path))
        print(f"resuming {self.run.path} at step {self.clock.steps}")

    def _restore(self, path: Path) -> None:
        state = torch.load(path, map_location=self.ppo.device, weights_only=True)
        optimizer = self.ppo.policy.optimizer
        groups = [dict(group) for group in optimizer.param_groups]
        self.ppo.policy.load_state_dict(state["policy"])
        optimizer.load_state_dict(state["optimizer"])
        check_optimizer(optimizer, groups)
        self.clock.steps, self.clock.seconds = progress_of(state, "steps")
        self.ppo.num_timesteps = self.clock.steps


def actor_of(policy: BasePolicy, sight: Sight) -> ActorNetwork:
    """Return what decides in a policy of SB3, as the network that plays without SB3."""
    tensors = policy.state_dict()
    own = {
        f"encoder.{name.removeprefix(ENCODER)}": t for name, t in tensors.items() if name.startswith(ENCODER)
    }
    own |= {f"head.{name.removeprefix(HEAD)}": t for name, t in tensors.items() if name.startswith(HEAD)}
    assert isinstance(policy.action_space, gym.spaces.MultiDiscrete)
    network = ActorNetwork(sight, policy.action_space.nvec.tolist())
    network.load_state_dict({name: tensor.detach().cpu() for name, tensor in own.items()})
    return network


class Progress(BaseCallback):
    """Keep the clock, stop when it is time, write checkpoints and `progress.csv`; a context manager."""

    def __init__(self, agent: Agent, stop: StopRequest, checkpoint_seconds: float) -> None:
        super().__init__()
        self._agent, self._clock, self._stop = agent, agent.clock, stop
        self._checkpoint_seconds = checkpoint_seconds
        self._file = open_progress(agent.run.path / PROGRESS_FILE, agent.clock.steps)
        self._rows = csv.DictWriter(self._file, COLUMNS)
        begun, total = agent.clock.steps, agent.clock.total_steps
        self._bar = tqdm(total=total, initial=begun, unit="step", unit_scale=True, smoothing=0.05)
        self._began = time.monotonic() - self._clock.seconds
        self._last_checkpoint = self._clock.seconds
        self._last_row = (self._clock.steps, self._clock.seconds)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._file.close()

    def _on_rollout_start(self) -> None:
        # Between an update and the next steps: what is written is whole.
        if self._clock.seconds - self._last_checkpoint > self._checkpoint_seconds:
            self._agent.checkpoint()
            self._last_checkpoint = self._clock.seconds

    def _on_step(self) -> bool:
        self._bar.update(self.model.num_timesteps - self._clock.steps)
        self._clock.steps = self.model.num_timesteps
        self._clock.seconds = time.monotonic() - self._began
        out_of_time = 0 < self._clock.max_seconds <= self._clock.seconds
        return not (out_of_time or self._stop.requested)

    def _on_rollout_end(self) -> None:
        clock, (last_steps, last_seconds) = self._clock, self._last_row
        episodes = list(self.model.ep_info_buffer or ())
        recorded = self.model.logger.name_to_value
        row: dict[str, Any] = {
            "steps": clock.steps,
            "minutes": clock.seconds / 60,
            "steps_per_second": (clock.steps - last_steps) / (clock.seconds - last_seconds),
            "mean_return": np.mean([episode["r"] for episode in episodes]) if episodes else "",
            "mean_frames": np.mean([episode["l"] for episode in episodes]) if episodes else "",
            **{name: recorded.get(key, "") for name, key in LOGGED.items()},
            "learning_rate": self.model.policy.optimizer.param_groups[0]["lr"],
        }
        self._rows.writerow({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()})
        self._file.flush()
        self._last_row = (clock.steps, clock.seconds)
        if episodes:
            self._bar.set_postfix_str(
                f"return {row['mean_return']:.1f}, {row['mean_frames']:.0f} frames an episode", refresh=False
            )


def open_progress(path: Path, steps: int) -> TextIO:
    """Open `progress.csv` to go on with, without what came after the checkpoint of so many steps."""
    lines = read_text(path).splitlines() if path.is_file() and steps else []
    rows = [line.split(",") for line in lines[1:]]
    # A kill may cut the last.
    whole = [row for row in rows if len(row) == len(COLUMNS) and row[0].isdecimal()]
    kept = [",".join(row) for row in whole if int(row[0]) <= steps]
    write_text(path, "\n".join([",".join(COLUMNS), *kept]) + "\n")
    return path.open("a", newline="")
