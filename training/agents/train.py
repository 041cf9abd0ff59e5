"""Train an agent in a dream or in the real game: `python -m training.rl`."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from policies.ppo import PolicyDescription
from policies.sight import Sight
from training.agents.dreams import game_of, load_dreams
from training.agents.settings import RLConfig
from training.data.latents import digest_of
from training.engine.run_folder import RunFolder
from worldsim.actions import ActionLayout
from worldsim.data.sequences import load_episodes
from worldsim.errors import WorldError
from worldsim.evaluation.report.report import git_commit
from worldsim.runtime.cores import worker_count
from worldsim.runtime.device import choose_device, set_threads

if TYPE_CHECKING:  # they bring Stable-Baselines3, which is not always there
    from training.agents.envs import SightVecEnv
    from training.agents.ppo import Clock

FREE_SETTINGS = (
    *("mode", "out", "threads", "device", "dtype", "total_steps", "max_minutes", "checkpoint_minutes"),
    *("policies", "policy", "policy_folder", "deterministic", "period_frames", "episodes", "num_workers"),
    *("steps", "headless", "record", "scale"),
)
"""Settings that a resumed run may change."""


@dataclass(frozen=True, slots=True)
class TrainingEnvs:
    """What an agent learns from: environments of a world or a game.

    Attributes:
        source: What exactly that is: a world's name and the digest of its weights, or the game.
    """

    envs: SightVecEnv
    scenario: str
    actions: ActionLayout
    source: str


def train_agent(config: RLConfig) -> None:
    """Train until a limit is reached, from the run's last checkpoint on; leave the policy in its folder.

    Raises:
        WorldError: If SB3, the world or the game is missing, or the folder holds another run.
    """
    if importlib.util.find_spec("stable_baselines3") is None:
        raise WorldError('training an agent needs Stable-Baselines3: pip install -e ".[rl]"')
    from training.agents.ppo import Agent, Clock

    set_threads(config.threads)
    device, sight = choose_device(config.device).device, Sight()
    run = RunFolder(config.out or f"runs/rl-{Path(config.world).name}-{config.env}", config, FREE_SETTINGS)
    training_envs = prepare_envs(config, sight, device)
    try:
        agent = Agent(
            run,
            training_envs.envs,
            config.ppo,
            Clock(total_steps=config.total_steps, max_seconds=60 * config.max_minutes),
            sight=sight,
            device=device,
            seed=config.seed,
            describe=describe_policy(config, training_envs, sight),
        )
        run.check_inputs(agent.fabric, source=training_envs.source, **starts_digest(config))
        if agent.clock.left > 0:
            agent.train(60 * config.checkpoint_minutes)
        else:
            agent.export()
    finally:
        training_envs.envs.close()
    done = f"{agent.clock.steps} steps in {agent.clock.seconds / 60:.1f} minutes"
    print(f"{done}; the policy is in {agent.policy_folder}")


def starts_digest(config: RLConfig) -> dict[str, str]:
    """Return a digest of the recordings that dreams begin in, if there are some."""
    if config.env != "dream" or config.starts is None:
        return {}
    return {"starts": digest_of(None, load_episodes([config.starts]))}


def prepare_envs(config: RLConfig, sight: Sight, device: torch.device) -> TrainingEnvs:
    """Begin the dreams or the games."""
    from training.agents.envs import make_dreams, make_games

    how: dict[str, Any] = {"action_repeat": config.action_repeat, "reward_scale": config.ppo.reward_scale}
    if config.env == "dream":
        dreams = load_dreams(config, config.num_envs)
        world, envs = dreams.world.config, make_dreams(dreams, sight, device, **how)
        return TrainingEnvs(envs, world.name, world.actions, f"a dream of {dreams.world.identity}")
    game, num_envs = game_of(config.world), worker_count(config.num_envs, "num_envs")
    print(f"{num_envs} real games of {game.name}; the agent computes on {device}", flush=True)
    how["max_episode_steps"] = config.max_episode_steps
    envs = make_games(game, num_envs, sight, device, **how)
    return TrainingEnvs(envs, game.name, game.actions, f"the real game {game.name}")


def describe_policy(
    config: RLConfig, training_envs: TrainingEnvs, sight: Sight
) -> Callable[[Clock], PolicyDescription]:
    """Return what says, at any time of the training, what `policy.json` says."""
    training: dict[str, Any] = {
        "learned_from": training_envs.source,
        "seed": config.seed,
        "num_envs": training_envs.envs.num_envs,
        "max_episode_steps": config.max_episode_steps,
        "ppo": asdict(config.ppo),
        "command": " ".join(shlex.quote(word) for word in sys.orig_argv),
        "commit": git_commit(Path(__file__).parent),
    }
    if config.env == "dream":
        training |= {
            "noise_scale": config.noise_scale,
            "denoising_steps": config.denoising_steps,
            "starts": config.starts,
            "num_starts": config.num_starts if config.starts is not None else None,
        }
    return lambda clock: PolicyDescription(
        scenario=training_envs.scenario,
        actions=training_envs.actions.to_json(),
        num_values=list(training_envs.actions.num_values),
        sight=sight,
        action_repeat=config.action_repeat,
        training={"steps": clock.steps, "minutes": round(clock.seconds / 60, 2)} | training,
    )
