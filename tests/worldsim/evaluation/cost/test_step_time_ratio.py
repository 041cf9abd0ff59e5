"""A dream made older without being drawn is one that has seen as many frames, and costs what that costs."""

from __future__ import annotations

import pytest
import torch

from tests.fakes import tiny_world
from worldsim.evaluation.cost.step_time_ratio import age, compare_ages
from worldsim.simulator import Simulator
from worldsim.starts import Start
from worldsim.state import WorldState


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
    told = compare_ages(simulator, state, 2, 30, num_steps=4)
    assert sorted(stepped) == [*range(2, 9), *range(30, 37)]
    assert told["state_bytes"]["late"] > told["state_bytes"]["early"]
    assert told["late_over_early"]["count"] == 4
    ratio = told["late_over_early"]
    assert ratio["low"] <= ratio["mean"] <= ratio["high"]
