from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, tiny_world, write_tiny_dataset
from worldsim.evaluation.cost import step_time
from worldsim.evaluation.cost.step_time import (
    EarlyLate,
    StepTrace,
    age,
    compare_ages,
    measure_growth,
    step_cost,
    step_ms_around,
    summarize_steps,
    summarize_trace,
)
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.report import targets
from worldsim.evaluation.report.report import as_json
from worldsim.evaluation.report.targets import state_growth
from worldsim.simulator import Simulator
from worldsim.starts import Start
from worldsim.state import WorldState


def test_late_steps_are_compared_with_early_ones() -> None:
    step_ms = np.full(2000, 24.0)
    step_ms[1900:] = 30.0
    report = summarize_steps(trace(step_ms), 1)
    assert report.step_ms.p50 == 24
    assert (report.predict_ms.p99, report.commit_ms.p99) == (22.5, 7.5)
    assert report.late_over_early == pytest.approx(30 / 24)
    assert report.p99_over_p50 == pytest.approx(30 / 24)
    assert {frame: held.state_bytes for frame, held in report.memory_at_frame.items()} == {
        100: 1000,
        2000: 20_000,
    }


def test_a_slow_first_step_is_no_percentile() -> None:
    step_ms = np.full(100, 20.0)
    step_ms[0] = 5000.0
    report = summarize_steps(trace(step_ms), 1)
    assert report.step_ms.p99 == 20
    assert report.late_over_early is None


def test_steps_of_a_small_world(tmp_path: Path) -> None:
    recordings = Recordings(write_tiny_dataset(tmp_path), TINY_ACTIONS, (HEIGHT, WIDTH))
    start = next(recordings.batches(recordings.choose(4, 2, 0), 4, 2))
    report = step_cost(Simulator(tiny_world()), start, context_frames=4, num_frames=110, seed=0)
    assert report.batch_size == 2
    assert 0 < report.predict_ms.p50 <= report.step_ms.p99
    assert list(report.memory_at_frame) == [100]
    assert report.memory_at_frame[100].state_bytes > 0
    assert state_growth(as_json(report)) is None


def test_a_teachers_growing_state_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (step_time, targets):
        monkeypatch.setattr(module, "EARLY_STEPS", (10, 20))
        monkeypatch.setattr(module, "LATE_STEPS", (40, 50))
    recordings = Recordings(write_tiny_dataset(tmp_path), TINY_ACTIONS, (HEIGHT, WIDTH))
    start = next(recordings.batches(recordings.choose(4, 1, 0), 4, 1))
    simulator = Simulator(tiny_world(is_teacher=True, num_steps=1))
    cost = step_cost(simulator, start, context_frames=4, num_frames=50, seed=0)
    one_frame = 2 * 3 * 6 * 32 * 4  # keys and values, layers, tokens, width, bytes
    assert state_growth(as_json(cost)) == 40 * one_frame


def test_growth_of_the_state_is_its_difference() -> None:
    marks = {"100": {"state_bytes": 10}, "2000": {"state_bytes": 13}}
    assert state_growth({"memory_at_frame": marks}) == 3


def trace(step_ms: np.ndarray) -> StepTrace:
    frames = np.arange(1, len(step_ms) + 1)
    return StepTrace(
        predict_ms=0.75 * step_ms,
        commit_ms=0.25 * step_ms,
        state_bytes=10 * frames,
        process_bytes=np.where(frames == 5, 900, 100),
        device_bytes=None,
        device_peak_bytes=None,
    )


def test_cost_is_read_at_two_frames_and_summed_up_to_a_third() -> None:
    report = summarize_trace(trace(np.arange(1.0, 101.0)), early=30, late=90, total=4)
    assert (report.step_ms.early, report.step_ms.late) == pytest.approx((30.0, 90.0))
    assert report.late_over_early == pytest.approx(3.0)
    assert report.state_bytes == EarlyLate(300, 900)
    assert report.seconds == pytest.approx(0.010)
    assert report.peak_bytes == 100
    assert summarize_trace(trace(np.ones(100)), 30, 90, total=50).peak_bytes == 900


def test_one_slow_step_is_no_step_time() -> None:
    step_ms = np.full(60, 20.0)
    step_ms[29] = 500.0
    assert step_ms_around(step_ms, 30) == 20.0
    assert step_ms_around(np.array([1.0, 2.0, 9.0]), 1) == 2.0


def dream(is_teacher: bool) -> tuple[Simulator, WorldState]:
    world = tiny_world(is_teacher=is_teacher)
    simulator = Simulator(world, world.config.sampler)
    frames = torch.zeros(1, world.config.height, world.config.width, 3, dtype=torch.uint8)
    start = Start("grey", frames, torch.zeros(1, 3, dtype=torch.int64))
    return simulator, simulator.start([start], [0])


@pytest.mark.parametrize("is_teacher", [True, False])
def test_an_older_dream_has_as_many_frames_and_goes_on(is_teacher: bool) -> None:
    simulator, state = dream(is_teacher)
    older = age(simulator, state, 9, room=2)
    assert older.memory.num_committed.tolist() == [9]
    assert state.memory.num_committed.tolist() == [1]
    _, after = simulator.step(older, torch.zeros(1, 3, dtype=torch.int64))
    assert after.memory.num_committed.tolist() == [10]
    if is_teacher:
        assert older.memory.past is not None and older.memory.past.num_frames == 9
        assert torch.equal(older.memory.past.keys[:, :, :, 8], older.memory.past.keys[:, :, :, 0])
    else:
        assert older.nbytes == state.nbytes
        assert not torch.equal(older.memory.matrices, state.memory.matrices)


def test_both_ages_are_stepped_on_as_often() -> None:
    simulator, state = dream(True)
    stepped: list[int] = []
    step = simulator.step
    simulator.step = lambda state, action: (  # pyright: ignore[reportAttributeAccessIssue]
        stepped.append(int(state.memory.num_committed[0])) or step(state, action)
    )
    found = compare_ages(simulator, state, 2, 30, num_steps=4)
    assert sorted(stepped) == [*range(2, 9), *range(30, 37)]
    assert found.state_bytes.late > found.state_bytes.early
    ratio = found.late_over_early
    assert ratio.count == 4
    assert ratio.low <= ratio.mean <= ratio.high


def test_cost_is_measured_at_each_frame_and_what_grows_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worldsim.evaluation.cost.step_time.EARLY", 8)
    found = {}
    for name in ("hybrid", "full"):
        simulator, state = dream(name == "full")
        found[name] = measure_growth(simulator, state, marks=(4, 16), timed_steps=2, compared_steps=4, seed=0)
    assert list(found["hybrid"].frames) == [4, 8, 16]
    assert found["hybrid"].late_over_early_bytes == 1
    assert found["full"].late_over_early_bytes > 1.2
    assert found["full"].late_frame == 16
    ratio = found["hybrid"].late_over_early_ms
    assert 0 < ratio.low <= ratio.mean <= ratio.high


def test_a_memory_that_would_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldsim.evaluation.cost.step_time.MAX_STATE_BYTES", 200_000)
    monkeypatch.setattr("worldsim.evaluation.cost.step_time.EARLY", 8)
    simulator, state = dream(True)
    found = measure_growth(simulator, state, marks=(10, 5000), timed_steps=1, compared_steps=2)
    assert found.left_out == [5000]
    assert found.late_frame == 10
