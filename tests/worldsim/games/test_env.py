"""The real game as an environment: the spaces, rewards and ends of its world, and games of its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import worldsim
from worldsim.errors import WorldError
from worldsim.games.env import EVALUATION_SEEDS, RealGameEnv
from worldsim.games.registry import GAMES, open_game

TAKE_COVER = GAMES["doom-take-cover"]


@pytest.fixture(scope="module")
def env() -> Iterator[RealGameEnv]:
    env = RealGameEnv("doom-take-cover", render_mode="rgb_array")
    yield env
    env.close()


def test_checkers_have_nothing_to_say() -> None:
    sb3 = pytest.importorskip(
        "stable_baselines3.common.env_checker", reason='needs SB3: pip install -e ".[rl]"'
    )
    env = gym.make(worldsim.GAME_ID, scenario="doom-health", render_mode="rgb_array").unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_close_check=True)
        sb3.check_env(env)
    env.close()


@pytest.mark.parametrize("name", sorted(GAMES))
def test_spaces_are_those_of_a_world(name: str) -> None:
    env, entry = RealGameEnv(name), GAMES[name]
    assert env.observation_space == gym.spaces.Box(
        0, 255, (GAMES[name].height, GAMES[name].width, 3), np.uint8
    )
    assert env.action_space == entry.actions.space()
    assert env.metadata["render_fps"] == entry.frame_rate
    env.close()


def test_it_plays_the_game_itself(env: RealGameEnv) -> None:
    seed, actions = 11, np.random.default_rng(0).integers(0, 3, (40, 1))
    frame, info = env.reset(seed=0, options={"game_seed": seed})
    assert info == {"frame_index": 0, "game_seed": seed}
    with open_game("doom-take-cover") as game:
        assert np.array_equal(frame, game.reset(seed).frame)
        for number, action in enumerate(actions, start=1):
            seen = game.step(action)
            frame, reward, terminated, truncated, info = env.step(action)
            assert np.array_equal(frame, seen.frame) and np.array_equal(env.render(), frame)
            assert (reward, terminated, truncated) == (seen.reward, seen.terminated, seen.truncated)
            assert info["frame_index"] == number


def test_death_ends_an_episode_and_only_reset_goes_on(env: RealGameEnv) -> None:
    env.reset(seed=3)
    frames = 0
    while not (outcome := env.step(np.array([0])))[2]:
        assert outcome[1] == 2.0 and not outcome[3]
        frames += 1
    assert 20 < frames < 1000
    with pytest.raises(ResetNeeded, match="after the episode had ended"):
        env.step(np.array([0]))
    env.reset()
    assert not env.step(np.array([0]))[2]


def test_the_scenarios_limit_cuts_off() -> None:
    env = RealGameEnv(replace(TAKE_COVER, max_tics=10))
    env.reset(seed=0)
    assert [env.step(np.array([1]))[2:4] for _ in range(5)] == [(False, False)] * 4 + [(False, True)]
    env.close()


def test_games_of_evaluations_are_never_drawn_and_seeds_repeat(env: RealGameEnv) -> None:
    seeds = [env.reset(seed=seed)[1]["game_seed"] for seed in range(5)]
    assert seeds == [env.reset(seed=seed)[1]["game_seed"] for seed in range(5)]
    assert len(set(seeds)) == 5 and max(seeds) < EVALUATION_SEEDS
    following = [env.reset()[1]["game_seed"] for _ in range(3)]
    env.reset(seed=4, options={"game_seed": EVALUATION_SEEDS + 1})
    assert following == [env.reset()[1]["game_seed"] for _ in range(3)], "choosing a game moved the stream"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 1}, "reset knows the option 'game_seed', not 'start'"),
        ({"game_seed": -1}, "game_seed must be a whole number from 0 to 4294967295, got -1"),
        ({"game_seed": 2**32}, "got 4294967296"),
        ({"game_seed": True}, "got True"),
        ({"game_seed": 0.5}, "got 0.5"),
    ],
)
def test_wrong_options_are_named(env: RealGameEnv, options: dict[str, object], message: str) -> None:
    with pytest.raises(WorldError, match=message):
        env.reset(options=options)


def test_wrong_use_is_named() -> None:
    with pytest.raises(WorldError, match="render_mode of a real game must be rgb_array or None, got 'human'"):
        RealGameEnv(render_mode="human")
    with pytest.raises(WorldError, match="there is no scenario 'quake'"):
        RealGameEnv("quake")
    env = RealGameEnv()
    with pytest.raises(ResetNeeded, match="before reset"):
        env.step(np.array([0]))
    env.reset(seed=0)
    with pytest.raises(WorldError, match="'strafe' takes 0 to 2"):
        env.step(np.array([3]))
    env.close()
    env.close()
    with pytest.raises(ResetNeeded, match="after close"):
        env.reset()
