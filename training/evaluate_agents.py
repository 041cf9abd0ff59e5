"""Measure policies in the real game or in a dream: `python -m training.rl mode=evaluate`."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from policies.ppo import DESCRIPTION_FILE, load_policy
from training.agent_scores import Contender, format_scores, play_dreams, play_games
from training.agent_settings import RLConfig
from training.dreams import load_dreams, scenario_of
from worldsim.data.scenarios import SCENARIOS
from worldsim.device import choose_device, set_threads
from worldsim.errors import WorldError
from worldsim.evaluation import report
from worldsim.world import find_world, policy_folder, read_config

DREAMS_AT_ONCE = 256


def evaluate_agents(config: RLConfig) -> None:
    """Let every policy play the same episodes; print a table and write OUT/ENV.json.

    Raises:
        WorldError: If a policy, the world or the game is not there, or they do not fit each other.
    """
    set_threads(config.threads)
    choice = choose_device(config.device, config.dtype)
    out = Path(config.out or f"outputs/rl-{Path(config.world).name}")
    described: dict[str, Any] = report.describe_run(
        [shlex.quote(word) for word in sys.orig_argv], choice.device, choice.dtype
    )
    if config.env == "real":
        scenario = scenario_of(config.world)
        name, actions, played_in = scenario, SCENARIOS[scenario].actions, f"the real game {scenario}"
    else:
        world = read_config(find_world(config.world))[0]
        name, actions = world.name, world.actions
    contenders = [
        make_contender(label, config, name, actions.num_values)
        for label in dict.fromkeys(config.policies or [config.policy])
    ]
    out.mkdir(parents=True, exist_ok=True)  # what cannot be written is found now
    if config.env == "real":
        played = play_games(
            contenders,
            config.episodes,
            scenario=name,
            max_episode_steps=config.max_episode_steps,
            num_workers=config.num_workers or os.cpu_count() or 1,
        )
    else:
        envs = load_dreams(config, min(config.num_envs or DREAMS_AT_ONCE, config.episodes))
        played, played_in = (
            play_dreams(contenders, config.episodes, envs),
            f"a dream of {envs.world.identity}",
        )
        envs.close()
    tics = SCENARIOS[name].tics_per_frame if name in SCENARIOS else 1
    scores = {label: episodes.summary(tics) for label, episodes in played.items()}
    for contender in contenders:
        scores[contender.label]["training"] = training_of(contender)
    path = out / f"{config.env}.json"
    report.write_json(
        path, described | {"played_in": played_in, "settings": asdict(config), "policies": scores}
    )
    print(f"\n{played_in}, {config.episodes} episodes\n{format_scores(scores)}\n\nwritten to {path}")


def make_contender(label: str, config: RLConfig, scenario: str, num_values: tuple[int, ...]) -> Contender:
    """Return the policy that a setting names, having built it once.

    Raises:
        WorldError: If there is none of that name, and no folder.
    """
    options: dict[str, Any] = {}
    name = label
    if label == "ppo":
        options = {
            "folder": policy_folder(config.policy_folder, config.world),
            "deterministic": config.deterministic,
        }
    elif label == "to-and-fro":
        options = {"period_frames": config.period_frames}
    elif label not in ("random", "scripted"):
        if not (Path(label) / DESCRIPTION_FILE).is_file():
            raise WorldError(
                "policy must be ppo, random, scripted, to-and-fro or the folder of a learned policy, "
                f"got {label!r}"
            )
        name, options = "ppo", {"folder": label, "deterministic": config.deterministic}
    contender = Contender(label=label, policy=name, num_values=num_values, scenario=scenario, options=options)
    contender.build()  # what is wrong with it is said here, not by a worker
    return contender


def training_of(contender: Contender) -> dict[str, Any] | None:
    """Return what a learned policy says about its training."""
    if contender.policy != "ppo":
        return None
    return load_policy(Path(contender.options["folder"]))[0].training
