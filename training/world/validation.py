"""Validation on held-out roll-outs during training; `training.evaluate` is the thorough one."""

# B dreams, T frames, C h w latent size, A action axes

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.data.latents import LatentVideo, fixed_starts
from training.world.recall import RecallConfig, measure_recall
from worldsim.errors import WorldError
from worldsim.evaluation.metrics import psnr
from worldsim.model.config import MemoryKeys
from worldsim.model.memory.state import MemoryState
from worldsim.runtime.noise import draw_noise
from worldsim.sampler import SamplerConfig, draw, watch
from worldsim.settings import check_settings, setting
from worldsim.world import World


@dataclass(kw_only=True, slots=True)
class ValidationConfig:
    """What is measured at every checkpoint."""

    max_frames: int = setting(10_000, "Held-out frames to choose from.", minimum=0)
    num_rollouts: int = setting(32, "Roll-outs, from fixed places.", minimum=1)
    context_frames: int = setting(16, "Real frames before each.", minimum=1)
    horizons: list[int] = setting([1, 8, 32], "Frames after which the PSNR is taken.", minimum=1)
    num_steps: int = setting(2, "Denoising steps.")
    recall_clips: int = setting(
        32,
        "Clips on which worlds with memory_keys=pose are asked for views by their pose alone "
        "(docs/decisions/0048); 0 asks for none.",
        minimum=0,
    )
    recall_frames: int = setting(128, "Frames of such a clip, of which seven tenths are watched.", minimum=10)
    recall_queries: int = setting(
        8, "Views of what was watched that are asked for, and as many of what comes later.", minimum=2
    )

    def __post_init__(self) -> None:
        check_settings(self, "validation.")
        if not self.horizons:
            raise WorldError("validation.horizons names no frame")
        SamplerConfig(num_steps=self.num_steps)  # so many passes can be asked for

    @property
    def length(self) -> int:
        """Frames of a sequence."""
        return self.context_frames + max(self.horizons)


def validation_places(video: LatentVideo, config: ValidationConfig) -> np.ndarray:
    """Return where the roll-outs begin in the held-out video.

    Raises:
        WorldError: If no held-out episode is long enough.
    """
    return fixed_starts(video.lengths, config.length, config.num_rollouts)


@torch.no_grad()
def validate(
    world: World, video: LatentVideo, places: np.ndarray, config: ValidationConfig
) -> dict[str, float]:
    """Return PSNR in dB of free roll-outs under the recorded actions, against the codec's reconstructions.

    Args:
        world: On the video's device.
        video: Held-out episodes.
        places: From `validation_places`.
        config: How many and how long.
    """
    latents, actions = video.sequences(places, config.length)
    latents = latents.float()
    has_poses = world.config.denoiser.memory_keys == MemoryKeys.POSE
    length, on_map = config.length, world.on_level_map
    poses = video.pose_sequences(places, length, on_map=on_map) if has_poses else None
    memory, seeds = world.denoiser.initial_memory(len(latents)), torch.arange(len(latents))
    for frame in range(config.context_frames):
        number = torch.full_like(seeds, frame)
        pose = None if poses is None else poses[:, frame]
        memory = watch(world.denoiser, latents[:, frame], actions[:, frame], memory, seeds, number, pose)
    first = config.context_frames
    later = None if poses is None else poses[:, first:]
    scores = _roll_out(world, memory, latents[:, first:], actions[:, first:], config, later)
    if has_poses and config.recall_clips:
        asked = RecallConfig(
            num_clips=config.recall_clips,
            length=config.recall_frames,
            num_queries=config.recall_queries,
            num_steps=config.num_steps,
        )
        scores |= measure_recall(world, video, asked).summary()
    return scores


def _roll_out(
    world: World,
    memory: MemoryState,
    truth: Tensor,
    actions: Tensor,
    config: ValidationConfig,
    poses: Tensor | None = None,
) -> dict[str, float]:
    novelty = world.config.sampler.write_novelty
    sampler = SamplerConfig(num_steps=config.num_steps, write_novelty=novelty)
    seeds = torch.arange(len(truth))
    clean = torch.zeros(len(truth), device=truth.device)
    scores = {}
    for frame in range(max(config.horizons)):
        pose = None if poses is None else poses[:, frame]
        context = world.denoiser.observe(actions[:, frame], memory, pose=pose)
        noise = draw_noise(seeds, torch.full_like(seeds, frame), world.denoiser.latent_shape).to(truth.device)
        dream, context = draw(world.denoiser, noise, context, memory, sampler)
        memory = world.denoiser.commit(dream, clean, context, memory, novelty)
        if frame + 1 in config.horizons:
            seen, expected = world.codec.decode(dream), world.codec.decode(truth[:, frame])
            scores[f"psnr_{frame + 1}_db"] = float(psnr(seen, expected).mean())
    return scores
