"""Any environment as a game: what is seen and rewarded is the environment's, and each fault one sentence."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import policies
from tests.own_games import COLUMNS, ROWS, Dot
from training.data.recorders import EpisodeTask, record_episode
from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episodes import read_episode
from worldsim.errors import WorldError
from worldsim.games.env import RealGameEnv
from worldsim.games.gym.config import GymConfig
from worldsim.games.gym.game import GymEntry, describe_env, name_of
from worldsim.games.gym.pictures import Shrinker, choose_fitting

DOT = "tests.own_games:Dot-v0"


def described(env_id: str = DOT, **settings: Any) -> GymEntry:
    return describe_env(env_id, GymConfig(**settings))


def test_an_environment_is_recorded_as_it_is(tmp_path: Path) -> None:
    entry = described()
    assert pickle.loads(pickle.dumps(entry)).actions == entry.actions, "workers get it"
    assert (entry.name, entry.frame_rate, entry.episode_frames) == ("dot", 20, 26)
    assert entry.max_episode_steps == 25 and described(frame_skip=3).max_episode_steps == 9
    assert (entry.height, entry.width, entry.picture) == (ROWS, COLUMNS, "observation")
    info = entry.dataset_info("a test")
    info.save(tmp_path)
    assert DatasetInfo.load(tmp_path) == info and info.environment == {"id": DOT}
    env, frames, rewards = gym.make(DOT), [], []
    with entry.open() as game:
        player = policies.make("random", num_values=entry.actions.num_values)
        task = EpisodeTask(folder=tmp_path, name="one", seed=3)
        assert record_episode(game, player, task, episode_frames=100) == 26, "cut off after 25 steps"
    episode = read_episode(tmp_path, "one")
    observation, _ = env.reset(seed=3)
    for action in episode.actions:
        frames.append(observation)
        observation, reward, _, truncated, _ = env.step(entry.action_map.decode(action))
        rewards.append(reward)
        if truncated:
            break
    assert truncated and len(frames) == 25
    assert np.abs(episode.frames[:25].astype(int) - frames).mean() < 3, "but for the video's compression"
    assert episode.rewards is not None and episode.terminated is not None
    assert episode.rewards.tolist() == [0, *rewards] and not episode.terminated.any()


def test_ends_are_kept_and_skipped_frames_add_up_their_rewards() -> None:
    entry = described(frame_skip=3, kwargs={"lasts": 7})
    assert (entry.frame_rate, entry.tics_per_frame, entry.episode_frames) == (20 / 3, 3, 10)
    with entry.open() as game:
        seen = [game.reset(0), *(game.step(entry.actions.noop()) for _ in range(3))]
        assert [each.reward for each in seen] == [0, 3, 3, 1]
        assert [each.terminated for each in seen] == [False, False, False, True]
        with pytest.raises(WorldError, match="has ended: call reset"):
            game.step(entry.actions.noop())


@pytest.mark.parametrize("seen", ["rgb", "grey", "rgba", "chw", "vector", "both"])
def test_pictures_of_all_kinds_are_the_same_frame(seen: str) -> None:
    picture = {"both": "eye", "rgba": "observation"}.get(seen, "")
    entry = described(kwargs={"seen": seen}, picture=picture)
    assert entry.picture == {"vector": "render"}.get(seen, picture or "observation")
    with entry.open() as game:
        frame = game.reset(5).frame
    expected = Dot(seen="rgb")
    expected.reset(seed=5)
    shown = expected.render()
    assert np.array_equal(frame, shown if seen != "grey" else np.repeat(shown[..., :1], 3, axis=2))


def test_a_game_that_waits_stands_still() -> None:
    names = ["left", "right", "up", "down"]
    entry = described(kwargs={"action": "discrete"}, action_names=names)
    with entry.open() as game:
        first = game.reset(0).frame
        seen = game.step(np.array([0]))
        assert np.array_equal(seen.frame, first) and seen.reward == 0
        assert game.env.unwrapped.steps == 0  # type: ignore[attr-defined]
        assert game.step(np.array([1])).reward == 1


def test_large_pictures_become_means_of_squares() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (50, 102, 3), dtype=np.uint8)
    squares = picture[:48, :102].reshape(16, 3, 34, 3, 3).mean(axis=(1, 3))
    shrink = Shrinker().shrink  # whose memory is of another size each time
    assert np.array_equal(shrink(picture, 3), np.floor(squares + 0.5))
    for seen in (picture.swapaxes(0, 1), picture[::-1, ::-1], np.asfortranarray(picture)):
        assert np.array_equal(shrink(seen, 3), shrink(np.ascontiguousarray(seen), 3)), "however it lies"
    white = np.full((700, 700, 3), 255, dtype=np.uint8)
    assert (shrink(white, 20) == 255).all(), "sums do not overflow"
    fitting = choose_fitting(np.zeros((400, 600, 3), np.uint8), GymConfig())
    assert (fitting.factor, fitting.size.height, fitting.size.width) == (4, 100, 150)
    assert fitting.describe() == "pictures of 600 x 400 made 4 times smaller, to 150 x 100"
    wide = choose_fitting(np.zeros((40, 60, 3), np.uint8), GymConfig(height=32, width=32))
    assert wide.describe() == "pictures of 60 x 40 letterboxed to 32 x 32"


def test_wrappers_and_classes_go_by_their_import_path() -> None:
    wrapped = described("tests.own_games:Dot", wrappers=["tests.own_games:Blinking"])
    assert "in tests.own_games:Blinking" in wrapped.game and wrapped.episode_frames == 2001
    with wrapped.open() as game:
        game.reset(0)
        assert game.step(wrapped.actions.noop()).frame[0, 0].tolist() == [225] * 3


def test_all_that_knows_a_game_knows_an_environment() -> None:
    env = RealGameEnv(described(kwargs={"action": "multi"}), render_mode="rgb_array")
    assert env.action_space == gym.spaces.MultiDiscrete([3, 2])
    check_env(env, skip_close_check=True)
    env.close()


@pytest.mark.parametrize(
    ("env_id", "settings", "sentence"),
    [
        ("Nowhere-v7", {}, "env=Nowhere-v7 cannot be made: NameNotFound"),
        ("no_such_package:Dot-v0", {}, "cannot be made: ModuleNotFoundError"),
        ("builtins:dict", {}, "env=builtins:dict is no environment of Gymnasium, but a dict"),
        (DOT, {"kwargs": {"colour": "red"}}, "cannot be made: TypeError: .*colour"),
        (DOT, {"kwargs": {"fault": "blind", "seen": "vector"}}, "shows nothing to record: .* a NoneType"),
        (DOT, {"picture": "eye"}, "has no picture 'eye'; there are render, observation"),
        (DOT, {"kwargs": {"seen": "vector"}, "picture": "observation"}, "observation is no picture, but Box"),
        (DOT, {"wrappers": ["Blinking"]}, "a wrapper is named MODULE:NAME, got 'Blinking'"),
        (DOT, {"wrappers": ["tests.own_games:Rainbow"]}, "Rainbow, cannot be imported: AttributeError"),
        (DOT, {"wrappers": ["tests.own_games:ROWS"]}, "cannot be called: it is a int"),
        (DOT, {"kwargs": {"action": "dict"}}, "cannot be made buttons, a Dict space"),
        (DOT, {"kwargs": {"render_mode": "human"}}, "game.kwargs has no render_mode"),
        (DOT, {"bins": []}, "game.bins needs at least one number"),
    ],
)
def test_what_cannot_be_a_game_is_one_sentence(env_id: str, settings: Any, sentence: str) -> None:
    with pytest.raises(WorldError, match=sentence) as found:
        described(env_id, **settings)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("crash", "Dot-v0 fails in step: RuntimeError: the floor is lava"),
        ("grows", "shows pictures of 48 x 34 after those of 48 x 32: a recording has one size"),
        ("reward", "gives the reward nan: it must be a finite number"),
    ],
)
def test_faults_on_the_way_leave_no_half_episode(fault: str, sentence: str, tmp_path: Path) -> None:
    entry = described(kwargs={"fault": fault})
    entry.dataset_info("a test").save(tmp_path)
    player = policies.make("random", num_values=entry.actions.num_values)
    with entry.open() as game, pytest.raises(WorldError, match=sentence):
        record_episode(game, player, EpisodeTask(folder=tmp_path, name="one", seed=0), 100)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


def test_names_of_games() -> None:
    names = ["CarRacing-v3", "ALE/Pong-v5", "MiniGrid-Empty-5x5-v0", "my_games:SnakeWorld"]
    assert [name_of(each) for each in names] == ["car-racing", "pong", "minigrid-empty-5x5", "snake-world"]
