"""Wrong arguments of a batch: one clear sentence, and no change."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, InvalidAction, ResetNeeded

from tests.fakes import HEIGHT, WIDTH, tiny_world
from tests.vector_envs import ACTIONS, N, make
from worldsim.errors import WorldError
from worldsim.starts import Start
from worldsim.world import World

pytestmark = pytest.mark.filterwarnings("ignore:.*no outcome heads")  # most tests need no rewards

WATCHED, PRESSED = torch.zeros(2, HEIGHT, WIDTH, 3, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.int64)


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world()


@pytest.mark.parametrize("call", ["step", "get_state", "memory_bytes"])
def test_nothing_works_before_reset_or_after_close(world: World, call: str) -> None:
    envs = make(world)

    def use() -> None:
        value = getattr(envs, call)
        value(*([ACTIONS[0]] if call == "step" else []))

    with pytest.raises(ResetNeeded, match=f"{call} was called before reset"):
        use()
    envs.reset(seed=0)
    state = envs.get_state()
    envs.close()
    envs.close()
    for again in (use, envs.reset, lambda: envs.set_state(state)):
        with pytest.raises(ClosedEnvironmentError, match="was called after close"):
            again()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 0}, "num_envs must be a whole number of at least 1, got 0"),
        ({"num_envs": 2.0}, "num_envs must be"),
        ({"num_envs": True}, "num_envs must be"),
        ({"num_envs": 10**9}, "num_envs must be at most 65536"),
        ({"max_episode_steps": 2.5}, "max_episode_steps must be at least 1, a whole number, got 2.5"),
        ({"max_episode_steps": True}, "max_episode_steps must be at least 1"),
        ({"denoising_steps": 1.5}, "denoising steps must be an integer from 1 to 64, got 1.5"),
        ({"noise_scale": float("nan")}, "noise_scale must be a finite number from 0 to 100, got nan"),
        ({"noise_scale": "2"}, "noise_scale must be a finite number"),
        ({"discrete_actions": 1}, "discrete_actions must be true or false"),
        ({"starts": ["start-00"]}, r"starts must be start moments .* got str"),
        (
            {"starts": [Start("a", torch.zeros(2, 9, 9, 3).byte(), PRESSED)]},
            r"start 'a': frames must be uint8",
        ),
        ({"starts": [Start("a", WATCHED.float(), PRESSED)]}, "start 'a': frames must be uint8"),
        ({"starts": [Start("a", WATCHED, PRESSED + 3)]}, "start 'a': an action is outside"),
        ({"starts": [Start("a", WATCHED, PRESSED[:1])]}, r"start 'a': actions must be int64 \[2, 3\]"),
        ({"render_mode": "human"}, "render_mode"),
        ({"max_episode_steps": 0}, "max_episode_steps must be at least 1"),
        ({"autoreset_mode": "Never"}, "NextStep, SameStep, Disabled"),
        ({"output": "jax"}, "output must be numpy or torch"),
        ({"denoising_steps": 0}, "denoising steps"),
        ({"device": "cpu"}, "a loaded world stays where it is"),
    ],
)
def test_wrong_settings_are_named(world: World, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WorldError, match=message):
        make(world, **settings)


def test_world_whose_memory_grows_is_refused() -> None:
    with pytest.raises(WorldError, match="keeps all past frames.*vectorization_mode='sync'"):
        make(tiny_world(is_teacher=True))


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((N, 2), dtype=int), r"whole numbers \[4, 3\].*got int64 \[4, 2\]"),
        (np.zeros((N - 1, 3), dtype=int), r"got int64 \[3, 3\]"),
        (np.zeros((N, 3)), "got float64"),
        (np.zeros((N, 3), dtype=bool), "got bool"),
        (torch.zeros(N, 3), "got torch.float32"),
        ([[0, 0, 0], [0]], "must be whole numbers"),
        (None, "got None"),
        (np.array([[0, 0, 0]] * 3 + [[0, 3, 0]]), "'strafe' takes 0 to 2, got 3 in environment 3"),
        (np.array([[0, 0, -1]] + [[0, 0, 0]] * 3), "'turn' takes 0 to 2, got -1 in environment 0"),
    ],
)
def test_wrong_actions_are_named_and_change_nothing(world: World, actions: np.ndarray, message: str) -> None:
    envs = make(world)
    envs.reset(seed=0)
    before = envs.get_state()
    with pytest.raises(InvalidAction, match=message):
        envs.step(actions)
    assert envs.get_state() is before


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"options": {"reset_mask": [True] * N}}, TypeError, "array of bool, got list"),
        ({"options": {"reset_mask": np.ones(N, dtype=int)}}, TypeError, "array of bool, got int64"),
        ({"options": {"reset_mask": np.ones(N + 1, dtype=bool)}}, ValueError, r"shape \(4,\), got \(5,\)"),
        ({"options": {"reset_mask": np.zeros(N, dtype=bool)}}, ValueError, "nothing to reset"),
        ({"options": {"start": 9}}, WorldError, "there is no start 9"),
        ({"options": {"start": "9" * 5000}}, WorldError, r"there is no start '9{96}\.\.\.: it is 0 to"),
        ({"options": {"start": [0, 1]}}, WorldError, "one for each of 4 environments, got 2"),
        ({"options": {"level": 1}}, WorldError, "'reset_mask' and 'start', not 'level'"),
        ({"seed": [1, 2]}, ValueError, "one for each of 4 environments, got 2"),
        ({"seed": -1}, gym.error.Error, "Seed must be greater or equal to zero"),
        ({"seed": 1.5}, WorldError, "a seed must be a whole number of at least 0, got 1.5"),
        ({"seed": True}, WorldError, "a seed must be a whole number"),
        ({"seed": "12"}, WorldError, "a seed must be a whole number"),
        ({"seed": [1, 2, 3, 4.0]}, WorldError, "a seed must be a whole number of at least 0, got 4.0"),
        ({"options": [("start", 1)]}, WorldError, "the options of a reset must be a dictionary"),
        ({"options": {1: 1, "level": 1}}, WorldError, "'reset_mask' and 'start', not 'level', 1"),
        ({"options": {"start": [0, 1, 2, 0.5]}}, WorldError, "there is no start 0.5"),
        ({"options": {"start": np.array([0, 1, 2, np.nan])}}, WorldError, "there is no start 0.0"),
    ],
)
def test_wrong_resets_are_named_and_change_nothing(
    world: World, call: dict[str, Any], error: type[Exception], message: str
) -> None:
    envs = make(world)
    envs.reset(seed=0)
    before, seeds = envs.get_state(), envs.np_random_seed
    with pytest.raises(error, match=message):
        envs.reset(**call)
    assert envs.get_state() is before
    assert envs.np_random_seed == seeds == (0, 1, 2, 3)


def test_mask_before_any_reset_is_refused(world: World) -> None:
    with pytest.raises(ResetNeeded, match="reset_mask"):
        make(world).reset(options={"reset_mask": np.array([True, False, False, False])})


def test_numbers_of_numpy_are_numbers(world: World) -> None:
    envs = make(world, num_envs=np.int64(2), max_episode_steps=np.int32(3), denoising_steps=np.int64(1))
    envs.reset(seed=np.int64(4), options={"start": np.array(1)})
    assert envs.np_random_seed == (4, 5)
    envs.reset(seed=np.array([7, 8]), options={"start": np.array([1, 2])})
    assert envs.np_random_seed == (7, 8)
    envs.close()
