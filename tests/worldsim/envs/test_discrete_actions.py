"""One number instead of one for each axis, for algorithms that know no `MultiDiscrete`."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import InvalidAction

from tests.fakes import TINY_ACTIONS, tiny_world
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.envs.single import ARL2WorldEnv
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.errors import WorldError

WORLD = tiny_world()


def test_numbers_count_all_actions() -> None:
    actions = [TINY_ACTIONS.from_number(number) for number in range(TINY_ACTIONS.num_actions)]
    assert [tuple(action) for action in actions] == list(itertools.product(range(3), repeat=3))
    assert [TINY_ACTIONS.to_number(action) for action in actions] == list(range(27))


def test_a_number_plays_what_its_action_plays() -> None:
    env, other = ARL2WorldEnv(WORLD, discrete_actions=True), ARL2WorldEnv(WORLD)
    envs = ARL2WorldVectorEnv(2, WORLD, discrete_actions=True)
    assert env.action_space == gym.spaces.Discrete(27)
    assert envs.single_action_space == gym.spaces.Discrete(27)
    assert envs.action_space.shape == (2,)
    for one in (env, other):
        one.reset(seed=0)
    envs.reset(seed=0)
    number = TINY_ACTIONS.to_number(np.array([1, 0, 2]))
    frame = other.step(np.array([1, 0, 2]))[0]
    for given in (number, np.int64(number), np.array(number), torch.tensor(number)):
        env.reset(seed=0)
        assert np.array_equal(env.step(given)[0], frame)
    assert np.array_equal(envs.step(np.array([number, 0]))[0][0], frame)
    envs.close()


@pytest.mark.parametrize("action", [27, -1, 1.0, True, None, "1", np.array([1]), [1, 0, 2]])
def test_what_is_no_number_of_an_action_is_named(action: Any) -> None:
    env = ARL2WorldEnv(WORLD, discrete_actions=True)
    env.reset(seed=0)
    with pytest.raises(WorldError, match="an action is (0 to 26|one whole number), got"):
        env.step(action)


@pytest.mark.parametrize("actions", [[0, 27], [-1, 0], [0.0, 1.0], [[0], [1]], [True, False], "ab", [0, [1]]])
def test_what_are_no_numbers_of_actions_is_named(actions: Any) -> None:
    envs = ARL2WorldVectorEnv(2, WORLD, discrete_actions=True)
    envs.reset(seed=0)
    with pytest.raises(InvalidAction, match=r"an action is 0 to 26, got|must be whole numbers \[2\], got"):
        envs.step(actions)
    envs.close()


def test_an_action_of_one_axis_is_spoken_of_as_one() -> None:
    layout = ActionLayout((ActionAxis(name="strafe", buttons=("left",), keys=(("a",),)),))
    with pytest.raises(WorldError, match=r"an action is an array of one whole number \(for strafe\), got 1"):
        layout.validate(1)


@pytest.mark.parametrize(
    "action", [[1, 0], [1.0, 0, 0], [True, False, True], [[1], [0, 0], 2], None, torch.zeros(3), [np.nan] * 3]
)
def test_what_is_no_action_is_named(action: Any) -> None:
    with pytest.raises(WorldError, match=r"an action is 3 whole numbers \(one each for move, strafe, turn\)"):
        TINY_ACTIONS.validate(action)


def test_tensors_are_actions() -> None:
    for dtype in (torch.int64, torch.uint8):
        assert TINY_ACTIONS.validate(torch.tensor([1, 0, 2], dtype=dtype)).tolist() == [1, 0, 2]
    with pytest.raises(WorldError, match="3 whole numbers"):
        TINY_ACTIONS.validate(torch.zeros(3, dtype=torch.bfloat16))
