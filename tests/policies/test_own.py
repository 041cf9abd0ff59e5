"""Players of a user's own: functions and agents that know the environment, played by the nearest buttons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import policies
from training.data.recorders import EpisodeTask, record_episode
from worldsim.data.episodes import read_episode
from worldsim.errors import WorldError
from worldsim.games.gym.config import GymConfig
from worldsim.games.gym.game import GymGame, describe_env

DOT = "tests.own_games:Dot-v0"


def joined(path: str, env_id: str = DOT, **settings: Any) -> tuple[policies.Policy, GymGame]:
    entry = describe_env(env_id, GymConfig(**settings))
    game = entry.open()
    player = policies.make("own", num_values=entry.actions.num_values, path=path)
    assert isinstance(player, policies.Insider)
    player.join(game)
    return player, game


def test_a_function_plays(tmp_path: Path) -> None:
    player, game = joined("tests.own_games:to_and_fro")
    game.entry.dataset_info("a test").save(tmp_path)
    record_episode(game, player, EpisodeTask(folder=tmp_path, name="one", seed=1), 26)
    steer = read_episode(tmp_path, "one").actions[:-1, 0]
    assert set(steer.tolist()) == {1, 4}, "full left and full right"
    assert (np.diff(steer) != 0).sum() == 2, "it turns round at both ends"


def test_it_may_share_episodes_with_others() -> None:
    entry = describe_env(DOT, GymConfig())
    how = {"shares": {"own": 1.0, "random": 1.0}, "options": {"own": {"path": "tests.own_games:to_and_fro"}}}
    player = policies.make("mixed", num_values=entry.actions.num_values, **how)
    assert isinstance(player, policies.Insider)
    with entry.open() as game:
        player.join(game)
        seen = set()
        for seed in range(8):
            player.reset(seed)
            frame = game.reset(seed).frame
            seen.add(tuple(int(player.act(frame)[0]) in (1, 4) for _ in range(9)))
    assert (True,) * 9 in seen and len(seen) > 1


@pytest.mark.parametrize(("seen", "action"), [("vector", "box"), ("rgb", "multi"), ("vector", "multi")])
def test_an_agent_plays_in_the_environment_that_it_learned_in(seen: str, action: str, tmp_path: Path) -> None:
    sb3 = pytest.importorskip("stable_baselines3", reason='needs SB3: pip install -e ".[rl]"')
    kwargs = {"seen": seen, "action": action}
    agent = sb3.PPO("MlpPolicy", gym.make(DOT, **kwargs), policy_kwargs={"net_arch": [8]}, device="cpu")
    agent.save(tmp_path / "agent.zip")
    player, game = joined(str(tmp_path / "agent.zip"), kwargs=kwargs)
    actions = []
    for seed in (0, 1, 0):
        player.reset(seed)
        frame = game.reset(0).frame
        actions.append([player.act(frame).tolist() for _ in range(10)])
    assert actions[0] == actions[2] != actions[1], "the seed decides what is drawn"
    others = {"vector": "rgb", "rgb": "vector"}
    with pytest.raises(ValueError, match="agent.zip: the agent learned from observations"):
        joined(str(tmp_path / "agent.zip"), kwargs=kwargs | {"seen": others[seen]})
    with pytest.raises(ValueError, match="the agent's actions are .*, the environment's MultiBinary"):
        joined(str(tmp_path / "agent.zip"), kwargs=kwargs | {"action": "binary"})


def test_a_driver_stays_on_the_road() -> None:
    pytest.importorskip("Box2D", reason='needs Box2D: pip install -e ".[box2d]"')
    player, game = joined("policies.scripted.car_racing:race", "CarRacing-v3", bins=[7, 5, 5])
    player.reset(1)
    seen, total = game.reset(1), 0.0
    for _ in range(80):
        seen = game.step(player.act(seen.frame))
        total += seen.reward
    # Who stands still has -8 points; a tile gives 3.
    assert total > 20
    game.close()


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("to_and_fro", "a player of your own is MODULE:NAME or AGENT.zip, got 'to_and_fro'"),
        ("no_such_module:play", "there is no player no_such_module:play: ModuleNotFoundError: No module"),
        (
            "tests.own_games:nobody",
            "there is no player .*:nobody: AttributeError: module .* no attribute",
        ),
        ("tests.own_games:ROWS", "the player tests.own_games:ROWS is no function, but a int"),
        ("nowhere.zip", "there is no agent nowhere.zip"),
    ],
)
def test_a_player_that_is_not_there_is_named(path: str, sentence: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        policies.make("own", num_values=[5, 5], path=path)


def test_what_a_player_does_wrong_is_one_sentence(tmp_path: Path) -> None:
    player, game = joined("tests.own_games:mad")
    frame = game.reset(0).frame
    with pytest.raises(WorldError, match=r"Dot-v0: an action is an array \[2\] of finite numbers, got array"):
        player.act(frame)
    player, game = joined("builtins:print")
    with pytest.raises(ValueError, match="the player builtins:print fails: TypeError"):
        player.act(frame)
    (tmp_path / "agent.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is no agent of Stable-Baselines3"):
        joined(str(tmp_path / "agent.zip"))
    alone = policies.make("own", num_values=[5, 5], path="tests.own_games:mad")
    with pytest.raises(ValueError, match="needs the game"):
        alone.act(frame)
    assert isinstance(alone, policies.Insider)
    with pytest.raises(ValueError, match="plays environments"):
        alone.join(object())
