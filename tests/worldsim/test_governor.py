"""Fewer denoising steps where the frame rate is not held, more where there is room again."""

from __future__ import annotations

from worldsim.governor import NUM_FRAMES, Governor

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
