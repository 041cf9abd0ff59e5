"""A student takes over its teacher's weights, and says what it says but for what its layers no longer see."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.fakes import make_denoiser, tiny_denoiser_config, tiny_world
from worldsim.errors import WorldError
from worldsim.model.attention.base import Rotary
from worldsim.model.block import LayerStateIn, Residual
from worldsim.model.config import MemoryKeys, MemoryPhase
from worldsim.model.conversion import (
    HybridConfig,
    Rest,
    check_layers,
    check_softmax,
    convert,
    new_parameters,
    spread_layers,
    student_config,
    take_layer,
)
from worldsim.model.denoiser import Denoiser
from worldsim.model.inspection import half_lives
from worldsim.outcome import OutcomeConfig

FRAMES = 4


def tiny_teacher(outcome: OutcomeConfig | None = None) -> Denoiser:
    return tiny_world(is_teacher=True, phase=MemoryPhase.NONE, outcome=outcome).denoiser.double()


def student_of(
    teacher: Denoiser, layers: list[int], rest: Rest = Rest.WINDOW, *, window: int = 2, scale: float = 0.1
) -> Denoiser:
    shape = student_config(teacher.config, layers, HybridConfig(memory_scale=scale), rest, window)
    return convert(teacher, shape, scale).double()


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noisy = torch.randn(2, 2, FRAMES, 4, 4, 6, generator=generator, dtype=torch.float64)
    levels = torch.rand(2, FRAMES, 2, generator=generator, dtype=torch.float64)
    return clean, noisy, levels, torch.randint(3, (2, FRAMES, 3), generator=generator)


@pytest.mark.parametrize("outcome", [None, OutcomeConfig()], ids=["plain", "outcome_heads"])
def test_a_student_takes_over_every_weight_that_its_teacher_has(outcome: OutcomeConfig | None) -> None:
    teacher = tiny_teacher(outcome)
    student = student_of(teacher, [0, 2])
    new = new_parameters(student)
    assert (student.config.window_layers, student.config.full_layers) == ([1], [])
    assert {name.rsplit("self_attn.")[-1] for name in new if "blocks.2" in name} == {
        *(f"{phi}.weight" for phi in ("phi_q", "phi_k", "phi_v", "a_proj", "b_proj", "gate_proj")),
        *("A_log", "dt_bias", "b_proj.bias"),
    }
    assert any(name.startswith("motion.") for name in new)
    known = teacher.state_dict()
    for name, tensor in student.state_dict().items():
        assert (name in new) != (name in known), name
        if name in known:
            assert torch.equal(tensor, known[name]), name


@pytest.mark.parametrize(("keys", "is_kept"), [(None, True), ("plane", True), ("axes", False)])
def test_a_student_goes_on_with_the_path_that_its_teacher_follows(keys: str | None, is_kept: bool) -> None:
    teacher = make_denoiser(MemoryPhase.PATH, [], [0, 1, 2], memory_keys=MemoryKeys.PLANE, full_path=True)
    hybrid = HybridConfig(memory_keys=keys, write_biases=[-1.0, -3.0])
    shape = student_config(teacher.config, [0, 2], hybrid, Rest.FULL, 2)
    assert shape.full_path and shape.write_biases == [-1.0, -3.0]
    assert not student_config(teacher.config, [0, 2], hybrid, Rest.WINDOW, 2).full_path
    student = convert(teacher, shape, 0.1).double()
    known = teacher.motion.state_dict()
    for name, weight in student.motion.state_dict().items():
        if name != "table":
            assert torch.equal(weight.float(), known[name].float()) == is_kept, name


def test_a_student_of_other_keys_or_phase_drops_what_belongs_to_its_teachers() -> None:
    layers = {"window_layers": [], "full_layers": [0, 1, 2], "memory_keys": "plane"}
    shape = replace(make_denoiser(MemoryPhase.PATH).config, **layers, finest_key=1.0, path_odometry=True)
    alike = student_config(shape, [0, 2], HybridConfig(), Rest.WINDOW, 2)
    assert (alike.finest_key, alike.path_odometry) == (1.0, True)
    other = student_config(
        shape, [0, 2], HybridConfig(memory_phase="time", memory_keys="axes"), Rest.WINDOW, 2
    )
    assert (other.finest_key, other.path_odometry) == (math.pi, False)


def test_the_new_layers_memory_has_the_half_lives_asked_for() -> None:
    teacher = tiny_teacher()
    shape = student_config(
        teacher.config, [0, 1, 2], HybridConfig(half_lives=[2.0, 50.0]), Rest.WINDOW, teacher.config.window
    )
    found = half_lives(convert(teacher, shape, 0.1))
    expected = torch.tensor([[2.0, 50.0]] * 3, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("rest", "window"), [(Rest.FULL, 2), (Rest.WINDOW, FRAMES)])
def test_without_memory_a_student_is_its_teacher_whose_layers_see_their_own_frame_only(
    rest: Rest, window: int
) -> None:
    teacher, layers = tiny_teacher(), [0, 2]

    def run_block(
        index: int, residual: Residual, conditioning: Tensor, initial_state: LayerStateIn, rotary: Rotary
    ) -> Residual:
        block = teacher.layers()[index]
        if index not in layers:
            return block(residual, conditioning, initial_state, rotary)[0]
        assert rotary.time is not None
        alone = Rotary(rotary.place, rotary.memory, rotary.time[:1])  # each frame a sequence of its own
        x, conditioning = (tensor.flatten(0, 1).unsqueeze(1) for tensor in (residual.total(), conditioning))
        x = block(Residual(x), conditioning, initial_state, alone)[0].total()
        return Residual(x.unflatten(0, (2, FRAMES)).squeeze(2))

    expected = teacher(*batch(), run_block)
    student = student_of(teacher, layers, rest, window=window, scale=0.0)
    torch.testing.assert_close(student(*batch()), expected, rtol=1e-5, atol=1e-6)
    assert (teacher(*batch()) - expected)[:, 1:].abs().max() > 1e-3


def test_a_memory_of_some_size_changes_what_a_student_says() -> None:
    teacher = tiny_teacher()
    silent, speaking = (student_of(teacher, [1], scale=scale) for scale in (0.0, 0.5))
    changed = (silent(*batch()) - speaking(*batch())).abs().amax(dim=(0, 2, 3, 4))
    assert changed[0] < 1e-12  # before the first frame there is nothing to remember
    assert (changed[1:] > 1e-4).all()


def test_one_layer_and_the_path_can_be_taken_from_another_student() -> None:
    teacher = tiny_teacher()
    trained, student = student_of(teacher, [0, 1, 2], Rest.FULL), student_of(teacher, [1], Rest.FULL)
    with torch.no_grad():
        for parameter in new_parameters(trained).values():
            parameter += torch.randn_like(parameter)
    take_layer(student, 1, trained)
    for name, parameter in new_parameters(student).items():
        assert torch.equal(parameter, new_parameters(trained)[name]), name


@pytest.mark.parametrize(
    ("num_layers", "num_hybrid", "kept"),
    [(30, 22, [1, 5, 9, 13, 16, 20, 24, 28]), (10, 7, [1, 5, 8]), (6, 4, [1, 4]), (6, 6, []), (4, 2, [1, 3])],
)
def test_layers_that_nobody_measured_are_spread_evenly(
    num_layers: int, num_hybrid: int, kept: list[int]
) -> None:
    assert [i for i in range(num_layers) if i not in spread_layers(num_layers, num_hybrid)] == kept


def test_a_recycled_model_is_no_teacher() -> None:
    full = tiny_teacher().config
    config = replace(full, full_layers=[], window_layers=full.full_layers, previous_frame=True)
    check_softmax(config, "fine")
    with pytest.raises(WorldError, match="mine is recycled: a teacher shows its layers clean frames"):
        check_softmax(replace(config, recycled=True), "mine")


def test_a_hybrid_model_is_no_teacher() -> None:
    with pytest.raises(WorldError, match=r"my-world is hybrid already \(layers 0, 2\)"):
        check_softmax(tiny_denoiser_config(), "my-world")


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([0, 3, 7], r"layers 3, 7; the teacher has layers 0 to 2"),
        ([-1], "names layers -1"),
        ([1, 1], "twice"),
    ],
)
def test_layers_that_the_teacher_does_not_have_are_named(layers: list[int], reason: str) -> None:
    with pytest.raises(WorldError, match=reason):
        check_layers(layers, 3, "layers")


def test_a_window_other_than_the_teachers_own_is_refused() -> None:
    teacher = tiny_teacher().config
    teacher.full_layers, teacher.window_layers = [0, 1], [2]
    with pytest.raises(WorldError, match="window layers of 2 frames; a model has one window, got 5"):
        student_config(teacher, [0], HybridConfig(), Rest.WINDOW, 5)


def test_a_teacher_whose_weights_have_another_shape_is_refused() -> None:
    teacher = tiny_teacher()
    shape = student_config(teacher.config, [0], HybridConfig(), Rest.WINDOW, 2)
    shape.ffn_dim = 64
    with pytest.raises(WorldError, match="the teacher's weights do not fit: .*ffn"):
        convert(teacher, shape, 0.1)
    shape.ffn_dim, shape.num_layers = 48, 4
    with pytest.raises(WorldError, match=r"the teacher has no weight blocks\.3"):
        convert(teacher, shape, 0.1)
