"""A quick look at held-out roll-outs during training; `training.evaluate` is the thorough one."""

# B dreams, T frames, C h w latent size, A action axes

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from training.frames import LatentVideo, fixed_starts
from worldsim.model.memory import MemoryState
from worldsim.sampler import SamplerConfig, draw_noise, sample
from worldsim.world import World


@dataclass(kw_only=True, slots=True)
class ValidationConfig:
    """What is measured at every checkpoint.

    Attributes:
        max_frames: Held-out frames to choose from.
        num_rollouts: Roll-outs, from fixed places.
        context_frames: Real frames before each.
        horizons: Frames after which the PSNR is taken.
        num_steps: Denoising steps.
    """

    max_frames: int = 10_000
    num_rollouts: int = 32
    context_frames: int = 16
    horizons: list[int] = field(default_factory=lambda: [1, 8, 32])
    num_steps: int = 2


@torch.no_grad()
def validate(world: World, video: LatentVideo, config: ValidationConfig) -> dict[str, float]:
    """Return PSNR in dB of free roll-outs under the recorded actions, against the codec's reconstructions.

    Args:
        world: On the video's device.
        video: Held-out episodes.
        config: How many and how long.
    """
    length = config.context_frames + max(config.horizons)
    latents, actions = video.sequences(fixed_starts(video.lengths, length, config.num_rollouts), length)
    latents = latents.float()
    memory = world.denoiser.initial_memory(len(latents))
    clean = torch.zeros(len(latents), device=latents.device)
    for frame in range(config.context_frames):
        context = world.denoiser.observe(actions[:, frame], memory)
        memory = world.denoiser.commit(latents[:, frame], clean, context, memory)
    return _roll_out(
        world, memory, latents[:, config.context_frames :], actions[:, config.context_frames :], config
    )


def _roll_out(
    world: World, memory: MemoryState, truth: Tensor, actions: Tensor, config: ValidationConfig
) -> dict[str, float]:
    sampler = SamplerConfig(num_steps=config.num_steps)
    seeds = torch.arange(len(truth))
    clean = torch.zeros(len(truth), device=truth.device)
    scores = {}
    for frame in range(max(config.horizons)):
        context = world.denoiser.observe(actions[:, frame], memory)
        noise = draw_noise(seeds, torch.full_like(seeds, frame), world.denoiser.latent_shape).to(truth.device)
        dream = sample(lambda x, t, c=context, m=memory: world.denoiser.denoise(x, t, c, m), noise, sampler)
        memory = world.denoiser.commit(dream, clean, context, memory)
        if frame + 1 in config.horizons:
            scores[f"psnr_{frame + 1}_db"] = _psnr(
                world.codec.decode(dream), world.codec.decode(truth[:, frame])
            )
    return scores


def _psnr(frames: Tensor, expected: Tensor) -> float:
    error = (frames.float() - expected.float()).square().mean(dim=(1, 2, 3)) / 255**2
    return float((-10 * error.clamp(min=1e-6).log10()).mean())
