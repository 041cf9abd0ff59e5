"""Watch a policy in a dream or in the real game: `python -m training.rl mode=watch env=real`."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import gymnasium as gym
import numpy as np

from training.agents.dreams import game_of
from training.agents.evaluate import make_entry
from training.agents.settings import RLConfig
from worldsim.data.dataset_info import DatasetInfo
from worldsim.envs.single import ARL2WorldEnv
from worldsim.games.env import RealGameEnv
from worldsim.games.registry import GAMES
from worldsim.play.desktop.spectator import Spectator
from worldsim.play.recording import Recording, free_recording
from worldsim.runtime.device import set_threads
from worldsim.ui.display import choose_headless
from worldsim.world import WorldConfig

RECORDINGS = Path("recordings")


def watch_agent(config: RLConfig) -> None:
    """Show the policy in a window until it is closed, or without a display record an episode.

    Raises:
        WorldError: If the policy, the world or the game is not there, or nothing can be recorded.
    """
    headless = choose_headless(config.headless)
    set_threads(config.threads)
    with ExitStack() as stack:
        env, played = begin_env(config)
        stack.enter_context(closing(env))
        inner = env.unwrapped
        game = inner.entry if isinstance(inner, RealGameEnv) else GAMES.get(played.name)
        policy_entry = make_entry(config.policy, config, game, played.actions.num_values)
        path = Path(config.record) if config.record else None
        if config.record is None and headless:
            path = free_recording(RECORDINGS, played, "rl")
        recording = stack.enter_context(Recording(path, played)) if path else None
        window = None
        if not headless:
            from worldsim.ui.window import Window

            title = f"{played.name} ({config.env})"
            window = Window(played.width, played.height, title=title, scale=config.scale, has_strip=True)
            stack.enter_context(closing(window))
        spectator = Spectator(
            env,
            policy_entry.build(),
            played.actions,
            name=policy_entry.label,
            window=window,
            recording=recording,
            frame_rate=played.frame_rate,
        )
        for episode in spectator.watch(config.seed, config.steps):
            how = "ended after" if episode.terminated else "cut off after" if episode.truncated else "watched"
            print(f"{how} {episode.num_frames} frames, return {episode.total_reward:.1f}", flush=True)
            if headless and not config.steps:
                break
    for written in recording.paths if recording is not None else ():
        print(f"recorded {written}")


def begin_env(config: RLConfig) -> tuple[gym.Env[np.ndarray, np.ndarray], WorldConfig | DatasetInfo]:
    """Return the environment, with a limit on its episodes, and a description of what is played."""
    if config.env == "real":
        entry = game_of(config.world)
        env: gym.Env[np.ndarray, np.ndarray] = RealGameEnv(entry)
        played: WorldConfig | DatasetInfo = entry.dataset_info(f"the real game, played by {config.policy}")
    else:
        dream = ARL2WorldEnv(
            config.world,
            device=config.device,
            dtype=config.dtype,
            denoising_steps=config.denoising_steps,
            noise_scale=config.noise_scale,
            compile=config.compile,
        )
        env, played = dream, dream.world.config
        print(f"computing on {dream.device_choice}", flush=True)
    return gym.wrappers.TimeLimit(env, config.max_episode_steps), played
