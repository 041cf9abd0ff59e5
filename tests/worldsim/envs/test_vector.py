"""A batch of dreams keeps Gymnasium's vector contract, and each row is the dream it would be alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from tests.fakes import HEIGHT, WIDTH, save_tiny_world, tiny_world
from tests.vector_envs import ACTIONS, N, make
from worldsim.envs.single import ARL2WorldEnv
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.errors import WorldError
from worldsim.runtime.timing import process_memory_bytes, steady_memory
from worldsim.simulator import Simulator
from worldsim.state import WorldState
from worldsim.world import World

MODES = tuple(AutoresetMode)
NEXT_STEP, SAME_STEP, DISABLED = MODES
# What products of more rows change in 12 frames of the tiny world, in steps of 1/255. Measured: 1 and 3.
ROW_TOLERANCE = {torch.float32: 2, torch.bfloat16: 6}

all_kinds = pytest.mark.parametrize(
    "kind",
    [{}, {"recycled": True}, {"recycled": True, "has_odometry": True}],
    ids=["ordinary", "recycled", "poses"],
)

pytestmark = pytest.mark.filterwarnings("ignore:.*no outcome heads")  # most tests need no rewards


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world()


def play(envs: Any, actions: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(envs.step(action)[0]) for action in actions])


def test_make_vec_finds_the_batched_environment(tmp_path: Path) -> None:
    folder = save_tiny_world(tmp_path / "world")
    settings = {"world": folder, "device": "cpu", "dtype": "float32", "max_episode_steps": 5}
    for mode in ("vector_entry_point", None):
        envs = gym.make_vec("ARL2World-v0", num_envs=3, vectorization_mode=mode, **settings)
        assert isinstance(envs, ARL2WorldVectorEnv)
        assert (envs.num_envs, envs.max_episode_steps) == (3, 5)
        assert envs.metadata["autoreset_mode"] is NEXT_STEP
        observations, _ = envs.reset(seed=0)
        assert observations.shape == (3, HEIGHT, WIDTH, 3)
        envs.close()


def test_spaces_are_batches_of_the_single_ones(world: World) -> None:
    envs, single = make(world), ARL2WorldEnv(world)
    assert envs.single_observation_space == single.observation_space
    assert envs.single_action_space == single.action_space
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    observations, rewards, terminated, truncated, _ = envs.step(envs.action_space.sample())
    assert observations in envs.observation_space
    assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
    assert rewards.tolist() == [0.0] * N


@all_kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_row_is_the_single_environment_with_its_seed(dtype: torch.dtype, kind: dict[str, bool]) -> None:
    world = tiny_world(**kind).to("cpu", dtype)
    envs = make(world)
    first, infos = envs.reset(seed=5)
    frames = play(envs, ACTIONS)
    for row in range(N):
        single = ARL2WorldEnv(world)
        observation, info = single.reset(seed=5 + row)
        assert np.array_equal(first[row], observation)
        assert (infos["start"][row], infos["frame_index"][row]) == (info["start"], info["frame_index"])
        alone = np.stack([single.step(action)[0] for action in ACTIONS[:, row]])
        assert np.abs(alone.astype(int) - frames[:, row]).max() <= ROW_TOLERANCE[dtype]


def test_same_calls_give_the_same_bytes(world: World) -> None:
    def episode(envs: ARL2WorldVectorEnv) -> np.ndarray:
        envs.reset(seed=1)
        return play(envs, ACTIONS)

    used = make(world, max_episode_steps=4)
    used.reset(seed=77)
    play(used, ACTIONS)
    assert np.array_equal(episode(used), episode(make(world, max_episode_steps=4)))


def test_order_of_rows_only_rounds_otherwise(world: World) -> None:
    forwards, backwards = make(world), make(world)
    first, _ = forwards.reset(seed=[1, 2, 3, 4])
    other, _ = backwards.reset(seed=[4, 3, 2, 1])
    assert np.array_equal(first, other[::-1])
    frames, reversed_ = play(forwards, ACTIONS[:6]), play(backwards, ACTIONS[:6, ::-1])
    difference = np.abs(frames.astype(int) - reversed_[:, ::-1]).max()
    assert difference <= ROW_TOLERANCE[torch.float32]


def test_rows_have_noise_of_their_own(world: World) -> None:
    envs = make(world)
    envs.reset(seed=0, options={"start": 1})
    frames, *_ = envs.step(np.zeros((N, 3), dtype=np.int64))
    assert len({frame.tobytes() for frame in frames}) == N
    envs.reset(seed=[6] * N, options={"start": 1})
    frames, *_ = envs.step(np.zeros((N, 3), dtype=np.int64))
    assert len({frame.tobytes() for frame in frames}) == 1


def test_starts_are_chosen_for_all_or_for_each(world: World) -> None:
    envs = make(world)
    _, infos = envs.reset(seed=0, options={"start": "start-02"})
    assert infos["start"].tolist() == ["start-02"] * N
    observations, infos = envs.reset(seed=0, options={"start": [0, "start-01", "2", 1]})
    assert infos["start"].tolist() == ["start-00", "start-01", "start-02", "start-01"]
    assert np.array_equal(observations[2], world.starts[2].frames[-1].numpy())
    drawn = make(world).reset(seed=0)[1]["start"]
    _, infos = envs.reset(seed=0, options={"start": [None, 0, None, 0]})
    assert infos["start"][[0, 2]].tolist() == drawn[[0, 2]].tolist()


@all_kinds
def test_partial_reset_touches_only_its_rows(kind: dict[str, bool]) -> None:
    world = tiny_world(**kind)
    envs = make(world)
    envs.reset(seed=0)
    before = play(envs, ACTIONS[:3])[-1]
    kept = envs.get_state()
    copies = {name: tensor.clone() for name, tensor in kept.tensors().items()}
    mask = np.array([False, True, False, True])
    options = {"reset_mask": mask, "start": 2}
    observations, infos = envs.reset(seed=40, options=options)
    assert set(options) == {"reset_mask", "start"}, "a wrapper still has to read the mask"
    assert np.array_equal(observations[~mask], before[~mask])
    assert np.array_equal(observations[1], world.starts[2].frames[-1].numpy())
    assert infos["frame_index"].tolist() == [0, 0, 0, 0]
    assert infos["_frame_index"].tolist() == infos["_start"].tolist() == mask.tolist()
    assert infos["start"].tolist() == [None, "start-02", None, "start-02"]
    assert envs.get_state().frame_index.tolist() == [3, 0, 3, 0]
    for name, tensor in kept.tensors().items():
        assert torch.equal(tensor, copies[name]), f"{name} of the state before was written to"
    untouched = make(world)
    untouched.set_state(kept)
    frames, expected = play(envs, ACTIONS[3:6]), play(untouched, ACTIONS[3:6])
    assert np.array_equal(frames[:, ~mask], expected[:, ~mask])
    alone = make(world)
    alone.reset(seed=40, options={"start": 2})
    assert np.array_equal(frames[:, mask], play(alone, ACTIONS[3:6])[:, mask])


def test_second_reset_watches_nothing_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    envs = make(world)
    envs.reset(seed=0, options={"start": [0, 1, 2, 0]})
    monkeypatch.setattr(Simulator, "commit_frames", lambda *_: pytest.fail("frames were watched again"))
    envs.reset(seed=1)
    envs.reset(options={"reset_mask": np.array([True, False, False, False])})


def test_what_is_kept_of_starts_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    envs = make(world)
    envs.reset(seed=0, options={"start": [0, 1, 2, 0]})
    assert len(envs._env_world._watched) == 3
    monkeypatch.setattr("worldsim.envs.base.MAX_WATCHED_BYTES", 2 * envs.memory_bytes // N)
    first, _ = envs.reset(seed=0, options={"start": [0, 1, 2, 1]})
    assert len(envs._env_world._watched) == 2
    assert np.array_equal(first[2], world.starts[2].frames[-1].numpy())


def test_torch_output_is_the_same_in_tensors(world: World) -> None:
    arrays, tensors = (
        make(world, max_episode_steps=2, autoreset_mode="SameStep", output=o) for o in ("numpy", "torch")
    )
    first, expected = tensors.reset(seed=0)[0], arrays.reset(seed=0)[0]
    assert isinstance(first, torch.Tensor)
    assert (first.device, first.dtype) == (world.device, torch.uint8)
    assert np.array_equal(first.numpy(), expected)
    for action in ACTIONS[:2]:
        step, other = tensors.step(torch.from_numpy(action)), arrays.step(action)
        assert [value.dtype for value in step[:4]] == [torch.uint8, torch.float32, torch.bool, torch.bool]
        for value, array in zip(step[:4], other[:4], strict=True):
            assert value.tolist() == array.tolist()
    assert isinstance(step[4]["final_obs"][0], torch.Tensor)
    assert np.array_equal(step[4]["final_obs"][0].numpy(), other[4]["final_obs"][0])
    mask = torch.tensor([True, False, False, True])
    assert tensors.reset(options={"reset_mask": mask})[1]["_start"].tolist() == mask.tolist()


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_changing_an_observation_changes_nothing_else(world: World, output: str) -> None:
    envs = make(world, output=output)
    envs.reset(seed=1)
    observations, *_ = envs.step(ACTIONS[0])
    kept = envs.get_state().frames.clone()
    observations[:] = 0
    assert torch.equal(envs.get_state().frames, kept)


def test_saved_state_continues_bit_for_bit(world: World, tmp_path: Path) -> None:
    envs = make(world, max_episode_steps=8)
    envs.reset(seed=7)
    play(envs, ACTIONS[:3])
    envs.get_state().save(tmp_path / "slot", world=world.identity)
    expected = [envs.step(action) for action in ACTIONS[3:8]]
    other = make(world, max_episode_steps=8)
    other.set_state(WorldState.load(tmp_path / "slot", world=world.identity))
    for action, step in zip(ACTIONS[3:8], expected, strict=True):
        again = other.step(action)
        assert np.array_equal(again[0], step[0])
        assert again[3].tolist() == step[3].tolist()
    assert expected[-1][3].all(), "the episode's length is part of the state"


def test_one_moment_becomes_many_futures(world: World) -> None:
    single, envs = ARL2WorldEnv(world), make(world)
    single.reset(seed=3)
    single.step(ACTIONS[0, 0])
    envs.set_state(single.get_state().rows([0] * N))
    frames, *_ = envs.step(np.array([[0, 0, 1], [0, 0, 2], [0, 0, 1], [1, 0, 0]]))
    assert np.array_equal(frames[0], frames[2])
    assert not np.array_equal(frames[0], frames[1])
    single.set_state(envs.get_state().rows([1]))
    assert np.array_equal(single.get_state().frames[0].numpy(), frames[1])


def test_state_of_other_than_n_games_is_refused(world: World) -> None:
    envs = make(world)
    single = ARL2WorldEnv(world)
    single.reset(seed=0)
    with pytest.raises(WorldError, match=r"one of 4 games of this world: .*seed is \[1\], expected \[4\]"):
        envs.set_state(single.get_state())


def test_render_shows_each_row(world: World) -> None:
    envs = make(world, render_mode="rgb_array")
    with pytest.raises(ResetNeeded):
        envs.render()
    observations, _ = envs.reset(seed=0)
    shown = envs.render()
    assert shown is not None
    assert np.array_equal(np.stack(shown), observations)


def test_a_world_without_heads_warns_once(world: World) -> None:
    envs = make(world)
    with pytest.warns(UserWarning, match="'tiny' has no outcome heads: every reward is 0"):
        envs.reset(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs.reset(seed=0)
        envs.step(ACTIONS[0])


def test_noise_scale_changes_the_dream(world: World) -> None:
    frames = []
    for scale in (None, 1.0, 1.5):
        envs = make(world, noise_scale=scale)
        envs.reset(seed=0)
        frames.append(play(envs, ACTIONS[:1]))
    assert np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])
    with pytest.raises(WorldError, match="noise_scale"):
        make(world, noise_scale=-1.0)


@pytest.mark.slow
def test_a_thousand_steps_stay_finite_and_take_no_more_memory(world: World) -> None:
    """Issue: 100,000 steps; `python -m training.evaluate benchmark=env` with `env_steps=100000` runs them."""
    envs = make(world, num_envs=2, max_episode_steps=97, autoreset_mode="SameStep")
    envs.reset(seed=0)
    rng, held = np.random.default_rng(0), []
    with steady_memory():
        for step in range(1000):
            observations, *_, infos = envs.step(rng.integers(0, 3, (2, 3)))
            if step in (200, 999):
                held.append((envs.memory_bytes, process_memory_bytes() or 0))
    memory = envs.get_state().memory.tensors()
    assert all(tensor.isfinite().all() for tensor in memory.values())
    assert observations.std() > 0
    assert infos["frame_index"].tolist() == [1000 % 97] * 2
    (early, process_early), (late, process_late) = held
    assert late == early
    assert process_late - process_early < 8 * 2**20
