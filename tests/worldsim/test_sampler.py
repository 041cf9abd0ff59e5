"""Noise belongs to a seed and a frame, and the sampler integrates the flow it is given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.runtime.noise import COMMIT_FRAME, DRAW_FRAME, MANY_ROWS, WATCH_FRAME, draw_noise
from worldsim.sampler import SamplerConfig, draw, noise_schedule

Velocity = Callable[[Tensor, Tensor], Tensor]
SHAPE = (2, 3, 4)
DATA_MEAN, DATA_STD = 0.7, 0.3


def noise_of(seed: int, frame: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return draw_noise(torch.tensor([seed]), torch.tensor([frame]), shape)[0]


@dataclass
class Flow:
    """Stands where a network would be, of either kind, and knows the velocity."""

    velocity: Velocity
    config: SimpleNamespace
    num_first: int = 0

    def denoise(self, x: Tensor, level: Tensor, context: str, memory: str) -> Tensor:
        assert (context, memory) == ("noted" if self.config.recycled else "observed", "memory")
        return self.velocity(x, level)

    def first_pass(self, noise: Tensor, context: str, memory: str) -> tuple[Tensor, str]:
        assert (context, memory) == ("observed", "memory")
        self.num_first += 1
        return self.velocity(noise, torch.ones(len(noise))), "noted"


def sample(velocity: Velocity, noise: Tensor, config: SamplerConfig) -> Tensor:
    """Return what is drawn, which is the same of an ordinary network and of a recycled one."""
    drawn = []
    for recycled in (False, True):
        flow: Any = Flow(velocity, SimpleNamespace(recycled=recycled))
        observed, memory = cast(Any, ("observed", "memory"))
        latents, context = draw(flow, noise, observed, memory, config)
        assert (context, flow.num_first) == (("noted", 1) if recycled else ("observed", 0))
        drawn.append(latents)
    assert torch.equal(*drawn)
    return drawn[0]


def gaussian_velocity(x: Tensor, level: Tensor) -> Tensor:
    """Return the exact velocity where every number of the data is normal with `DATA_MEAN` and `DATA_STD`.

    Its flow keeps `(x - mean_t) / std_t`: noise e ends at `DATA_MEAN + DATA_STD * e`, on a curved path.
    """
    t = level.reshape(-1, *[1] * (x.dim() - 1))
    variance = (1 - t) ** 2 * DATA_STD**2 + t**2
    return -DATA_MEAN + (t - (1 - t) * DATA_STD**2) / variance * (x - (1 - t) * DATA_MEAN)


def interpolate(velocity: Velocity, noise: Tensor, levels: list[float]) -> Tensor:
    """Sample in the other form: at each level move towards the clean frame that the velocity implies."""
    x = noise.double()
    for level, following in zip(levels[:-1], levels[1:], strict=True):
        denoised = x - level * velocity(x, torch.full((len(x),), level, dtype=torch.float64))
        x = following / level * x + (1 - following / level) * denoised
    return x


def test_a_frame_is_drawn_committed_and_watched_with_different_noise() -> None:
    seeds, frames = torch.tensor([3]), torch.tensor([5])
    uses = (DRAW_FRAME, COMMIT_FRAME, WATCH_FRAME)
    drawn, committed, watched = (draw_noise(seeds, frames, SHAPE, use) for use in uses)
    assert torch.equal(drawn, draw_noise(seeds, frames, SHAPE))
    for one, other in ((drawn, committed), (committed, watched), (watched, drawn)):
        assert not (one == other).any()


@pytest.mark.parametrize("shift", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 64])
def test_schedule_falls_from_exactly_one_to_exactly_zero(num_steps: int, shift: float) -> None:
    levels = noise_schedule(num_steps, shift)
    assert len(levels) == num_steps + 1
    assert levels[0] == 1.0 and levels[-1] == 0.0
    assert all(before > after for before, after in zip(levels[:-1], levels[1:], strict=True))


def test_schedule_without_shift_is_even() -> None:
    assert noise_schedule(4, 1.0) == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_shift_warps_towards_noise() -> None:
    # t / (1 - t), noise over signal, is multiplied by the shift.
    assert noise_schedule(4, 5.0) == pytest.approx([1, 15 / 16, 5 / 6, 5 / 8, 0])
    assert noise_schedule(2, 0.5) == pytest.approx([1, 1 / 3, 0])


def test_noise_depends_on_seed_and_frame_alone() -> None:
    alone = noise_of(7, 12)
    torch.manual_seed(99)
    np.random.seed(99)
    batch = draw_noise(torch.tensor([1, 7, 7, 2]), torch.tensor([12, 12, 13, 0]), SHAPE)
    assert torch.equal(batch[1], alone)
    others = [batch[0], batch[2], batch[3], noise_of(12, 7)]
    assert all((other != alone).all() for other in others)


def test_noise_stays_what_it_was() -> None:
    """Saved games and published numbers meet the same noise after every update of a library."""
    expected = {
        (0, 0): [0.059911, 0.015560, -1.164438, -0.132647],
        (7, 12): [1.616625, 2.547460, -1.706734, 0.099428],
        (2**62, 10**6): [-1.394212, 0.485586, -1.775324, 0.796209],
    }
    for (seed, frame), values in expected.items():
        assert noise_of(seed, frame).flatten()[:4].tolist() == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("count", [3, MANY_ROWS + 5], ids=["few rows", "many rows, in threads"])
@pytest.mark.parametrize("purpose", [DRAW_FRAME, COMMIT_FRAME, WATCH_FRAME])
def test_each_row_is_numpys_own_stream_of_its_key(count: int, purpose: int) -> None:
    """An odd number of draws leaves something in the generator, which the next row must not see."""
    seeds = torch.tensor([2**62 * (row % 3) // 2 + row for row in range(count)])
    frames = torch.arange(count) * 1000 + 1
    noise = draw_noise(seeds, frames, (3, 3), purpose)
    for row in range(count):
        counter = [0, 0, purpose, int(frames[row])]
        generator = np.random.Generator(np.random.Philox(key=int(seeds[row]), counter=counter))
        assert np.array_equal(noise[row], generator.standard_normal((3, 3), dtype=np.float32))


def test_noise_is_standard_normal() -> None:
    noise = draw_noise(torch.arange(4), torch.arange(4), (50_000,))
    assert noise.dtype is torch.float32
    std_error = 1 / math.sqrt(noise.numel())
    assert abs(noise.mean()) < 4 * std_error
    assert abs(noise.var() - 1) < 4 * math.sqrt(2) * std_error
    assert abs((noise**4).mean() - 3) < 4 * math.sqrt(96) * std_error
    within = (noise.abs() < 1).double().mean()
    assert abs(within - math.erf(math.sqrt(0.5))) < 4 * 0.466 * std_error


def test_frames_share_no_stretch_of_the_stream() -> None:
    long = noise_of(3, 0, (100_000,))
    first_of_next = noise_of(3, 1, (4,))
    assert not torch.isin(first_of_next, long).all()


@pytest.mark.parametrize(("num_steps", "shift"), [(1, 1.0), (2, 1.0), (3, 5.0), (16, 0.5)])
def test_straight_flow_is_integrated_exactly(num_steps: int, shift: float) -> None:
    noise = draw_noise(torch.arange(3), torch.zeros(3, dtype=torch.int64), SHAPE)
    data = torch.linspace(-2, 2, noise.numel()).reshape(noise.shape)

    def towards_data(x: Tensor, level: Tensor) -> Tensor:
        return (x - data) / level[:, None, None, None]

    result = sample(towards_data, noise, SamplerConfig(num_steps=num_steps, shift=shift))
    torch.testing.assert_close(result, data, atol=2e-6, rtol=0)


def test_more_steps_converge_on_a_curved_flow() -> None:
    noise = draw_noise(torch.arange(8), torch.zeros(8, dtype=torch.int64), SHAPE)
    answer = DATA_MEAN + DATA_STD * noise

    def error(num_steps: int) -> float:
        return float(
            (sample(gaussian_velocity, noise, SamplerConfig(num_steps=num_steps)) - answer).abs().max()
        )

    errors = [error(num_steps) for num_steps in (1, 4, 16, 64)]
    assert errors == sorted(errors, reverse=True)
    # Euler's method is of first order: four times the steps, a quarter of the error.
    assert errors[-2] / errors[-1] == pytest.approx(4, rel=0.2)
    assert errors[-1] < 0.1 * DATA_STD


@pytest.mark.parametrize(("num_steps", "shift", "noise_scale"), [(2, 1.0, 1.0), (5, 3.0, 1.0), (4, 0.5, 0.8)])
def test_sample_equals_interpolation_towards_the_denoised_frame(
    num_steps: int, shift: float, noise_scale: float
) -> None:
    noise = draw_noise(torch.arange(2), torch.arange(2), SHAPE)
    config = SamplerConfig(num_steps=num_steps, shift=shift, noise_scale=noise_scale)
    odds = [(num_steps - step, step) for step in range(num_steps + 1)]  # of noise to signal, before the shift
    levels = [shift * noisy / (shift * noisy + clean) for noisy, clean in odds]
    expected = interpolate(gaussian_velocity, noise * noise_scale, levels)
    torch.testing.assert_close(sample(gaussian_velocity, noise, config).double(), expected, atol=1e-5, rtol=0)


def test_every_row_is_asked_at_the_levels_of_the_schedule() -> None:
    config = SamplerConfig(num_steps=3, shift=2.0)
    asked = []

    def note(x: Tensor, level: Tensor) -> Tensor:
        asked.append(level.tolist())
        return torch.zeros_like(x)

    sample(note, torch.zeros(2, *SHAPE), config)
    expected = 2 * noise_schedule(3, 2.0)[:-1]
    assert asked == [pytest.approx([level, level]) for level in expected]


def test_half_precision_velocities_are_summed_in_fp32() -> None:
    noise = draw_noise(torch.tensor([5]), torch.tensor([0]), SHAPE)
    config = SamplerConfig(num_steps=64)
    result = sample(lambda x, _: torch.ones_like(x, dtype=torch.bfloat16), noise, config)
    assert result.dtype is torch.float32
    torch.testing.assert_close(result, noise - 1, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [{"num_steps": 0}, {"num_steps": 65}, {"shift": 0.0}, {"noise_scale": -1.0}, {"commit_level": 1.0}],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(WorldError, match="must"):
        SamplerConfig(**settings)


def test_noise_of_many_rows_is_that_of_each() -> None:
    seeds, frames = torch.arange(100), torch.arange(100) + 3
    noise = draw_noise(seeds, frames, SHAPE)
    alone = [noise_of(seed, frame) for seed, frame in zip(seeds.tolist(), frames.tolist(), strict=True)]
    assert torch.equal(noise, torch.stack(alone))
