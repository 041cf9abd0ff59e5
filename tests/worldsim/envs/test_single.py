"""The Gymnasium contract: spaces, seeds, states, and what happens when it is used wrongly."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import worldsim
from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, save_tiny_world, tiny_world
from worldsim import simulator as simulator_module
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.runtime.config import RuntimeConfig
from worldsim.simulator import open_world
from worldsim.state import WorldState
from worldsim.world import World

ROOT = Path(__file__).resolve().parents[3]
FORWARD, LEFT = np.array([1, 0, 0]), np.array([0, 0, 1])


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world()


@pytest.fixture
def env(world: World) -> ARL2WorldEnv:
    return ARL2WorldEnv(world, render_mode="rgb_array")


both_kinds = pytest.mark.parametrize("is_teacher", [False, True], ids=["hybrid", "teacher"])


def play(env: ARL2WorldEnv, actions: list[np.ndarray]) -> np.ndarray:
    return np.stack([env.step(action)[0] for action in actions])


@pytest.mark.parametrize("env_id", ["ARL2World-v0", "worldsim:ARL2World-v0"])
def test_check_env_has_nothing_to_say(env_id: str, tmp_path: Path) -> None:
    folder = save_tiny_world(tmp_path / "world")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id, world=folder, render_mode="rgb_array", device="cpu", dtype="float32")
        check_env(env.unwrapped)
        env.close()


def test_spaces_come_from_the_world(env: ARL2WorldEnv) -> None:
    assert env.observation_space == gym.spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    assert env.action_space == gym.spaces.MultiDiscrete([3, 3, 3])
    assert env.metadata["render_fps"] == 10.0
    assert ARL2WorldEnv.metadata["render_fps"] == 17.5, "one world's rate went to all of them"


def test_step_returns_plain_python_values(env: ARL2WorldEnv) -> None:
    observation, info = env.reset(seed=1, options={"start": 2})
    assert observation.shape == (HEIGHT, WIDTH, 3)
    assert info == {"frame_index": 0, "start": "start-02"}
    observation, reward, terminated, truncated, info = env.step(FORWARD)
    assert observation.dtype == np.uint8
    assert type(reward) is float
    assert reward == 0.0
    assert terminated is False
    assert truncated is False
    assert info == {"frame_index": 1, "start": "start-02"}


def test_reset_shows_the_start(env: ARL2WorldEnv) -> None:
    observation, _ = env.reset(seed=0, options={"start": "start-01"})
    assert np.array_equal(observation, env.world.starts[1].frames[-1].numpy())


def test_seed_decides_everything(world: World) -> None:
    def episode(seed: int) -> tuple[list[Any], np.ndarray]:
        env = ARL2WorldEnv(world)
        _, info = env.reset(seed=seed)
        frames = play(env, [FORWARD, LEFT])
        _, later = env.reset()
        return [info, later], np.concatenate([frames, play(env, [FORWARD])])

    first, again = episode(3), episode(3)
    assert first[0] == again[0]
    assert np.array_equal(first[1], again[1])
    starts = {episode(seed)[0][0]["start"] for seed in range(8)}
    assert len(starts) > 1, "the start moment is not drawn"


def test_noise_differs_between_seeds_and_between_episodes(env: ARL2WorldEnv) -> None:
    frames = []
    for seed in (1, 2, None):
        env.reset(seed=seed, options={"start": 0})
        frames.append(play(env, [FORWARD]))
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])


def test_choosing_a_start_leaves_the_stream_as_it_is(env: ARL2WorldEnv) -> None:
    seeds = []
    for options in ({"start": 0}, {"start": 1}, None):
        env.reset(seed=5, options=options)
        seeds.append(int(env.get_state().seed[0]))
    assert seeds[0] == seeds[1] == seeds[2]


@pytest.mark.parametrize("start", [3, -1, "nowhere", True, 1.5, "7"])
def test_unknown_start_is_named(env: ARL2WorldEnv, start: Any) -> None:
    with pytest.raises(WorldError, match=r"there is no start .* 0 to 2 or one of start-00"):
        env.reset(options={"start": start})


def test_unknown_option_is_named(env: ARL2WorldEnv) -> None:
    with pytest.raises(WorldError, match="'level'"):
        env.reset(options={"level": 1})


@pytest.mark.parametrize("call", ["step", "begin_step", "get_state", "render"])
def test_nothing_works_before_reset(env: ARL2WorldEnv, call: str) -> None:
    with pytest.raises(ResetNeeded):
        getattr(env, call)(*([FORWARD] if "step" in call else []))


def test_action_outside_the_space_is_named_and_changes_nothing(env: ARL2WorldEnv) -> None:
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(WorldError, match="'turn' takes 0 to 2, got 3"):
        env.step(np.array([0, 0, 3]))
    with pytest.raises(WorldError, match="3 whole numbers"):
        env.step(np.array([0, 1]))
    assert env.get_state() is before


def test_begin_and_finish_are_step(world: World) -> None:
    whole, split = ARL2WorldEnv(world), ARL2WorldEnv(world)
    for env in (whole, split):
        env.reset(seed=4)
    for action in (FORWARD, LEFT, FORWARD):
        frame = split.begin_step(action)
        result = split.finish_step()
        assert np.array_equal(frame, result[0])
        expected = whole.step(action)
        assert np.array_equal(result[0], expected[0])
        assert result[1:] == expected[1:]


def test_begin_step_remembers_nothing(env: ARL2WorldEnv) -> None:
    """So the last one begun counts."""
    env.reset(seed=4)
    state = env.get_state()
    left = env.begin_step(LEFT)
    forward = env.begin_step(FORWARD)
    assert not np.array_equal(left, forward)
    observation, *_ = env.finish_step()
    assert np.array_equal(observation, forward)
    env.set_state(state)
    assert np.array_equal(env.step(FORWARD)[0], forward)


def test_state_of_a_step_under_way_is_refused(env: ARL2WorldEnv) -> None:
    env.reset(seed=4)
    env.begin_step(LEFT)
    with pytest.raises(WorldError, match="finish_step first"):
        env.get_state()
    env.finish_step()
    assert int(env.get_state().frame_index[0]) == 1


@pytest.mark.parametrize("interruption", ["reset", "set_state"])
def test_step_under_way_is_dropped_by(env: ARL2WorldEnv, interruption: str) -> None:
    env.reset(seed=4, options={"start": 0})
    state, shown = env.get_state(), env.render()
    env.begin_step(LEFT)
    if interruption == "reset":
        env.reset(seed=4, options={"start": 0})
    else:
        env.set_state(state)
    assert np.array_equal(env.render(), shown)
    with pytest.raises(WorldError, match="begin_step"):
        env.finish_step()


@both_kinds
def test_saved_state_continues_bit_for_bit_in_another_environment(is_teacher: bool, tmp_path: Path) -> None:
    world = tiny_world(is_teacher=is_teacher)
    actions = [FORWARD, LEFT, LEFT, FORWARD]
    whole = ARL2WorldEnv(world)
    whole.reset(seed=7)
    expected = play(whole, actions)

    first = ARL2WorldEnv(world)
    first.reset(seed=7)
    play(first, actions[:2])
    first.get_state().save(tmp_path / "slot", world=world.identity)
    second = ARL2WorldEnv(world)
    second.set_state(WorldState.load(tmp_path / "slot", world=world.identity))
    assert np.array_equal(play(second, actions[2:]), expected[2:])


@both_kinds
def test_a_state_can_be_returned_to_many_times(is_teacher: bool) -> None:
    env = ARL2WorldEnv(tiny_world(is_teacher=is_teacher))
    env.reset(seed=7)
    play(env, [FORWARD])
    state = env.get_state()
    futures = []
    for _ in range(2):
        env.set_state(state)
        futures.append(play(env, [LEFT, LEFT]))
    assert np.array_equal(futures[0], futures[1])


def test_state_of_a_batch_is_refused(env: ARL2WorldEnv) -> None:
    batch = env.simulator.start(env.world.starts[:2], [1, 2])
    with pytest.raises(WorldError, match=r"single game of this world: .*seed is \[2\], expected \[1\]"):
        env.set_state(batch)


def test_state_of_another_kind_of_world_is_refused(env: ARL2WorldEnv) -> None:
    teacher = ARL2WorldEnv(tiny_world(is_teacher=True))
    for one, other in ((env, teacher), (teacher, env)):
        one.reset(seed=7)
        with pytest.raises(WorldError, match=r"single game of this world: .*past_keys is .*, expected"):
            other.set_state(one.get_state())


def test_changing_an_observation_changes_nothing_else(env: ARL2WorldEnv) -> None:
    env.reset(seed=1)
    observation, *_ = env.step(FORWARD)
    expected = observation.copy()
    observation[:] = 0
    assert np.array_equal(env.render(), expected)
    assert np.array_equal(env.get_state().frames[0].numpy(), expected)


def test_memory_never_grows(env: ARL2WorldEnv) -> None:
    env.reset(seed=1)
    held = env.memory_bytes
    play(env, [FORWARD] * 20)
    assert env.memory_bytes == held > 0


def test_denoising_steps_replace_the_worlds_own(world: World) -> None:
    assert ARL2WorldEnv(world).simulator.sampler.num_steps == world.config.sampler.num_steps == 2
    assert ARL2WorldEnv(world, denoising_steps=3).simulator.sampler.num_steps == 3
    assert world.config.sampler.num_steps == 2
    with pytest.raises(WorldError, match="denoising steps"):
        ARL2WorldEnv(world, denoising_steps=0)


@pytest.mark.parametrize("seed", [1.0, True, "1", [1]])
def test_a_seed_of_another_type_is_named(env: ARL2WorldEnv, seed: Any) -> None:
    with pytest.raises(WorldError, match="a seed must be a whole number of at least 0"):
        env.reset(seed=seed)


def test_no_name_and_an_empty_one_are_the_first_world_that_ships(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldsim.world.world.SHIPPED", tmp_path)
    world.save_pretrained(tmp_path / "alone")
    for name in (None, ""):
        assert open_world(name, RuntimeConfig(device="cpu"))[0].folder == tmp_path / "alone"


def test_wrong_settings_are_named(world: World) -> None:
    for wrong in (3, 0, False, [], {}, b""):
        told = f"world must be a name, a folder or a loaded world, got {type(wrong).__name__}"
        with pytest.raises(WorldError, match=told):
            ARL2WorldEnv(wrong)  # type: ignore[arg-type] - the point
    with pytest.raises(WorldError, match="render_mode"):
        ARL2WorldEnv(world, render_mode="ansi")
    with pytest.raises(WorldError, match="a loaded world stays where it is"):
        ARL2WorldEnv(world, device="cpu")
    with pytest.raises(WorldError, match="no world 'nowhere'"):
        ARL2WorldEnv("nowhere")
    with pytest.raises(WorldError, match="no start moments"):
        ARL2WorldEnv(tiny_world(num_starts=0))


def test_without_a_shipped_world_one_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator_module, "shipped_worlds", list)
    with pytest.raises(WorldError, match="no world ships with this copy"):
        ARL2WorldEnv()


def test_human_mode_shows_each_frame_and_closes_twice(world: World) -> None:
    env = ARL2WorldEnv(world, render_mode="human")
    env.reset(seed=0)
    frame, *_ = env.step(FORWARD)
    assert env.render() is None
    window = env._window
    assert window is not None
    scale = window.scale
    assert np.array_equal(window.screenshot()[::scale, ::scale], frame)
    env.close()
    env.close()


def test_vector_of_environments_steps(tmp_path: Path) -> None:
    folder = save_tiny_world(tmp_path / "world")
    envs = gym.make_vec("ARL2World-v0", num_envs=2, vectorization_mode="sync", world=folder, device="cpu")
    observations, _ = envs.reset(seed=0)
    assert observations.shape == (2, HEIGHT, WIDTH, 3)
    observations, rewards, *_ = envs.step(np.zeros((2, len(TINY_ACTIONS.axes)), dtype=np.int64))
    assert rewards.tolist() == [0.0, 0.0]
    envs.close()


def test_import_loads_neither_torch_nor_pygame() -> None:
    code = (
        "import sys, worldsim; assert 'torch' not in sys.modules;"
        "import worldsim.envs.single; assert 'pygame' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_version_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert worldsim.__version__ == project["version"]


@both_kinds
def test_state_of_another_dtype_is_taken_over(is_teacher: bool) -> None:
    """A save slot from a machine that computes in bf16 opens on one that does not."""
    env = ARL2WorldEnv(tiny_world(is_teacher=is_teacher))
    env.reset(seed=0)
    other = ARL2WorldEnv(tiny_world(is_teacher=is_teacher).to("cpu", torch.bfloat16))
    other.set_state(env.get_state())
    frame, *_ = other.step(FORWARD)
    assert np.abs(frame.astype(int) - env.step(FORWARD)[0]).mean() < 20
