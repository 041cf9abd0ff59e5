"""Episodes of a batch end, begin anew and are judged as in Gymnasium's own vector environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.fakes import tiny_world
from tests.vector_envs import ACTIONS, N, make
from worldsim.envs.single import ARL2WorldEnv
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.outcome import Outcome
from worldsim.simulator import Simulator
from worldsim.state import WorldState
from worldsim.world import World, WorldConfig

MODES = tuple(AutoresetMode)
DISABLED, NEXT_STEP = AutoresetMode.DISABLED, AutoresetMode.NEXT_STEP
ROW_TOLERANCE = 2  # in steps of 1/255; see test_vector_env.py

pytestmark = pytest.mark.filterwarnings("ignore:.*no outcome heads")  # most tests need no rewards


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world()


class KnownOutcomes(Simulator):
    """Every frame brings its number, frame 3 of an even seed ends the episode."""

    def outcome(self, state: WorldState) -> Outcome:
        is_end = (state.frame_index == 3) & (state.seed % 2 == 0)
        return Outcome(state.frame_index.float(), torch.where(is_end, 0.9, 0.1))


def as_python(infos: dict[str, Any]) -> dict[str, Any]:
    """Return infos that `==` can compare."""
    plain: dict[str, Any] = {}
    for name, value in infos.items():
        if isinstance(value, dict):
            plain[name] = as_python(value)
        elif value.dtype == object:
            plain[name] = [v.tobytes() if isinstance(v, np.ndarray) else v for v in value]
        else:
            plain[name] = value.tolist()
    return plain


@pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])
def test_episodes_end_as_those_of_gymnasiums_own_vector_environment(
    world: World, mode: AutoresetMode
) -> None:
    """Frames may round otherwise; flags, rewards, infos and start frames may not."""
    theirs = SyncVectorEnv([lambda: gym.wrappers.TimeLimit(ARL2WorldEnv(world), 3)] * N, autoreset_mode=mode)
    ours = make(world, max_episode_steps=3, autoreset_mode=mode)
    first = [envs.reset(seed=9) for envs in (ours, theirs)]
    for number, action in enumerate(ACTIONS[:9]):
        results = [envs.step(action) for envs in (ours, theirs)]
        compare(*results)
        done = results[0][2] | results[0][3]
        if mode is DISABLED and done.any():
            # One half, then the other: each gets the same mask.
            masks = [np.arange(N) % 2 == half for half in (0, 1)]
            for mask in masks:
                resets = [envs.reset(options={"reset_mask": mask.copy()}) for envs in (ours, theirs)]
                compare(*resets)
        assert done.all() == (number % (4 if mode is NEXT_STEP else 3) == 2)
    assert np.array_equal(first[0][0], first[1][0])


def compare(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    assert np.abs(ours[0].astype(int) - theirs[0]).max() <= ROW_TOLERANCE
    for own, other in zip(ours[1:-1], theirs[1:-1], strict=True):
        assert own.dtype == other.dtype
        assert own.tolist() == other.tolist()
    own_infos, other_infos = dict(ours[-1]), dict(theirs[-1])
    own_final, other_final = (infos.pop("final_obs", np.array([])) for infos in (own_infos, other_infos))
    assert as_python(own_infos) == as_python(other_infos)
    for own, other in zip(own_final, other_final, strict=True):
        assert np.abs(own.astype(int) - other).max() <= ROW_TOLERANCE


def ending(world: World, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> ARL2WorldVectorEnv:
    """Return environments in which rows 0 and 2 end by themselves with their third frame."""
    monkeypatch.setattr("worldsim.simulator.Simulator", KnownOutcomes)
    monkeypatch.setattr(WorldConfig, "end_threshold", 0.5, raising=False)
    envs = make(world, **settings)
    seeds = iter([10, 11, 12, 13, 101, 103, 105, 107])
    monkeypatch.setattr(envs._env_world, "draw", lambda rng, start: (0, next(seeds)))
    envs.reset()
    return envs


def test_rewards_and_ends_come_from_the_simulator(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    envs = ending(world, monkeypatch, autoreset_mode="SameStep")
    shown = [envs.step(action) for action in ACTIONS[:4]]
    assert [step[1].tolist() for step in shown] == [[1.0] * N, [2.0] * N, [3.0] * N, [1.0, 4.0, 1.0, 4.0]]
    assert [step[2].any() for step in shown] == [False, False, True, False]
    assert shown[2][2].tolist() == [True, False, True, False]
    assert not any(step[3].any() for step in shown)
    observations, *_, infos = shown[2]
    assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == [True, False, True, False]
    assert infos["final_info"]["frame_index"].tolist() == [3, 0, 3, 0]
    assert infos["frame_index"].tolist() == [0, 3, 0, 3]
    assert np.array_equal(observations[0], world.starts[0].frames[-1].numpy())
    assert not np.array_equal(infos["final_obs"][0], observations[0])
    assert infos["final_obs"][1] is None
    assert shown[1][-1]["end_probability"] == pytest.approx(np.full(N, 0.1))
    assert infos["_end_probability"].tolist() == [False, True, False, True], "nothing was dreamt there yet"
    assert infos["final_info"]["end_probability"] == pytest.approx(np.array([0.9, 0.0, 0.9, 0.0]))


def test_next_step_begins_anew_without_the_action_or_a_reward(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    envs = ending(world, monkeypatch)
    *_, (last, _, terminated, _, infos) = [envs.step(action) for action in ACTIONS[:3]]
    assert terminated.tolist() == [True, False, True, False]
    assert "final_obs" not in infos
    observations, rewards, terminated, _, infos = envs.step(ACTIONS[3])
    assert rewards.tolist() == [0.0, 4.0, 0.0, 4.0]
    assert not terminated.any()
    assert infos["frame_index"].tolist() == [0, 4, 0, 4]
    assert infos["_end_probability"].tolist() == [False, True, False, True]
    assert np.array_equal(observations[0], world.starts[0].frames[-1].numpy())
    assert not np.array_equal(last[0], observations[0])


def test_finished_environment_is_not_stepped_with_autoreset_disabled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    envs = ending(world, monkeypatch, autoreset_mode="Disabled")
    for action in ACTIONS[:3]:
        envs.step(action)
    state = envs.get_state()
    with pytest.raises(ResetNeeded, match="environments 0, 2 have ended"):
        envs.step(ACTIONS[3])
    envs.set_state(state)
    with pytest.raises(ResetNeeded, match="environments 0, 2 have ended"):
        envs.step(ACTIONS[3])
    envs.reset(options={"reset_mask": np.array([True, False, True, False])})
    _, rewards, *_ = envs.step(ACTIONS[3])
    assert rewards.tolist() == [1.0, 4.0, 1.0, 4.0]


def test_an_end_at_the_last_step_is_both_terminated_and_truncated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    envs = ending(world, monkeypatch, max_episode_steps=3)
    *_, (_, _, terminated, truncated, _) = [envs.step(action) for action in ACTIONS[:3]]
    assert terminated.tolist() == [True, False, True, False]
    assert truncated.tolist() == [True] * N
