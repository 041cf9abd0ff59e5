"""Measure policies in the real game or in a dream: `python -m training.rl mode=evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from policies.ppo import DESCRIPTION_FILE, load_policy
from training.agents.agreement import agreement_on_ranks, compare, format_agreement
from training.agents.dreams import game_of, load_dreams
from training.agents.episodes import Episodes, PolicyEntry, format_scores, play_dreams, play_games
from training.agents.settings import RLConfig
from training.engine.lock import locked_folder
from worldsim.errors import WorldError
from worldsim.evaluation.report.report import describe_run, write_json
from worldsim.games.entry import GameEntry
from worldsim.games.registry import GAMES
from worldsim.runtime.cores import worker_count
from worldsim.runtime.device import choose_device, set_threads
from worldsim.world.world import find_world, policy_folder, read_config

DREAMS_AT_ONCE = 256


def evaluate_agents(config: RLConfig) -> None:
    """Let every policy play the same episodes; print a table and write OUT/ENV.json; of both, compare them.

    Raises:
        WorldError: If a policy, the world or the game is not there, or they do not fit each other.
    """
    set_threads(config.threads)
    out = Path(config.out or f"outputs/rl-{Path(config.world).name}")
    choice = choose_device(config.device, config.dtype)
    policy_entries = make_entries(config)
    head = describe_run(choice.device, choice.dtype) | {"settings": asdict(config)}
    # The game first: that it is not installed is found at once.
    envs = ("real", "dream") if config.env == "both" else (config.env,)
    with locked_folder(out):  # what cannot be written is found now
        played = {env: play(env, config, policy_entries, head, out / f"{env}.json") for env in envs}
        if config.env == "both":
            compare_envs(policy_entries, played["dream"], played["real"], head, out / "both.json")


def play(
    env: str, config: RLConfig, policy_entries: Sequence[PolicyEntry], head: dict[str, Any], path: Path
) -> dict[str, Episodes]:
    """Let every policy play there; print a table, write the file, and return the episodes by label."""
    played_in, played = (play_real if env == "real" else play_dreamt)(config, policy_entries)
    scores = {
        policy_entry.label: played[policy_entry.label].summary(policy_entry.game)
        | {"training": training_of(policy_entry)}
        for policy_entry in policy_entries
    }
    write_json(path, head | {"played_in": played_in, "policies": scores})
    print(f"\n{played_in}, {config.episodes} episodes\n{format_scores(scores)}\n\nwritten to {path}")
    return played


def compare_envs(
    policy_entries: Sequence[PolicyEntry],
    dream: dict[str, Episodes],
    real: dict[str, Episodes],
    head: dict[str, Any],
    path: Path,
) -> None:
    """Say whether the dream judges the policies as the game does; print a table and write the file."""
    players = [
        compare(one.label, dream[one.label], real[one.label], learned_in_dreams=learned_in_dreams(one))
        for one in policy_entries
    ]
    by_label = {player.label: player.to_json() for player in players}
    found = {"rank_correlation": agreement_on_ranks(players), "policies": by_label}
    write_json(path, head | found)
    print(f"\nthe dream beside the game\n{format_agreement(players)}\n\nwritten to {path}")


def play_real(config: RLConfig, policy_entries: Sequence[PolicyEntry]) -> tuple[str, dict[str, Episodes]]:
    """Play the real game; returns what was played, and the episodes by label."""
    game = policy_entries[0].game
    assert game is not None, "was looked for"
    played = play_games(
        policy_entries,
        config.episodes,
        game=game,
        max_episode_steps=config.max_episode_steps,
        num_workers=worker_count(config.num_workers),
        first_game=config.seed,
    )
    return f"the real game {game.name}", played


def play_dreamt(config: RLConfig, policy_entries: Sequence[PolicyEntry]) -> tuple[str, dict[str, Episodes]]:
    """Play in the world; returns what was played, and the episodes by label."""
    envs = load_dreams(config, min(config.num_envs or DREAMS_AT_ONCE, config.episodes))
    try:
        played = play_dreams(policy_entries, config.episodes, envs, first_dream=config.seed)
        return f"a dream of {envs.world.identity}", played
    finally:
        envs.close()


def make_entries(config: RLConfig) -> list[PolicyEntry]:
    """Return the policies that the settings name, each once."""
    if config.env != "dream":
        game: GameEntry | None = game_of(config.world)
        num_values: Sequence[int] = game.actions.num_values
    else:
        world = read_config(find_world(config.world))[0]
        game, num_values = GAMES.get(world.name), world.actions.num_values
    labels = dict.fromkeys(config.policies or [config.policy])
    return [make_entry(label, config, game, num_values) for label in labels]


def make_entry(
    label: str, config: RLConfig, game: GameEntry | None, num_values: Sequence[int]
) -> PolicyEntry:
    """Return the policy that a setting names, having built it once.

    Raises:
        WorldError: If there is none of that name, and no folder.
    """
    name, options = label, {}
    if label == "ppo":
        options = {
            "folder": policy_folder(config.policy_folder, config.world),
            "deterministic": config.deterministic,
        }
    elif label == "to-and-fro":
        options = {"period_frames": config.period_frames}
    elif label.endswith(".zip"):
        options = {"deterministic": config.deterministic}
    elif label not in ("random", "scripted", "still"):
        if not (Path(label) / DESCRIPTION_FILE).is_file():
            raise WorldError(
                "policy must be ppo, random, scripted, still, to-and-fro, the folder of a learned policy or "
                f"the .zip of an agent of Stable-Baselines3, got {label!r}"
            )
        name, options = "ppo", {"folder": label, "deterministic": config.deterministic}
    policy_entry = PolicyEntry(label, name, num_values, game, options)
    policy_entry.build()  # what is wrong with it is said here, not by a worker
    return policy_entry


def training_of(policy_entry: PolicyEntry) -> dict[str, Any] | None:
    """Return what a learned policy says about its training."""
    if policy_entry.policy != "ppo":
        return None
    return load_policy(Path(policy_entry.options["folder"]))[0].training


def learned_in_dreams(policy_entry: PolicyEntry) -> bool:
    """Whether a policy says that it learned in a dream."""
    training = training_of(policy_entry) or {}
    return str(training.get("learned_from", "")).startswith("a dream of")
