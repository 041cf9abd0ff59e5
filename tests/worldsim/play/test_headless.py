"""Playing without a display: whether there is one, what is measured, how Ctrl-C ends it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import tiny_world
from worldsim.data.episodes import read_episode, verify
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.play.recording import Recording
from worldsim.play.run import play_headless
from worldsim.play.session import PlaySession
from worldsim.runtime.interrupt import StopRequest
from worldsim.runtime.timing import (
    FrameClock,
    Percentiles,
    StepTimes,
    process_memory_bytes,
    seconds_since_start,
)
from worldsim.ui.display import choose_headless, has_display


class Walker:
    """Walks forward; calls `at_frame` when it is asked for the action of that number."""

    def __init__(self, at_frame: int = -1) -> None:
        self.frame, self.at_frame = 0, at_frame

    def reset(self, seed: int) -> None:
        self.frame = 0

    def act(self, observation: np.ndarray) -> np.ndarray:
        self.frame += 1
        if self.frame == self.at_frame:
            os.kill(os.getpid(), signal.SIGINT)
        return np.array([1, 0, 0])

    def watch(self, observation: np.ndarray) -> None:
        """Sees nothing."""


@pytest.fixture
def env() -> ARL2WorldEnv:
    return ARL2WorldEnv(tiny_world())


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, False),
        ("linux", {"DISPLAY": ""}, False),
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("linux", {"DISPLAY": ":0", "SDL_VIDEODRIVER": "dummy"}, False),
        ("darwin", {}, True),
        ("win32", {}, True),
        ("win32", {"SDL_VIDEODRIVER": "offscreen"}, False),
    ],
)
def test_display_is_found(platform: str, variables: dict[str, str], expected: bool) -> None:
    assert has_display(variables, platform) is expected


def test_window_without_a_display_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert choose_headless(None) is True
    assert choose_headless(True) is True
    with pytest.raises(WorldError, match="no display"):
        choose_headless(False)


def test_recording_holds_what_was_played(env: ARL2WorldEnv, tmp_path: Path) -> None:
    recording = Recording(tmp_path / "play.mp4", env.world.config)
    with recording, PlaySession(env, recording, seed=3) as session:
        session.reset()
        assert list(play_headless(session, Walker(), 5)) == [1, 2, 3, 4, 5]
    episode = read_episode(tmp_path, "play")
    assert len(episode) == 6
    assert episode.actions.tolist() == [[1, 0, 0]] * 5 + [[0, 0, 0]]
    # Video halves the resolution of colour; what remains of noise is its brightness.
    recorded, played = (
        (frame @ [0.299, 0.587, 0.114]).ravel() for frame in (episode.frames[-1], session.observation)
    )
    assert np.corrcoef(recorded, played)[0, 1] > 0.95


def test_same_seed_plays_the_same(env: ARL2WorldEnv) -> None:
    last = []
    for _ in range(2):
        session = PlaySession(env, seed=3)
        session.reset()
        for _ in play_headless(session, Walker(), 3):
            pass
        last.append(session.observation)
    assert np.array_equal(last[0], last[1])


def test_ctrl_c_ends_between_frames_and_keeps_the_recording(env: ARL2WorldEnv, tmp_path: Path) -> None:
    recording = Recording(tmp_path / "play.mp4", env.world.config)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), recording, PlaySession(env, recording) as session:
        session.reset()
        list(play_headless(session, Walker(at_frame=3), 100))
    assert session.num_frames == 3
    assert verify(tmp_path) == 4
    assert signal.getsignal(signal.SIGINT) is handler


def test_second_ctrl_c_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        pytest.fail("the second one was ignored")


def test_summary_says_what_was_measured(env: ARL2WorldEnv) -> None:
    session = PlaySession(env)
    session.reset()
    assert session.summary() == "no frame was played"
    for _ in play_headless(session, Walker(), 4):
        pass
    summary = session.summary()
    for part in ("4 frames in", "frames/s", "p50", "p90", "p99", "commit", "first frame", "MiB"):
        assert part in summary
    assert f"{env.memory_bytes:,} bytes" in summary


def test_what_a_person_took_to_choose_is_no_part_of_starting_up(
    env: ARL2WorldEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldsim.play.session.seconds_since_start", lambda: 65.0)
    session = PlaySession(env, waited_seconds=60.0)
    session.reset()
    list(play_headless(session, Walker(), 1))
    assert "start-up           5.0 s to the first frame" in session.summary()


def test_percentiles_and_medians() -> None:
    times = StepTimes()
    assert times.latest_p50_ms() == 0.0
    for number in range(1, 101):
        times.add(number / 1000, 0.001)
    assert Percentiles.of(times.predict_ms()).p50 == pytest.approx(50.5)
    assert Percentiles.of(times.commit_ms()).p99 == pytest.approx(1.0)
    assert times.latest_p50_ms(3) == pytest.approx(100.0)


def test_frame_clock_holds_the_rate_and_does_not_catch_up() -> None:
    clock = FrameClock(50)
    clock.wait()
    time.sleep(0.1)  # five frames late
    started = time.perf_counter()
    clock.wait()
    assert time.perf_counter() - started < 0.01, "a late frame was delayed further"
    for _ in range(5):
        clock.wait()
    assert time.perf_counter() - started >= 0.095, "lost time was made up for"


def test_process_is_measured() -> None:
    memory = process_memory_bytes()
    assert memory is not None
    assert memory > 10 * 2**20
    assert 0 < seconds_since_start() < 3600 * 24
