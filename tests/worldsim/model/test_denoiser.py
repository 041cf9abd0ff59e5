"""Training's parallel form equals play's frame by frame; denoising changes nothing; time never runs out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.model.denoiser import Denoiser
from worldsim.model.denoiser_config import DenoiserConfig
from worldsim.model.memory import MemoryState
from worldsim.model.path import MemoryPhase

FRAMES = 9  # longer than the window of 3, so that the sink comes into play


def make_denoiser(
    phase: MemoryPhase, window_layers: list[int] | None = None, *, previous_frame: bool = True
) -> Denoiser:
    """Return a small fp64 denoiser all of whose weights matter."""
    torch.manual_seed(0)
    config = DenoiserConfig(
        latent_shape=[4, 8, 8],
        dim=32,
        ffn_dim=48,
        num_heads=2,
        num_layers=3,
        window=3,
        window_layers=[1] if window_layers is None else window_layers,
        memory_phase=phase,
        half_lives=[0.5, 20.0],
        previous_frame=previous_frame,
    )
    denoiser = Denoiser(config).double()
    for parameter in denoiser.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return denoiser.eval().requires_grad_(False)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def widened(memory: MemoryState) -> MemoryState:
    """Return the memory in fp64, so that the comparison is not about rounding."""
    return replace(memory, matrices=memory.matrices.double(), phase=memory.phase.double())


@pytest.mark.parametrize("phase", list(MemoryPhase))
@pytest.mark.parametrize("window_layers", [[1], []], ids=["with_window", "all_hybrid"])
@pytest.mark.parametrize("previous_frame", [True, False], ids=["sees_previous", "memory_alone"])
def test_parallel_form_equals_frame_by_frame(
    phase: MemoryPhase, window_layers: list[int], previous_frame: bool
) -> None:
    denoiser = make_denoiser(phase, window_layers, previous_frame=previous_frame)
    clean, noisy = draw(2, FRAMES, 4, 8, 8), draw(2, FRAMES, 4, 8, 8, seed=2)
    levels = draw(2, FRAMES, 2, seed=3).sigmoid()
    actions = torch.randint(3, (2, FRAMES, 3), generator=torch.Generator().manual_seed(4))
    parallel = denoiser(clean, noisy, levels, actions)
    memory = widened(denoiser.initial_memory(2))
    for frame in range(FRAMES):
        context = denoiser.observe(actions[:, frame], memory)
        velocity = denoiser.denoise(noisy[:, frame], levels[:, frame, 1], context, memory)
        torch.testing.assert_close(velocity, parallel[:, frame], rtol=1e-4, atol=1e-4)
        memory = widened(denoiser.commit(clean[:, frame], levels[:, frame, 0], context, memory))


def test_memory_changes_what_is_seen() -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, previous_frame=False)
    actions = torch.ones(1, 3, dtype=torch.int64)
    velocities = []
    for seed in (5, 6):
        memory = widened(denoiser.initial_memory(1))
        for latents in (draw(1, 4, 8, 8, seed=seed), draw(1, 4, 8, 8, seed=7)):
            context = denoiser.observe(actions, memory)
            memory = widened(denoiser.commit(latents, torch.zeros(1), context, memory))
        context = denoiser.observe(actions, memory)
        velocities.append(denoiser.denoise(draw(1, 4, 8, 8), torch.ones(1), context, memory))
    assert (velocities[0] - velocities[1]).abs().max() > 1e-3


def test_denoising_leaves_the_memory_bit_identical() -> None:
    denoiser = make_denoiser(MemoryPhase.PATH).float()
    memory = denoiser.initial_memory(1)
    actions = torch.tensor([[1, 0, 2]])
    memory = denoiser.commit(
        draw(1, 4, 8, 8).float(), torch.zeros(1), denoiser.observe(actions, memory), memory
    )
    before = {name: tensor.clone() for name, tensor in memory.tensors().items()}
    denoiser.denoise(draw(1, 4, 8, 8).float(), torch.ones(1), denoiser.observe(actions, memory), memory)
    for name, tensor in memory.tensors().items():
        assert torch.equal(tensor, before[name]), name


def test_commit_leaves_the_old_state_as_it_was_and_keeps_every_shape() -> None:
    denoiser = make_denoiser(MemoryPhase.PATH).float()
    memory = denoiser.initial_memory(1)
    before = {name: tensor.clone() for name, tensor in memory.tensors().items()}
    context = denoiser.observe(torch.tensor([[1, 0, 2]]), memory)
    after = denoiser.commit(draw(1, 4, 8, 8).float(), torch.zeros(1), context, memory)
    for name, tensor in memory.tensors().items():
        assert torch.equal(tensor, before[name]), name
        assert after.tensors()[name].shape == tensor.shape
    assert after.nbytes == memory.nbytes
    assert after.num_committed.item() == 1
    assert not torch.equal(after.matrices, memory.matrices)


@pytest.mark.parametrize("phase", list(MemoryPhase))
def test_frame_one_million_behaves_as_frame_ten(phase: MemoryPhase) -> None:
    denoiser = make_denoiser(phase).float()
    memory = denoiser.initial_memory(1)
    actions = torch.tensor([[1, 0, 2]])
    for seed in range(10):
        context = denoiser.observe(actions, memory)
        memory = denoiser.commit(draw(1, 4, 8, 8, seed=seed).float(), torch.zeros(1), context, memory)
    late = replace(memory, num_committed=torch.tensor([1_000_000]))
    outputs = []
    for state in (memory, late):
        context = denoiser.observe(actions, state)
        velocity = denoiser.denoise(draw(1, 4, 8, 8).float(), torch.ones(1), context, state)
        outputs.append((velocity, denoiser.commit(draw(1, 4, 8, 8).float(), torch.zeros(1), context, state)))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1].matrices, outputs[1][1].matrices)
    assert outputs[1][1].phase.abs().max() <= 3.1416


def test_half_lives_are_spread_over_the_heads_at_the_start() -> None:
    config = DenoiserConfig(half_lives=[4.0, 4096.0])
    half_lives = Denoiser(config).half_lives()
    assert half_lives.shape == (8, 6)
    torch.testing.assert_close(
        half_lives[0, [0, -1]], torch.tensor([4.0, 4096.0]).double(), rtol=1e-3, atol=0.0
    )


def test_actions_are_ignored_until_trained() -> None:
    denoiser = Denoiser(
        DenoiserConfig(
            latent_shape=[4, 8, 8], dim=32, ffn_dim=48, num_heads=2, num_layers=2, window_layers=[1]
        )
    )
    assert denoiser.embed_actions(torch.tensor([[2, 1, 0]])).abs().max() == 0


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"num_heads": 0}, "num_heads"),
        ({"dim": -384}, "dim"),
        ({"ffn_dim": 0}, "ffn_dim"),
        ({"num_layers": 0, "window_layers": []}, "num_layers"),
        ({"dim": 384.0}, "dim"),
        ({"window": 0}, "window"),
        ({"latent_shape": [16, 0, 20]}, "latent_shape"),
        ({"latent_shape": [16, 16]}, "latent_shape"),
        ({"num_values": []}, "num_values"),
        ({"num_values": [3, 0]}, "num_values"),
        ({"window_layers": [3, 3]}, "window_layers"),
        ({"window_layers": [10]}, "window_layers"),
        ({"half_lives": [4.0]}, "half_lives"),
        ({"half_lives": [0.0, 4.0]}, "half_lives"),
        ({"half_lives": [8.0, 4.0]}, "half_lives"),
        ({"half_lives": [8.0, float("inf")]}, "half_lives"),
        ({"half_lives": ["a", "b"]}, "half_lives"),
    ],
)
def test_shape_that_no_network_can_have_is_named(change: dict[str, Any], name: str) -> None:
    with pytest.raises(WorldError, match=name):
        DenoiserConfig(**change)
