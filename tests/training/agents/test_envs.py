"""Training environments of agents: the same view as players have, also at ends, and the rollout buffer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policies.sight import Sight
from tests.fakes import tiny_world
from tests.vector_envs import ACTIONS, N
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.outcome import OutcomeConfig

pytest.importorskip("stable_baselines3", reason='needs Stable-Baselines3: pip install -e ".[rl]"')

from stable_baselines3.common.buffers import DictRolloutBuffer

from training.agents.envs import SEEN, make_dreams
from training.agents.rollout_buffer import DeviceRolloutBuffer

pytestmark = pytest.mark.usefixtures("one_thread")

SIGHT, CPU = Sight(height=36, width=48, num_frames=2), torch.device("cpu")
REWARDS = OutcomeConfig(reward_mean=2.0, reward_scale=0.5, end_threshold=1.0)


def dreams(**settings: Any) -> ARL2WorldVectorEnv:
    world = tiny_world(outcome=REWARDS)
    return ARL2WorldVectorEnv(
        N, world, autoreset_mode="SameStep", max_episode_steps=3, output="torch", **settings
    )


def test_dreams_are_seen_as_a_player_sees_them() -> None:
    venv, plain = make_dreams(dreams(), SIGHT, CPU, reward_scale=0.1), dreams()
    venv.seed(5)
    frames, _ = plain.reset(seed=5)
    expected = SIGHT.begin(frames)
    assert torch.equal(venv.reset()[SEEN], expected)
    returns = np.zeros(N)
    for step, actions in enumerate(ACTIONS[:7], start=1):
        seen, rewards, dones, infos = venv.step(actions)
        frames, expected_rewards, _, truncated, plain_infos = plain.step(actions)
        returns += expected_rewards.numpy()
        assert rewards == pytest.approx(0.1 * expected_rewards.numpy()) and rewards.min() > 0
        assert dones.tolist() == truncated.tolist() == [step % 3 == 0] * N
        if step % 3 == 0:
            finals = SIGHT.follow(expected, torch.stack(list(plain_infos["final_obs"])))
            for row, info in enumerate(infos):
                assert info["TimeLimit.truncated"]
                assert np.array_equal(info["terminal_observation"][SEEN], finals[row])
                assert info["episode"]["r"] == pytest.approx(returns[row], rel=1e-5), "the game's own rewards"
                assert info["episode"]["l"] == 3
            returns[:] = 0
            expected = SIGHT.begin(frames)
        else:
            expected = SIGHT.follow(expected, frames)
        assert torch.equal(seen[SEEN], expected)
    venv.close()


def test_a_held_action_adds_up_its_frames_and_ends_with_the_episode() -> None:
    """Episodes of three frames, actions held for two: of three decisions one is cut short."""
    venv, plain = make_dreams(dreams(), SIGHT, CPU, action_repeat=2, reward_scale=0.1), dreams()
    venv.seed(5)
    seen = venv.reset()[SEEN]
    plain.reset(seed=5)
    for decision, actions in enumerate(ACTIONS[:4], start=1):
        expected, over = np.zeros(N), False
        for _ in range(2):
            frames, rewards, _, truncated, infos = plain.step(actions)
            expected += 0.0 if over else 0.1 * rewards.numpy()
            if truncated.all() and not over:
                last, over = torch.stack(list(infos["final_obs"])), True
        before = seen
        observations, rewards, dones, infos = venv.step(actions)
        seen = observations[SEEN]
        assert rewards == pytest.approx(expected)
        assert dones.tolist() == [over] * N
        assert over == (decision % 3 != 1), "frames 3, 6 of eight; a decision is of two"
        if over:
            assert torch.equal(seen, SIGHT.begin(frames))
            finals = SIGHT.follow(before, last)
            for row, info in enumerate(infos):
                assert info["TimeLimit.truncated"] and info["episode"]["l"] == 3
                assert np.array_equal(info["terminal_observation"][SEEN], finals[row])
        else:
            assert torch.equal(seen, SIGHT.follow(before, frames))
    venv.close()
    with pytest.raises(ValueError, match="held for at least 1 frame, got 0"):
        make_dreams(dreams(), SIGHT, CPU, action_repeat=0, reward_scale=1.0)


def test_rows_that_go_on_see_their_own_past() -> None:
    """One row ends, the others do not."""
    envs = dreams()
    envs.max_episode_steps = None
    venv = make_dreams(envs, SIGHT, CPU, reward_scale=1.0)
    before = venv.reset()[SEEN]
    ended = np.array([False, True, False, False])
    real_predict = envs._env_world.predict_outcome
    envs._env_world.predict_outcome = lambda state: (real_predict(state)[0], ended, None)  # type: ignore[method-assign]
    after, _, dones, infos = venv.step(ACTIONS[0])
    assert dones.tolist() == ended.tolist()
    assert not infos[1]["TimeLimit.truncated"]
    for row in (0, 2, 3):
        assert torch.equal(after[SEEN][row, :3], before[row, 3:])
        assert "terminal_observation" not in infos[row]
    assert torch.equal(after[SEEN][1, :3], after[SEEN][1, 3:]), "a new episode stands still at first"
    assert np.array_equal(infos[1]["terminal_observation"][SEEN][:3], before[1, 3:])


def make_buffer(kind: type[Any]) -> Any:
    space = gym.spaces.Dict({SEEN: gym.spaces.Box(0, 255, (2, 4, 5), np.uint8)})
    buffer = kind(6, space, gym.spaces.MultiDiscrete([3, 2]), CPU, gae_lambda=0.9, gamma=0.8, n_envs=3)
    rng = np.random.default_rng(0)
    for step in range(6):
        seen = rng.integers(0, 256, (3, 2, 4, 5), dtype=np.uint8)
        seen[:, 0, 0, 0] = step * 3 + np.arange(3)  # a mark to find it by
        observations = {SEEN: torch.from_numpy(seen) if kind is DeviceRolloutBuffer else seen}
        values, log_probs = torch.from_numpy(rng.standard_normal((2, 3, 1)).astype(np.float32))
        actions, rewards = rng.integers(0, 2, (3, 2)), rng.standard_normal(3).astype(np.float32)
        buffer.add(observations, actions, rewards, rng.random(3) < 0.3, values, log_probs[:, 0])
    buffer.compute_returns_and_advantage(torch.tensor([0.1, 0.2, 0.3]), np.array([False, True, False]))
    return buffer


def by_mark(samples: Any) -> dict[int, SimpleNamespace]:
    rows = {}
    for sample in samples:
        for row, mark in enumerate(sample.observations[SEEN][:, 0, 0, 0].int().tolist()):
            rows[mark] = SimpleNamespace(
                seen=sample.observations[SEEN][row],
                numbers=[tensor[row] for tensor in (sample.actions, *sample[2:])],
            )
    return rows


def test_buffer_gives_what_sb3s_own_gives() -> None:
    ours, theirs = make_buffer(DeviceRolloutBuffer), make_buffer(DictRolloutBuffer)
    samples = list(ours.get(8))
    assert [len(sample.actions) for sample in samples] == [8, 8, 2]
    found, expected = by_mark(samples), by_mark(theirs.get(8))
    assert found.keys() == expected.keys() == set(range(18))
    for mark, row in found.items():
        assert row.seen.dtype is torch.uint8 and torch.equal(row.seen, expected[mark].seen)
        for ours_, theirs_ in zip(row.numbers, expected[mark].numbers, strict=True):
            assert ours_.dtype is torch.float32 and torch.equal(ours_, theirs_)


def test_buffer_shuffles_and_can_be_filled_again() -> None:
    buffer = make_buffer(DeviceRolloutBuffer)
    orders = [torch.cat([s.observations[SEEN][:, 0, 0, 0] for s in buffer.get(6)]).tolist() for _ in range(2)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    kept = buffer._seen.data_ptr()
    buffer.reset()
    assert not buffer.full and buffer._seen.data_ptr() == kept
    with pytest.raises(AssertionError, match="not full"):
        next(iter(buffer.get(6)))
