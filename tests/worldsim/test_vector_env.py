"""A batch of dreams keeps Gymnasium's vector contract, and each row is the dream it would be alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.fakes import HEIGHT, WIDTH, save_tiny_world, tiny_world
from worldsim.env import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.outcome import Outcome
from worldsim.session import steady_memory
from worldsim.simulator import Simulator
from worldsim.state import WorldState
from worldsim.timing import process_memory_bytes
from worldsim.vector_env import ARL2WorldVectorEnv
from worldsim.world import World, WorldConfig

N = 4
MODES = tuple(AutoresetMode)
NEXT_STEP, SAME_STEP, DISABLED = MODES
ACTIONS = np.random.default_rng(3).integers(0, 3, (12, N, 3))
# What products of more rows change in 12 frames of the tiny world, in steps of 1/255. Measured: 1 and 3.
ROW_TOLERANCE = {torch.float32: 2, torch.bfloat16: 6}


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world()


@pytest.fixture(autouse=True)
def without_the_warning() -> Iterator[None]:
    """Most tests need no rewards."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no outcome heads")
        yield


def make(world: World, num_envs: int = N, **settings: Any) -> ARL2WorldVectorEnv:
    return ARL2WorldVectorEnv(num_envs, world, **settings)


def play(envs: Any, actions: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(envs.step(action)[0]) for action in actions])


class KnownOutcomes(Simulator):
    """Every frame brings its number, frame 3 of an even seed ends the episode."""

    def outcome(self, state: WorldState) -> Outcome:
        is_end = (state.frame_index == 3) & (state.seed % 2 == 0)
        return Outcome(state.frame_index.float(), torch.where(is_end, 0.9, 0.1))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_row_is_the_single_environment_with_its_seed(dtype: torch.dtype) -> None:
    world = tiny_world().to("cpu", dtype)
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


def test_partial_reset_touches_only_its_rows(world: World) -> None:
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
    monkeypatch.setattr("worldsim.env_world.MAX_WATCHED_BYTES", 2 * envs.memory_bytes // N)
    first, _ = envs.reset(seed=0, options={"start": [0, 1, 2, 1]})
    assert len(envs._env_world._watched) == 2
    assert np.array_equal(first[2], world.starts[2].frames[-1].numpy())


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
def test_episodes_end_as_those_of_gymnasiums_own_vector_environment(world: World, mode: AutoresetMode) -> None:
    """Frames may round otherwise; flags, rewards, infos and start frames may not."""
    theirs = SyncVectorEnv(
        [lambda: gym.wrappers.TimeLimit(ARL2WorldEnv(world), 3)] * N, autoreset_mode=mode
    )
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
    assert np.abs(ours[0].astype(int) - theirs[0]).max() <= ROW_TOLERANCE[torch.float32]
    for own, other in zip(ours[1:-1], theirs[1:-1], strict=True):
        assert own.dtype == other.dtype
        assert own.tolist() == other.tolist()
    own_infos, other_infos = dict(ours[-1]), dict(theirs[-1])
    own_final, other_final = (infos.pop("final_obs", np.array([])) for infos in (own_infos, other_infos))
    assert as_python(own_infos) == as_python(other_infos)
    for own, other in zip(own_final, other_final, strict=True):
        assert np.abs(own.astype(int) - other).max() <= ROW_TOLERANCE[torch.float32]


def ending(world: World, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> ARL2WorldVectorEnv:
    """Return environments in which rows 0 and 2 end by themselves with their third frame."""
    monkeypatch.setattr("worldsim.env_world.Simulator", KnownOutcomes)
    monkeypatch.setattr(WorldConfig, "end_threshold", 0.5)
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
    assert np.array_equal(observations[0], world.starts[0].frames[-1].numpy())
    assert not np.array_equal(last[0], observations[0])


def test_finished_environment_is_not_stepped_with_autoreset_disabled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    envs = ending(world, monkeypatch, autoreset_mode="Disabled")
    play(envs, ACTIONS[:3])
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
        ({"options": {"start": [0, 1]}}, WorldError, "one for each of 4 environments, got 2"),
        ({"options": {"level": 1}}, WorldError, "'reset_mask' and 'start', not 'level'"),
        ({"seed": [1, 2]}, ValueError, "one for each of 4 environments, got 2"),
        ({"seed": -1}, gym.error.Error, "Seed must be greater or equal to zero"),
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
