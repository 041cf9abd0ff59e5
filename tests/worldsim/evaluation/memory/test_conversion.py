"""The comparison is paired, zeroing takes the recurrent states alone, unequal worlds are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.fakes import tiny_world
from worldsim.actions import ActionLayout
from worldsim.errors import WorldError
from worldsim.evaluation.memory.conversion import (
    check_comparable,
    chosen_sampler,
    summarize_quality,
)
from worldsim.evaluation.memory.interventions import check_can_forget, zero, zeroed
from worldsim.evaluation.quality.rollouts import DREAM, FrameScores
from worldsim.evaluation.report.markdown import format_conversion
from worldsim.simulator import Simulator


def test_zeroing_takes_the_recurrent_states_and_nothing_else() -> None:
    world = tiny_world()
    usual, forgetful = Simulator(world), zeroed(Simulator(world))
    states = [s.start(world.starts[:2], [0, 1]) for s in (usual, forgetful)]
    action = torch.tensor([[1, 0, 2], [0, 1, 0]])
    for simulator in (usual, forgetful):
        index = int(simulator is forgetful)
        states[index] = simulator.step(states[index], action)[1]
    assert states[0].memory.matrices.abs().max() > 0
    assert torch.equal(states[1].memory.matrices, torch.zeros_like(states[0].memory.matrices))
    assert torch.equal(states[0].memory.num_committed, states[1].memory.num_committed)
    assert torch.equal(states[0].memory.window_keys[:, :, 0], states[1].memory.window_keys[:, :, 0])
    cleared = zero(states[0]).memory.tensors()
    for name, tensor in states[0].memory.tensors().items():
        expected = torch.zeros_like(tensor) if name == "matrices" else tensor
        assert torch.equal(cleared[name], expected), name


def test_the_dream_of_a_world_that_forgets_is_another() -> None:
    world = tiny_world()
    dreams = []
    for simulator in (Simulator(world), zeroed(Simulator(world))):
        state = simulator.start(world.starts[:1], [0])
        dreams.append(simulator.predict(state, torch.tensor([[1, 0, 2]])).latents)
    assert (dreams[0] - dreams[1]).abs().max() > 1e-3


def test_a_world_without_hybrid_layers_has_nothing_to_forget() -> None:
    check_can_forget("hybrid", tiny_world())
    with pytest.raises(WorldError, match="softmax has no hybrid layers"):
        check_can_forget("softmax", tiny_world(is_teacher=True))


def test_worlds_with_another_codec_or_other_buttons_are_not_compared() -> None:
    teacher, world = tiny_world(is_teacher=True), tiny_world()
    world.codec.load_state_dict(teacher.codec.state_dict())
    check_comparable(teacher, "hybrid", world)
    next(world.codec.parameters()).data += 1.0
    with pytest.raises(WorldError, match="hybrid has another codec than the teacher"):
        check_comparable(teacher, "hybrid", world)
    world.config.actions = ActionLayout(world.config.actions.axes[:2])
    with pytest.raises(WorldError, match="hybrid has the buttons move/forward.* the teacher has"):
        check_comparable(teacher, "hybrid", world)


def test_the_sampler_is_the_worlds_own_unless_it_is_chosen() -> None:
    world = tiny_world(num_steps=3)
    assert chosen_sampler(world, None, None) == world.config.sampler
    assert chosen_sampler(world, 1, 0.25) == replace(world.config.sampler, num_steps=1, commit_level=0.25)


def test_unequal_samplers_are_noticed() -> None:
    one = {"identity": "tiny@0", "layers": {}, "parameters": 1, "denoising_steps": 2, "commit_level": 0.0}
    for other, is_noticed in ((one, False), (one | {"commit_level": 0.2}, True)):
        text = format_conversion({"runs": {}, "worlds": {"a": one, "b": other}})
        assert ("The worlds are not drawn alike" in text) == is_noticed


def scores(psnr: np.ndarray) -> FrameScores:
    return FrameScores(["a", "a", "b", "c"], {DREAM: psnr}, {}, [])


def test_differences_are_taken_place_by_place() -> None:
    places = np.random.default_rng(0).normal(20, 5, size=(4, 40))  # places differ more than worlds do
    report = summarize_quality(scores(places - 1.0), scores(places), scores(places + 0.5))
    assert list(report.psnr_db) == [1, 8, 32]
    assert report.over_original_db is not None
    for found, expected in ((report.over_teacher_db, -1.0), (report.over_original_db, -1.5)):
        for value in found.values():
            assert [value.mean, value.low, value.high] == pytest.approx([expected] * 3)
    wide = report.psnr_db[8]
    assert wide.low is not None and wide.high is not None and wide.high - wide.low > 1.0
    assert report.psnr_db[32].mean == pytest.approx(places[:, 31].mean() - 1.0)
    assert summarize_quality(scores(places), scores(places), None).over_original_db is None
