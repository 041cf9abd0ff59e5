"""The dreams that agents are trained and measured in, as the settings of `training.rl` describe them."""

from __future__ import annotations

import re
from pathlib import Path

from training.agents.settings import RLConfig
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.errors import WorldError
from worldsim.games.entry import GameEntry
from worldsim.games.gym.config import GymConfig
from worldsim.games.gym.game import describe_env, restore_entry
from worldsim.games.registry import GAMES
from worldsim.runtime.config import RuntimeConfig
from worldsim.simulator import open_world
from worldsim.starts import draw_starts
from worldsim.world.world import find_world, read_config

GPU_ENVS, CPU_ENVS = 256, 8
WATCHED_AT_ONCE = 32
FRAMES_LEFT = 18
"""About a second of play that a start moment from a recording must have left: who dies within it learns
nothing that could have been done."""


def load_dreams(config: RLConfig, num_envs: int = 0) -> ARL2WorldVectorEnv:
    """Load the world and return dreams of it, ready to begin: tensors on its device, in the mode `SameStep`.

    0 environments are as many as the device is good for.

    Raises:
        WorldError: If the world, or the folder of recorded episodes, is not there or not valid.
    """
    world, choice = open_world(config.world, RuntimeConfig(device=config.device, dtype=config.dtype))
    described, starts = world.config, None
    if config.starts is not None:
        starts = draw_starts(
            Path(config.starts),
            config.num_starts,
            config.context_frames,
            actions=described.actions,
            size=(described.height, described.width),
            seed=config.seed,
            frames_left=FRAMES_LEFT,
            with_poses=world.on_level_map,
        )
    envs = ARL2WorldVectorEnv(
        num_envs or (GPU_ENVS if choice.device.type == "cuda" else CPU_ENVS),
        world,
        denoising_steps=config.denoising_steps,
        noise_scale=config.noise_scale,
        max_episode_steps=config.max_episode_steps,
        autoreset_mode="SameStep",
        output="torch",
        starts=starts,
        compile=config.compile,
    )
    where = f"{len(envs.start_names)} moments of " + (config.starts or "the world's own")
    how = f"on {choice}, {envs.compile_choice}"
    print(f"{envs.num_envs} dreams of {world.identity}, beginning at {where}, {how}", flush=True)
    envs.watch_starts(WATCHED_AT_ONCE)
    return envs


def game_of(world: str) -> GameEntry:
    """Return the game that a world was made from; a game and an environment are named by themselves.

    Raises:
        WorldError: If there is no such world, or its game is not one that can be played here.
    """
    if world in GAMES:
        return GAMES[world]
    if re.search(r"-v\d+$", world) and not Path(world).exists():
        return describe_env(world, GymConfig())
    described = read_config(find_world(world))[0]
    if described.name in GAMES:
        game = GAMES[described.name]
    elif isinstance(environment := described.provenance.get("environment"), dict):
        game = restore_entry(environment)
    else:
        raise WorldError(
            f"the world {world} was not made from a game that can be played here; "
            f"those are environments of Gymnasium and {', '.join(sorted(GAMES))}"
        )
    found, needed = described.actions.num_values, game.actions.num_values
    if found != needed:
        raise WorldError(
            f"the world {world} has axes of {list(found)} values, "
            f"but the game {described.name} of {list(needed)}"
        )
    return game
