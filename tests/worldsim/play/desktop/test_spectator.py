"""Watching a player: what is shown, recorded and counted, and what keys do."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pygame
import pytest
from gymnasium.wrappers import TimeLimit

from policies import RandomPolicy
from tests.fakes import TINY_ACTIONS, WIDTH, tiny_world
from worldsim.data.episodes import read_episode
from worldsim.envs.single import ARL2WorldEnv
from worldsim.outcome import OutcomeConfig
from worldsim.play.desktop.spectator import Spectator, Watched
from worldsim.play.recording import Recording
from worldsim.runtime.interrupt import Stopped
from worldsim.ui.window import Window

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT = 3


@pytest.fixture
def env() -> TimeLimit:
    outcome = OutcomeConfig(reward_mean=2.0, reward_scale=1e-6, end_threshold=1.0)
    return TimeLimit(ARL2WorldEnv(tiny_world(num_steps=1, outcome=outcome)), LIMIT)


@pytest.fixture
def window() -> Iterator[Window]:
    window = Window(WIDTH, 32, title="test", scale=4, has_strip=True)
    window.events()  # of what opened it
    yield window
    window.close()


def spectator(env: TimeLimit, **settings: object) -> Spectator:
    player = RandomPolicy(TINY_ACTIONS.num_values, (1, 1))
    return Spectator(env, player, TINY_ACTIONS, name="random", **settings)  # type: ignore[arg-type]


def press(name: str) -> None:
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.key.key_code(name), mod=0))


def test_episodes_follow_each_other_until_the_frames_are_over(env: TimeLimit) -> None:
    watched = list(spectator(env).watch(0, num_frames=7))
    assert [(w.num_frames, w.truncated, w.has_ended) for w in watched] == [
        (3, True, True),
        (3, True, True),
        (1, False, False),
    ]
    assert [w.total_reward for w in watched] == pytest.approx([6, 6, 2], rel=1e-3)


def test_what_is_watched_is_recorded_with_its_rewards(env: TimeLimit, tmp_path: Path) -> None:
    world = env.unwrapped.world.config  # type: ignore[attr-defined]
    with Recording(tmp_path / "seen.mp4", world) as recording:
        for _ in spectator(env, recording=recording).watch(0, num_frames=5):
            pass
    lengths = []
    for path in recording.paths:
        episode = read_episode(tmp_path, path.stem)
        assert episode.rewards is not None and episode.terminated is not None
        assert episode.rewards.tolist() == pytest.approx([0, *[2] * (len(episode) - 1)], rel=1e-3)
        assert not episode.terminated.any()
        lengths.append(len(episode))
    assert lengths == [4, 3]


def test_the_window_shows_frames_and_closes_at_a_key(env: TimeLimit, window: Window) -> None:
    watching = spectator(env, window=window)
    episodes = watching.watch(0)
    assert next(episodes) == Watched(3, pytest.approx(6, rel=1e-3), False, True)
    shown = window.screenshot()[: 32 * 4 : 4, ::4]
    assert np.array_equal(shown, env.unwrapped._observation())  # type: ignore[attr-defined]
    press("escape")
    assert [episode.num_frames for episode in episodes] == [0]
    assert watching.is_closed


def test_a_request_to_stop_ends_a_pause(
    env: TimeLimit, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = spectator(env, window=window)
    waited: list[int] = []

    def wait(milliseconds: int) -> None:
        waited.append(milliseconds)
        assert len(waited) < 3, "the pause goes on"
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(window, "wait_for_event", wait)
    press("space")
    with pytest.raises(Stopped):
        list(watching.watch(0))
    assert len(waited) == 1


def test_a_pause_waits_for_a_key(env: TimeLimit, window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = spectator(env, window=window)
    waited: list[bool] = []

    def wait(milliseconds: int) -> None:
        waited.append(watching.is_paused)
        if len(waited) == 3:
            press("space")

    monkeypatch.setattr(window, "wait_for_event", wait)
    press("space")
    assert [episode.num_frames for episode in watching.watch(0, num_frames=2)] == [2]
    assert waited == [True] * 3
