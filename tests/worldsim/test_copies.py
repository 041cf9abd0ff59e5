"""An environment that is copied or sent to another process goes on from where it stands, by itself."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import worldsim
from tests.fakes import tiny_world
from worldsim.envs.single import ARL2WorldEnv
from worldsim.envs.vector import ARL2WorldVectorEnv

WALK, LEFT = np.array([1, 0, 0]), np.array([0, 0, 1])
WORLD = tiny_world()
WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "deepcopy": copy.deepcopy,
}
both_ways = pytest.mark.parametrize("way", WAYS)


@both_ways
def test_a_copy_goes_on_to_the_same_frames_and_leaves_its_origin(way: str) -> None:
    env = ARL2WorldEnv(WORLD, render_mode="rgb_array")
    env.reset(seed=4)
    env.step(WALK)
    before = env.render()
    copied = WAYS[way](env)
    theirs = [copied.step(LEFT)[0], copied.reset()[0], copied.step(WALK)[0]]
    assert np.array_equal(env.render(), before)
    ours = [env.step(LEFT)[0], env.reset()[0], env.step(WALK)[0]]
    assert all(np.array_equal(here, there) for here, there in zip(ours, theirs, strict=True))
    assert copied.render_mode == "rgb_array"
    assert copied.action_space == env.action_space


@both_ways
def test_a_copy_within_a_step_can_finish_it(way: str) -> None:
    env = ARL2WorldEnv(WORLD)
    env.reset(seed=4)
    frame = env.begin_step(LEFT)
    assert np.array_equal(WAYS[way](env).finish_step()[0], frame)


def test_a_deep_copy_shares_the_weights() -> None:
    env = ARL2WorldEnv(WORLD)
    copied = copy.deepcopy(env)
    assert copied.world is copied.simulator.world is WORLD


@both_ways
def test_wrappers_are_copied_with_it(way: str) -> None:
    env = gym.make(worldsim.ENV_ID, world=WORLD, max_episode_steps=2)
    env.reset(seed=0)
    env.step(WALK)
    copied = WAYS[way](env)
    assert copied.step(WALK)[3]
    assert env.step(WALK)[3]


@both_ways
def test_many_dreams_are_copied(way: str) -> None:
    envs = ARL2WorldVectorEnv(3, WORLD, max_episode_steps=4)
    envs.reset(seed=1)
    walks = np.tile(WALK, (3, 1))
    envs.step(walks)
    copied = WAYS[way](envs)
    for _ in range(4):
        ours, theirs = envs.step(walks), copied.step(walks)
        assert np.array_equal(ours[0], theirs[0])
        assert np.array_equal(ours[3], theirs[3])
    copied.close()
    assert not envs.closed
    envs.step(walks)
    envs.close()
