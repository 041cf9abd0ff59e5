"""Roll-outs within training: the frames of play, with gradients where they are meant to be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.fakes import tiny_world
from training.sharpen.measurement import fixed_noise
from training.sharpen.rollouts import roll_out, watch_clips
from worldsim.model.denoiser import Denoiser
from worldsim.runtime.noise import COMMIT_FRAME, DRAW_FRAME, WATCH_FRAME
from worldsim.sampler import SamplerConfig
from worldsim.simulator import Simulator
from worldsim.world import World

pytestmark = pytest.mark.usefixtures("one_thread")

WATCHED, DRAWN, ROWS = 4, 5, 3
SAMPLER = SamplerConfig(num_steps=1, commit_level=0.2, noise_scale=0.9)


def make_world(*, recycled: bool = False) -> World:
    """Return a world with random weights that all matter, of either kind."""
    world = tiny_world(num_starts=ROWS)
    if not recycled:
        return world
    described = replace(world.config, denoiser=replace(world.config.denoiser, recycled=True))
    denoiser = Denoiser(described.denoiser)
    denoiser.load_state_dict(world.denoiser.state_dict())
    other = World(described, denoiser, world.codec)
    other.starts = world.starts
    return other


def noise_of(world: World, purpose: int, count: int = DRAWN, rows: int = ROWS) -> Tensor:
    return fixed_noise(rows, count, world.denoiser.latent_shape, purpose, torch.device("cpu"))


@pytest.mark.parametrize("recycled", [False, True])
def test_a_roll_out_draws_the_frames_of_the_simulator(recycled: bool) -> None:
    world = make_world(recycled=recycled)
    simulator = Simulator(world, SAMPLER)
    state = simulator.start(world.starts, list(range(ROWS)))
    actions = torch.randint(3, (ROWS, DRAWN, 3), generator=torch.Generator().manual_seed(1))
    expected = []
    for index in range(DRAWN):
        prediction = simulator.predict(state, actions[:, index])
        expected.append(prediction.latents)
        state = simulator.commit(state, prediction)

    frames = torch.stack([start.frames for start in world.starts])
    latents = torch.stack([world.codec.encode(column).float() for column in frames.unbind(1)], dim=1)
    pressed = torch.stack([start.actions for start in world.starts])
    leading = torch.cat([torch.zeros_like(pressed[:, :1]), pressed[:, :-1]], dim=1)
    # What is watched depends on no dream's seed: all rows begin their passes from the noise of seed 0.
    watched = noise_of(world, WATCH_FRAME, WATCHED, rows=1).expand(ROWS, -1, -1, -1, -1)
    memory = watch_clips(world.denoiser, latents, leading, watched)
    drawn = roll_out(
        world.denoiser,
        memory,
        actions,
        noise_of(world, DRAW_FRAME),
        noise_of(world, COMMIT_FRAME),
        SAMPLER,
        num_watched=WATCHED,
    )
    torch.testing.assert_close(drawn, torch.stack(expected, dim=1), rtol=1e-4, atol=1e-4)


def gradients(frame: int, gradient_frames: int, *, recycled: bool = False) -> dict[str, Tensor]:
    """Return the gradients that one frame of a roll-out gives the network's parameters."""
    world = make_world(recycled=recycled)
    world.denoiser.requires_grad_(True)
    latents = torch.randn(
        1, WATCHED, *world.denoiser.latent_shape, generator=torch.Generator().manual_seed(0)
    )
    actions = torch.zeros(1, WATCHED + DRAWN, 3, dtype=torch.int64)
    watched, noise = (noise_of(world, DRAW_FRAME, count, rows=1) for count in (WATCHED, DRAWN))
    memory = watch_clips(world.denoiser, latents, actions[:, :WATCHED], watched)
    drawn = roll_out(
        world.denoiser,
        memory,
        actions[:, WATCHED:],
        noise,
        noise,
        replace(SAMPLER, commit_level=0.0),
        num_watched=WATCHED,
        gradient_frames=gradient_frames,
    )
    drawn[:, frame].square().sum().backward()
    return {name: p.grad for name, p in world.denoiser.named_parameters() if p.grad is not None}


WRITES = "blocks.0.self_attn.b_proj.weight"


@pytest.mark.parametrize("recycled", [False, True])
def test_without_gradients_through_the_state_writing_is_not_trained_and_drawing_is(recycled: bool) -> None:
    found = gradients(3, 1, recycled=recycled)
    assert WRITES not in found
    assert found["head.head.weight"].abs().sum() > 0
    assert found["blocks.0.self_attn.q.weight"].abs().sum() > 0


@pytest.mark.parametrize("recycled", [False, True])
@pytest.mark.parametrize(("frame", "is_reached"), [(0, False), (1, True), (2, False), (3, True)])
def test_gradients_flow_through_the_state_of_so_many_consecutive_frames(
    frame: int, is_reached: bool, recycled: bool
) -> None:
    found = gradients(frame, 2, recycled=recycled)
    assert (WRITES in found and bool(found[WRITES].abs().sum() > 0)) == is_reached
