"""The length of an episode as a part of its state, for wrappers too."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import (
    GrayscaleObservation,
    RecordEpisodeStatistics,
    TimeAwareObservation,
    TimeLimit,
)

import worldsim
from tests.fakes import tiny_world
from worldsim.envs.single import ARL2WorldEnv
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.state import WorldState
from worldsim.world import World

LIMIT = 3
WALK = np.array([1, 0, 0])
WORLD = tiny_world()
TIMED = tiny_world(max_episode_steps=LIMIT)


def made() -> gym.Env:
    return gym.make(worldsim.ENV_ID, max_episode_steps=LIMIT, world=WORLD)


def by_hand() -> gym.Env:
    return GrayscaleObservation(TimeLimit(RecordEpisodeStatistics(ARL2WorldEnv(WORLD)), LIMIT))


both = pytest.mark.parametrize("make", [made, by_hand])


def states(world: World = WORLD) -> list[WorldState]:
    """Return the states after 0 to 4 frames."""
    env, found = ARL2WorldEnv(world), []
    env.reset(seed=0)
    for _ in range(5):
        found.append(env.get_state())
        env.step(WALK)
    return found


def cut_off(env: Any, num_steps: int) -> list[bool]:
    return [bool(env.step(WALK)[3]) for _ in range(num_steps)]


@both
def test_steps_are_counted_from_the_state(make: Any) -> None:
    env, (begin, first, second, *_) = make(), states()
    env.reset(seed=0)
    assert cut_off(env, 2) == [False, False]
    env.unwrapped.set_state(begin)
    assert cut_off(env, 3) == [False, False, True]
    env.unwrapped.set_state(second)
    assert cut_off(env, 1) == [True]
    env.unwrapped.set_state(first)
    assert cut_off(env, 2) == [False, True]
    env.reset(seed=0)
    assert cut_off(env, 3) == [False, False, True]


def test_a_fresh_environment_goes_on_from_a_state_without_a_reset() -> None:
    env = made()
    env.unwrapped.set_state(states()[1])
    observation, _, _, truncated, info = env.step(WALK)
    assert info["frame_index"] == 2
    assert not truncated
    assert cut_off(env, 1) == [True]
    other = by_hand()
    other.unwrapped.set_state(states()[2])
    assert cut_off(other, 1) == [True]


def test_what_gymnasium_made_still_asks_for_a_reset() -> None:
    for call in (lambda env: env.step(WALK), lambda env: env.render()):
        with pytest.raises(gym.error.ResetNeeded):
            call(gym.make(worldsim.ENV_ID, world=WORLD, render_mode="rgb_array"))


def test_many_dreams_count_the_same_way() -> None:
    envs = ARL2WorldVectorEnv(1, WORLD, max_episode_steps=LIMIT, autoreset_mode="Disabled")
    begin, first, *_ = states()
    for state, expected in ((begin, [False, False, True]), (first, [False, True])):
        envs.set_state(state)
        assert [bool(envs.step(WALK[None])[3][0]) for _ in expected] == expected
    envs.close()


def test_other_environments_are_left_alone() -> None:
    """A dream that is stepped within another one's step, to plan, say, changes no limit of that."""

    class Planning(gym.Wrapper):
        def step(self, action: Any) -> Any:
            other.unwrapped.set_state(begin)
            other.step(action)
            return self.env.step(action)

    begin, other = states()[0], by_hand()
    env = TimeLimit(Planning(ARL2WorldEnv(WORLD)), LIMIT)
    env.reset(seed=0)
    assert cut_off(env, 3) == [False, False, True]


def test_a_step_that_is_part_of_observations_is_counted_from_the_state() -> None:
    env = TimeAwareObservation(made(), flatten=False, normalize_time=False)
    env.unwrapped.set_state(states()[1])
    assert [int(env.step(WALK)[0]["time"][0]) for _ in range(2)] == [2, 3]


def test_an_episode_is_truncated_at_the_worlds_longest_game() -> None:
    env, (_, first, *_, fourth) = ARL2WorldEnv(TIMED), states(TIMED)
    env.reset(seed=0)
    assert cut_off(env, 4) == [False, False, True, True]
    env.set_state(first)
    assert not env.time_is_up
    assert cut_off(env, 2) == [False, True]
    env.set_state(fourth)
    assert env.time_is_up and not env.has_ended


@pytest.mark.parametrize("limit", [2, 4])
def test_a_limit_around_it_decides_instead_of_the_worlds_own(limit: int) -> None:
    for env in (
        gym.make(worldsim.ENV_ID, max_episode_steps=limit, world=TIMED),
        GrayscaleObservation(TimeLimit(RecordEpisodeStatistics(ARL2WorldEnv(TIMED)), limit)),
    ):
        env.reset(seed=0)
        assert cut_off(env, limit) == [False] * (limit - 1) + [True]


@pytest.mark.parametrize(("limit", "frames"), [(None, LIMIT), (2, 2), (5, 5)])
def test_many_dreams_are_truncated_there_too(limit: int | None, frames: int) -> None:
    envs = ARL2WorldVectorEnv(2, TIMED, max_episode_steps=limit, autoreset_mode="SameStep")
    envs.reset(seed=0)
    ends = [envs.step(np.stack([WALK] * 2))[3].tolist() for _ in range(frames)]
    assert ends == [[False, False]] * (frames - 1) + [[True, True]]


def test_car_racing_is_cut_off_as_the_game_is() -> None:
    spec = gym.spec("CarRacing-v3")
    assert spec.max_episode_steps == World.from_pretrained("car-racing").config.max_episode_steps == 1000
