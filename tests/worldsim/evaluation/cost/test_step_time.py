from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, tiny_world, write_tiny_dataset
from worldsim.evaluation.cost import step_time
from worldsim.evaluation.cost.step_time import startup_seconds, state_growth, step_cost, summarize_steps
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.simulator import Simulator


def test_late_steps_are_compared_with_early_ones() -> None:
    predict = np.full(2000, 20.0)
    predict[1900:] = 26.0
    report = summarize_steps(predict, np.full(2000, 4.0))
    assert report["step_ms"]["p50"] == 24
    assert report["commit_ms"]["p99"] == 4
    assert report["late_over_early"] == pytest.approx(30 / 24)
    assert report["p99_over_p50"] == pytest.approx(30 / 24)


def test_a_slow_first_step_is_no_percentile() -> None:
    predict = np.full(100, 20.0)
    predict[0] = 5000.0
    report = summarize_steps(predict, np.zeros(100))
    assert report["step_ms"]["p99"] == 20
    assert "late_over_early" not in report


def test_steps_of_a_small_world(tmp_path: Path) -> None:
    recordings = Recordings(write_tiny_dataset(tmp_path), TINY_ACTIONS, (HEIGHT, WIDTH))
    start = next(recordings.batches(recordings.choose(4, 2, 0), 4, 2))
    report = step_cost(Simulator(tiny_world()), start, context_frames=4, num_frames=110, seed=0)
    assert report["batch_size"] == 2
    assert 0 < report["predict_ms"]["p50"] <= report["step_ms"]["p99"]
    assert list(report["memory_at_frame"]) == ["100"]
    assert report["memory_at_frame"]["100"]["state_bytes"] > 0
    assert state_growth(report) is None


def test_a_teachers_growing_state_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_time, "EARLY", (10, 20))
    monkeypatch.setattr(step_time, "LATE", (40, 50))
    recordings = Recordings(write_tiny_dataset(tmp_path), TINY_ACTIONS, (HEIGHT, WIDTH))
    start = next(recordings.batches(recordings.choose(4, 1, 0), 4, 1))
    simulator = Simulator(tiny_world(is_teacher=True, num_steps=1))
    growth = state_growth(step_cost(simulator, start, context_frames=4, num_frames=50, seed=0))
    one_frame = 2 * 3 * 6 * 32 * 4  # keys and values, layers, tokens, width, bytes
    assert growth == 40 * one_frame


def test_growth_of_the_state_is_its_difference() -> None:
    marks = {"100": {"state_bytes": 10}, "2000": {"state_bytes": 13}}
    assert state_growth({"memory_at_frame": marks}) == 3


def test_start_up_is_read_from_what_the_player_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('start-up           2.5 s to the first frame')"]
    report = startup_seconds(command, tmp_path, num_runs=2)
    assert report["seconds"] == [2.5, 2.5]
    assert report["median"] == 2.5


def test_a_player_that_fails_is_reported_with_its_reason(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('error: there is no world')"]
    assert startup_seconds(command, tmp_path)["error"] == "error: there is no world"
