"""Libraries that agents are trained with: Gymnasium's wrappers and Stable-Baselines3."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FrameStackObservation, GrayscaleObservation, RecordVideo, TimeLimit
from gymnasium.wrappers import vector as vector_wrappers

from tests.fakes import HEIGHT, WIDTH, tiny_world
from worldsim.data.video import describe_video
from worldsim.envs.single import ARL2WorldEnv
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.errors import WorldError
from worldsim.outcome import Outcome
from worldsim.simulator import Simulator
from worldsim.state import WorldState
from worldsim.world import World, WorldConfig

N = 3
WALK = np.array([1, 0, 0])
WALKS = np.tile(WALK, (N, 1))


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world()


class OneReward(Simulator):
    """Every frame is worth 1, none is the last."""

    def outcome(self, state: WorldState) -> Outcome:
        return Outcome(torch.ones(len(state.seed)), torch.zeros(len(state.seed)))


@pytest.fixture(autouse=True)
def rewards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("worldsim.simulator.Simulator", OneReward)
    monkeypatch.setattr(WorldConfig, "end_threshold", 0.5, raising=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="moviepy|imageio|pkg_resources")
        yield


def make(world: World, mode: str = "SameStep", **settings: Any) -> ARL2WorldVectorEnv:
    return ARL2WorldVectorEnv(N, world, autoreset_mode=mode, max_episode_steps=4, **settings)


def test_time_limit_truncates(world: World) -> None:
    env = TimeLimit(ARL2WorldEnv(world), 2)
    env.reset(seed=0)
    assert [env.step(WALK)[3] for _ in range(2)] == [False, True]


def test_frames_are_stacked_gray_and_resized(world: World) -> None:
    pytest.importorskip("cv2", reason='resizing frames needs OpenCV: pip install -e ".[rl]"')
    env: gym.Env = gym.wrappers.ResizeObservation(ARL2WorldEnv(world), (16, 24))
    env = FrameStackObservation(GrayscaleObservation(env), 3)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (3, 16, 24)
    assert observation in env.observation_space
    after, *_ = env.step(WALK)
    assert np.array_equal(after[:2], observation[1:])
    assert not np.array_equal(after[2], after[1])


def test_videos_are_recorded(world: World, tmp_path: Path) -> None:
    pytest.importorskip("moviepy", reason='recording videos needs MoviePy: pip install -e ".[rl]"')
    env: gym.Env = TimeLimit(ARL2WorldEnv(world, render_mode="rgb_array"), 3)
    env = RecordVideo(env, str(tmp_path / "single"), disable_logger=True)
    env.reset(seed=0)
    while not env.step(WALK)[3]:
        pass
    env.close()
    envs = vector_wrappers.RecordVideo(
        make(world, "NextStep", render_mode="rgb_array"),
        str(tmp_path / "vector"),
        episode_trigger=lambda episode: episode == 0,
        disable_logger=True,
    )
    envs.reset(seed=0)
    for _ in range(6):
        envs.step(WALKS)
    envs.close()
    for kind, num_frames in (("single", 4), ("vector", 5)):
        (file,) = (tmp_path / kind).glob("*.mp4")
        assert abs(describe_video(file).num_frames - num_frames) <= 1, (
            f"{kind}: the start and every step are a frame each"
        )


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_returns_and_lengths_of_episodes_are_recorded(world: World, mode: str) -> None:
    envs = vector_wrappers.RecordEpisodeStatistics(make(world, mode))
    envs.reset(seed=0)
    for _ in range(9):
        *_, infos = envs.step(WALKS)
        if "episode" in infos:
            assert infos["episode"]["r"].tolist() == infos["episode"]["l"].tolist() == [4.0] * N
    assert envs.episode_count == 2 * N


def test_statistics_begin_anew_with_a_partial_reset(world: World) -> None:
    envs = vector_wrappers.RecordEpisodeStatistics(make(world, "Disabled"))
    envs.reset(seed=0)
    envs.step(WALKS)
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    assert envs.episode_lengths.tolist() == [0, 1, 1]


def test_sb3_has_nothing_to_say_about_the_environment(world: World) -> None:
    checker = pytest.importorskip(
        "stable_baselines3.common.env_checker", reason='needs SB3: pip install -e ".[rl]"'
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Frames of 32 x 48 are too small for the convolutions of SB3: it says so about any environment.
        warnings.filterwarnings("ignore", message=".*minimal resolution for an image is 36x36")
        checker.check_env(ARL2WorldEnv(world, render_mode="rgb_array"))


def test_sb3_adapter_follows_the_vector_environment(world: World) -> None:
    sb3 = sb3_module()
    envs, other = make(world, render_mode="rgb_array"), make(world)
    venv = sb3.SB3VecEnv(envs)
    venv.seed(4)
    assert np.array_equal(venv.reset(), other.reset(seed=4)[0])
    assert [info["frame_index"] for info in venv.reset_infos] == [0] * N
    for _ in range(4):
        observations, rewards, dones, infos = venv.step(WALKS)
        expected, _, _, truncated, expected_infos = other.step(WALKS)
        assert np.array_equal(observations, expected)
        assert (rewards.dtype, rewards.tolist()) == (np.float32, [1.0] * N)
        assert dones.tolist() == truncated.tolist()
    for row, info in enumerate(infos):
        assert info["TimeLimit.truncated"] is True
        assert info["frame_index"] == 4
        assert np.array_equal(info["terminal_observation"], expected_infos["final_obs"][row])
    assert [info["frame_index"] for info in venv.reset_infos] == [0] * N
    assert np.array_equal(np.stack(venv.get_images()), observations)
    assert venv.get_attr("max_episode_steps", [0, 2]) == [4, 4]
    assert venv.env_is_wrapped(TimeLimit) == [False] * N
    venv.set_options({"start": 1})
    venv.reset()
    assert [info["start"] for info in venv.reset_infos] == ["start-01"] * N
    venv.close()
    assert envs.closed


def test_sb3_adapter_passes_statistics_on(world: World) -> None:
    venv = sb3_module().SB3VecEnv(vector_wrappers.RecordEpisodeStatistics(make(world)))
    venv.reset()
    *_, infos = [venv.step(WALKS) for _ in range(4)][-1]
    assert [info["episode"]["r"] for info in infos] == [4.0] * N


@pytest.mark.parametrize(
    ("mode", "settings", "message"),
    [
        ("NextStep", {}, "'SameStep' or 'Disabled'.*'NextStep'"),
        ("SameStep", {"output": "torch"}, "output='numpy'"),
    ],
)
def test_sb3_adapter_names_what_it_cannot_use(
    world: World, mode: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(WorldError, match=message):
        sb3_module().SB3VecEnv(make(world, mode, **settings))


def test_sb3_adapter_begins_rows_anew_where_autoreset_is_disabled(world: World) -> None:
    """So Gymnasium's wrappers of observations, which take no other mode that fits, give what SB3 wants."""

    def halved(mode: str) -> Any:
        envs: Any = make(world, mode)
        return vector_wrappers.TransformObservation(envs, lambda frames: frames // 2)

    with pytest.raises(ValueError, match="NEXT_STEP or DISABLED"):
        halved("SameStep")
    venv, other = sb3_module().SB3VecEnv(halved("Disabled")), sb3_module().SB3VecEnv(make(world))
    for one in (venv, other):
        one.seed(4)
    assert np.array_equal(venv.reset(), other.reset() // 2)
    for _ in range(9):
        observations, rewards, dones, infos = venv.step(WALKS)
        expected, expected_rewards, expected_dones, expected_infos = other.step(WALKS)
        assert np.array_equal(observations, expected // 2)
        assert rewards.tolist() == expected_rewards.tolist()
        assert dones.tolist() == expected_dones.tolist()
        for info, told in zip(infos, expected_infos, strict=True):
            last, expected_last = (one.pop("terminal_observation", None) for one in (info, told))
            assert info == told
            assert (last is None) == (expected_last is None)
            assert last is None or np.array_equal(last, expected_last // 2)
        assert venv.reset_infos == other.reset_infos


def test_sb3_adapter_tells_the_frame_rate(world: World, tmp_path: Path) -> None:
    pytest.importorskip("moviepy", reason='recording videos needs MoviePy: pip install -e ".[rl]"')
    sb3 = sb3_module()
    from stable_baselines3.common.vec_env import VecMonitor, VecVideoRecorder

    venv = VecMonitor(sb3.SB3VecEnv(make(world, render_mode="rgb_array")))
    recorder = VecVideoRecorder(venv, str(tmp_path), lambda step: step == 0, video_length=3)
    recorder.reset()
    for _ in range(4):
        recorder.step(WALKS)
    recorder.close()
    with av.open(str(next(tmp_path.glob("*.mp4")))) as video:
        assert video.streams.video[0].average_rate == world.config.frame_rate


def test_dqn_learns_from_actions_as_numbers(world: World) -> None:
    sb3_module()
    from stable_baselines3 import DQN

    env = TimeLimit(ARL2WorldEnv(world, discrete_actions=True), 4)
    agent = DQN("MlpPolicy", env, buffer_size=16, learning_starts=4, batch_size=4, seed=0, device="cpu")
    agent.learn(8)
    assert agent.num_timesteps == 8


def test_ppo_learns_from_the_vector_environment(world: World) -> None:
    sb3 = sb3_module()
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecMonitor

    venv = VecMonitor(sb3.SB3VecEnv(make(world)))
    assert venv.observation_space.shape == (HEIGHT, WIDTH, 3)
    agent = PPO("MlpPolicy", venv, n_steps=8, batch_size=12, n_epochs=1, seed=0, device="cpu")
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(192)
    assert agent.num_timesteps == 192
    assert len(agent.ep_info_buffer) == 192 // 4
    assert all(episode["r"] == 4.0 for episode in agent.ep_info_buffer)
    assert any(not torch.equal(old, new) for old, new in zip(before, agent.policy.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in agent.policy.parameters())


def sb3_module() -> Any:
    pytest.importorskip("stable_baselines3", reason='needs Stable-Baselines3: pip install -e ".[rl]"')
    from worldsim import sb3

    return sb3
