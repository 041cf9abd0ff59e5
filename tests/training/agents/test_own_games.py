"""Agents in environments: a world's own game is found by what the world says of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.fakes import tiny_world
from tests.own_games import Dot
from worldsim.errors import WorldError

pytest.importorskip("stable_baselines3", reason='needs Stable-Baselines3: pip install -e ".[rl]"')

from training.agents.dreams import game_of
from training.agents.episodes import Episodes, format_scores
from training.agents.evaluate import make_entries
from training.agents.settings import RLConfig
from training.data.game_process import begin_game
from worldsim.games.gym.config import GymConfig
from worldsim.games.gym.game import describe_env

assert "Dot-v0" in gym.registry, Dot


def world_of(folder: Path, environment: Any) -> str:
    """Write a world with axes of 3, 3 and 3 values that says it was made from an environment."""
    world = tiny_world(num_steps=1)
    world.config = replace(world.config, name="dot", provenance={"environment": environment})
    world.save_pretrained(folder)
    return str(folder)


def test_the_game_of_a_world_is_its_environment(tmp_path: Path) -> None:
    world = world_of(tmp_path / "world", {"id": "Dot-v0", "kwargs": {"action": "three", "lasts": 6}})
    game = game_of(world)
    assert (game.name, game.actions.num_values) == ("dot", (3, 3, 3))
    config = RLConfig(world=world, mode="evaluate", env="real", policy="random")
    (entry,) = make_entries(config)
    assert entry.game == game
    env, player = begin_game(game, max_episode_steps=100), entry.build()
    player.reset(0)
    observation, _ = env.reset(seed=0)
    rewards, ended = [], False
    while not ended:
        observation, reward, ended, _, _ = env.step(player.act(observation))
        rewards.append(reward)
    assert rewards == [1] * 6
    played = Episodes(returns=np.ones(2), frames=np.array([4, 6]), terminated=np.ones(2, dtype=np.bool_))
    skipping = describe_env("Dot-v0", GymConfig(frame_skip=4))
    for entry, length in ((game, 5), (skipping, 20)):
        summary = played.summary(entry)
        assert (summary["length"]["mean"], summary["length"]["unit"]) == (length, "steps")
    assert "mean steps" in format_scores({"random": summary})


def test_an_environment_is_a_game_by_its_id() -> None:
    assert game_of("Dot-v0").name == "dot"


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"id": "os:system", "kwargs": {"command": "true"}}, "made by code that its description names"),
        ({"id": "Dot-v0", "wrappers": ["os:system"]}, "which is not run unasked"),
        ({"id": "Dot-v0", "colour": 3}, "an environment is an id and settings of game, got"),
        ({"kwargs": {}}, "an environment is an id and settings of game, got"),
        ({"id": "Dot-v0", "bins": "many"}, "Dot-v0 cannot be made as it is described|bins"),
        ({"id": "Dot-v0"}, r"the world .* has axes of \[3, 3, 3\] values, but the game dot of \[5, 5\]"),
        ("Dot-v0", "was not made from a game that can be played here"),
    ],
)
def test_what_a_world_says_of_its_game_is_not_believed(
    environment: Any, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(WorldError, match=sentence):
        game_of(world_of(tmp_path / "world", environment))
    assert json.loads((tmp_path / "world/config.json").read_text())["name"] == "dot"
