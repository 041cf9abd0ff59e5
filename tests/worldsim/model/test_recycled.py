"""A recycled model: the pass that begins a frame writes the frame before it, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.fakes import PATH_KEYS, draw, make_denoiser
from worldsim import sampler
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig, MemoryKeys, MemoryPhase
from worldsim.model.denoiser import Denoiser
from worldsim.model.frame_context import FrameContext
from worldsim.model.memory.state import MemoryState
from worldsim.model.rotary import turns
from worldsim.sampler import SamplerConfig

ACTION = torch.tensor([[1, 0, 2]])
CLEAN = torch.zeros(1)
FRAMES = 6


def noise_of(frame: int) -> Tensor:
    return draw(1, 4, 8, 8, seed=100 + frame)


def begin(denoiser: Denoiser, memory: MemoryState, frame: int) -> FrameContext:
    return denoiser.first_pass(noise_of(frame), denoiser.observe(ACTION, memory), memory)[1]


def watch(denoiser: Denoiser, frames: list[Tensor]) -> list[MemoryState]:
    """Return the memory before any frame, and after each of these."""
    memories = [denoiser.initial_memory(1)]
    for number, latents in enumerate(frames):
        context = begin(denoiser, memories[-1], number)
        memories.append(denoiser.commit(latents, CLEAN, context, memories[-1]))
    return memories


def test_a_frame_reaches_the_memory_with_the_pass_that_begins_the_next() -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, recycled=True)
    frames = [draw(1, 4, 8, 8, seed=number) for number in range(FRAMES)]
    others = [*frames[:3], draw(1, 4, 8, 8, seed=50), *frames[4:]]
    ours, theirs = watch(denoiser, frames), watch(denoiser, others)
    after = 4  # frames committed when the one that differs is the last
    for name, tensor in ours[after].tensors().items():
        assert torch.equal(tensor, theirs[after].tensors()[name]) == (name != "latents"), name
    for name in ("matrices", "window_keys", "window_values"):
        change = ours[after + 1].tensors()[name] - theirs[after + 1].tensors()[name]
        assert change.abs().max() > 1e-3, name


@pytest.mark.parametrize("keys", PATH_KEYS)
@pytest.mark.parametrize("path_odometry", [False, True], ids=["expected", "odometry"])
def test_keys_are_written_where_the_frame_before_was_and_looked_for_where_this_one_is(
    keys: MemoryKeys, path_odometry: bool
) -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, memory_keys=keys, path_odometry=path_odometry, recycled=True)
    frames = [draw(1, 4, 8, 8, seed=number) for number in range(FRAMES)]
    memory = watch(denoiser, frames)[-1]
    rotary = denoiser.observe(ACTION, memory).rotary
    moved = denoiser.observe(ACTION, memory).phase
    assert (turns(moved) - turns(memory.phase)).abs().max() > 1e-4
    assert rotary.written is not None
    assert torch.equal(rotary.written, denoiser.rotary(memory.phase, range(1)).memory)
    assert torch.equal(rotary.memory, denoiser.rotary(moved, range(1)).memory)


def test_the_memory_is_the_same_however_many_passes_draw_a_frame() -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, recycled=True)
    memory = watch(denoiser, [draw(1, 4, 8, 8)])[-1]
    context = denoiser.observe(ACTION, memory)
    drawn = {
        steps: sampler.draw(denoiser, noise_of(1), context, memory, SamplerConfig(num_steps=steps))
        for steps in (1, 2, 3)
    }
    assert (drawn[1][0] - drawn[2][0]).abs().max() > 1e-3
    one, *others = (denoiser.commit(drawn[1][0], CLEAN, begun, memory) for _, begun in drawn.values())
    for other in others:
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, other.tensors()[name]), name


@pytest.mark.parametrize(("recycled", "commits"), [(False, 1), (True, 0)], ids=["ordinary", "recycled"])
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_committing_costs_a_pass_unless_it_is_recycled(recycled: bool, commits: int, num_steps: int) -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, recycled=recycled)
    passes: list[None] = []
    denoiser.layers()[0].ffn.register_forward_hook(lambda *_: passes.append(None))
    memory = denoiser.initial_memory(1)
    context = denoiser.observe(ACTION, memory)
    config = SamplerConfig(num_steps=num_steps)
    latents, context = sampler.draw(denoiser, noise_of(0), context, memory, config)
    assert len(passes) == num_steps
    memory = denoiser.commit(latents, CLEAN, context, memory)
    assert len(passes) == num_steps + commits
    assert memory.num_committed.tolist() == [1]


def test_first_passes_alone_are_those_beside_noisy_frames() -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, recycled=True, outcome_heads=True)
    clean, noisy, noise = (draw(2, FRAMES, 4, 8, 8, seed=seed) for seed in (1, 2, 3))
    levels, actions = draw(2, FRAMES, 2, seed=4).sigmoid(), torch.ones(2, FRAMES, 3, dtype=torch.int64)
    memory = denoiser.initial_memory(2)
    both = denoiser.run_sequences(clean, noisy, levels, actions, memory, noise=noise)
    alone = denoiser.run_sequences(clean, None, levels, actions, memory, noise=noise)
    assert both.first_velocity is not None
    torch.testing.assert_close(alone.velocity, both.first_velocity)
    torch.testing.assert_close(alone.summary, both.summary)


def test_summaries_of_a_sequence_are_those_of_its_commits() -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, recycled=True, outcome_heads=True)
    frames = [draw(1, 4, 8, 8, seed=number) for number in range(FRAMES)]
    clean, noise = torch.stack(frames, dim=1), torch.stack([noise_of(f) for f in range(FRAMES)], dim=1)
    levels, actions = torch.zeros(1, FRAMES, 2), ACTION[:, None].expand(-1, FRAMES, -1)
    memory = denoiser.initial_memory(1)
    passed = denoiser.run_sequences(clean, None, levels, actions, memory, noise=noise)
    summaries = [memory.summary for memory in watch(denoiser, frames)[1:]]
    assert passed.summary is not None
    steps = torch.stack([summary for summary in summaries if summary is not None], dim=1)
    torch.testing.assert_close(passed.summary, steps, rtol=1e-6, atol=1e-6)
    assert steps.std(dim=1).min() > 1e-3, "every frame has the same summary"


def test_gradients_flow_through_frames_that_were_drawn_and_committed() -> None:
    """Finite differences of a roll-out, by its first noise: through the recycled frame and the memory."""
    denoiser = make_denoiser(MemoryPhase.PATH, recycled=True)
    start = watch(denoiser, [draw(1, 4, 8, 8, seed=number) for number in range(4)])[-1]
    wide = replace(start, matrices=start.matrices.double(), phase=start.phase.double())
    direction, weight = draw(1, 4, 8, 8, seed=7), draw(1, 4, 8, 8, seed=8)

    def last_frame(shift: Tensor, *, through: tuple[bool, bool]) -> Tensor:
        memory = wide
        for frame in range(3):
            noise = noise_of(frame) + (shift * direction if frame == 0 else 0)
            context = denoiser.observe(ACTION, memory)
            latents, context = sampler.draw(denoiser, noise, context, memory, SamplerConfig(num_steps=1))
            after = denoiser.commit(latents, CLEAN, context, memory)
            recycled, written = through
            memory = replace(
                after,
                latents=after.latents if recycled else after.latents.detach(),
                matrices=after.matrices if written else after.matrices.detach(),
            )
        return (latents * weight).sum()

    def gradient(*through: bool) -> Tensor:
        shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(last_frame(shift, through=(through[0], through[1])), shift)[0]

    step = torch.tensor(3e-3, dtype=torch.float64)  # a drawn frame is rounded to fp32
    slope = (last_frame(step, through=(True, True)) - last_frame(-step, through=(True, True))) / (2 * step)
    torch.testing.assert_close(gradient(True, True), slope, rtol=1e-3, atol=0.0)
    for partial in ((False, True), (True, False)):
        assert (gradient(*partial) - slope).abs() > 1e-2 * slope.abs()


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ({"previous_frame": False}, "recycled needs previous_frame"),
        ({"full_layers": [0]}, r"recycled needs layers of constant memory, got full_layers \[0\]"),
    ],
)
def test_what_a_recycled_model_cannot_do_without_is_said(shape: dict[str, object], problem: str) -> None:
    with pytest.raises(WorldError, match=problem):
        DenoiserConfig(recycled=True, **shape)  # pyright: ignore[reportArgumentType]
