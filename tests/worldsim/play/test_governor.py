"""Fewer denoising steps where the frame rate is not held, more where there is room again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from worldsim.play.governor import FRAMES_BETWEEN_TRIALS, NUM_FRAMES, Governor, ThreadGovernor

RATE = 10.0


def run(governor: Governor, per_step: float, rest: float, frames: int, *, may_rise: bool = True) -> list[int]:
    """Return the steps of each frame on a machine that needs so many seconds a step, and for the rest."""
    used = []
    for _ in range(frames):
        predict = per_step * governor.steps
        governor.note(predict + rest, predict, may_rise=may_rise)
        used.append(governor.steps)
    return used


def test_as_many_steps_as_fit_are_chosen_at_once() -> None:
    governor = Governor(RATE, 8)
    used = run(governor, 0.02, 0.03, NUM_FRAMES)
    assert used == [8] * (NUM_FRAMES - 1) + [3]
    assert set(run(governor, 0.02, 0.03, 500)) == {3}


def test_one_step_remains_however_slow_it_is() -> None:
    governor = Governor(RATE, 4)
    assert run(governor, 1.0, 1.0, 100)[-1] == 1


def test_steps_come_back_one_by_one_where_there_is_room() -> None:
    governor = Governor(RATE, 4)
    run(governor, 0.05, 0.03, 100)
    assert governor.steps == 1
    assert run(governor, 0.01, 0.01, 500)[-1] == 4
    assert governor.wanted == 4


def test_steps_do_not_go_up_and_down() -> None:
    governor = Governor(RATE, 2)
    changes, before = 0, governor.steps
    for _ in range(2000):  # one step looks as if there were room for a second, which there is not
        predict = 0.03 if governor.steps == 1 else 0.09
        governor.note(predict + 0.02, predict)
        changes += governor.steps != before
        before = governor.steps
    assert changes <= 20


def test_while_recording_steps_only_fall() -> None:
    governor = Governor(RATE, 2)
    run(governor, 0.05, 0.03, 50)
    assert set(run(governor, 0.01, 0.01, 500, may_rise=False)) == {1}


def test_without_a_rate_nothing_changes() -> None:
    governor = Governor(0.0, 4)
    assert set(run(governor, 1.0, 1.0, 100)) == {4}


def free(threads: int) -> float:
    return {1: 0.09, 2: 0.05, 4: 0.03}[threads]


def beside_a_busy_program(threads: int) -> float:
    return {1: 0.09, 2: 0.2, 4: 0.4}[threads]


def play(
    governor: ThreadGovernor, seconds: Callable[[int], float], frames: int, *, is_recording: bool = False
) -> list[int]:
    """Return the threads of each frame on a machine that needs so many seconds with so many."""
    used = []
    for _ in range(frames):
        governor.note(seconds(governor.threads), is_recording=is_recording)
        used.append(governor.threads)
    return used


def changes(used: list[int]) -> int:
    return sum(before != after for before, after in zip(used, used[1:], strict=False))


@pytest.mark.parametrize("rate", [0.0, RATE])
def test_beside_a_busy_program_one_thread_is_found_faster(rate: float) -> None:
    governor = ThreadGovernor(rate, 4)
    assert set(play(governor, beside_a_busy_program, 100)[-40:]) == {1}
    assert not governor.is_trying


def test_very_slow_threads_are_not_waited_for() -> None:
    assert play(ThreadGovernor(RATE, 2), lambda threads: 0.05 if threads == 1 else 2.0, 9)[-1] == 1


def test_threads_that_hold_the_rate_are_left_alone() -> None:
    assert set(play(ThreadGovernor(RATE, 2), free, 5000)) == {2}


def test_threads_that_are_fastest_come_back_after_a_short_trial() -> None:
    governor = ThreadGovernor(0.0, 2)
    used = play(governor, free, FRAMES_BETWEEN_TRIALS)
    assert used[-1] == 2
    assert 1 <= used.count(1) <= 4


def test_a_program_that_becomes_busy_is_noticed_and_its_end_too() -> None:
    governor = ThreadGovernor(RATE * 1.5, 2)
    assert set(play(governor, free, 200)) == {2}
    assert play(governor, beside_a_busy_program, 50)[-1] == 1
    assert play(governor, free, 3 * FRAMES_BETWEEN_TRIALS)[-1] == 2


def test_trials_that_fail_become_rare() -> None:
    used = play(ThreadGovernor(0.0, 2), beside_a_busy_program, 12_000)
    assert used[-1] == 1
    assert changes(used) <= 2 * 5 + 1


def test_a_recording_is_cut_only_where_frames_became_much_slower() -> None:
    governor = ThreadGovernor(0.0, 2)
    assert set(play(governor, free, 5000, is_recording=True)) == {2}
    used = play(governor, beside_a_busy_program, 5000, is_recording=True)
    assert changes(used) <= 1
    assert used[-1] == 1


def test_one_thread_has_no_others_to_try() -> None:
    assert set(play(ThreadGovernor(RATE, 1), beside_a_busy_program, 500)) == {1}
