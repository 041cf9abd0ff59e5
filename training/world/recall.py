"""Pose-queried recall: what the recurrent states alone say of a view that is asked for by its pose.

After a real prefix, with true poses, frames are drawn without a frame before them and without a window: with
the states that the prefix left, with empty ones, and with those of another clip. What the states kept is what
the first gains over the others.
"""

# B clips, F frames, C h w latent size

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from training.data.latents import LatentVideo, fixed_starts
from worldsim.evaluation.metrics import psnr
from worldsim.model.memory.pose import pose_distances
from worldsim.model.memory.state import MemoryState
from worldsim.runtime.noise import draw_noise
from worldsim.sampler import SamplerConfig, draw, watch
from worldsim.world import World

PREFIX_SHARE = 0.7
NEAR = (32.0, 4.0)
"""Map units and degrees within which a pose of the prefix is that of a later frame: it was seen."""
BATCH = 32


@dataclass(frozen=True, slots=True)
class RecallScores:
    """PSNR in dB of frames that were asked for by their pose, `[clips, frames]` each.

    Attributes:
        by_state: Under "kept", "emptied" and "swapped" states, and "copied": the nearest frame of the prefix.
        is_watched: Which frames lie in the prefix.
        is_seen: Which of the others have the pose of a frame in the prefix.
    """

    by_state: dict[str, np.ndarray]
    is_watched: np.ndarray
    is_seen: np.ndarray

    def summary(self) -> dict[str, float]:
        """Return means of each kind of frames, and gain with its standard error over clips."""
        groups = {"watched": self.is_watched, "seen": self.is_seen, "later": ~self.is_watched}
        found: dict[str, float] = {}
        for group, chosen in groups.items():
            has_any = chosen.any(1)
            found[f"recall_{group}_clips"] = float(has_any.sum())
            if not has_any.any():
                continue
            means = {
                name: np.where(chosen, values, np.nan)[has_any] for name, values in self.by_state.items()
            }
            clips = {name: np.nanmean(values, axis=1) for name, values in means.items()}
            found |= {f"recall_{group}_{name}_db": float(values.mean()) for name, values in clips.items()}
            gain = clips["kept"] - clips["emptied"]
            found[f"recall_{group}_gain_db"] = float(gain.mean())
            found[f"recall_{group}_gain_se"] = float(gain.std(ddof=min(1, len(gain) - 1)) / len(gain) ** 0.5)
        return found


@torch.no_grad()
def measure_recall(
    world: World, video: LatentVideo, *, num_clips: int, length: int, num_queries: int, num_steps: int
) -> RecallScores:
    """Measure pose-queried recall on clips spread evenly over held-out episodes.

    Args:
        world: With keys of poses, on the video's device.
        video: With poses.
        num_clips: So many.
        length: Frames of a clip, seven tenths of them its prefix.
        num_queries: Frames asked for of the prefix, and as many after it.
        num_steps: Denoising steps.
    """
    starts = fixed_starts(video.lengths, length, num_clips)
    parts = [
        _measure(world, video, part, length, num_queries, SamplerConfig(num_steps=num_steps))
        for part in np.array_split(starts, -(-num_clips // BATCH))
    ]
    return RecallScores(
        {name: np.concatenate([part.by_state[name] for part in parts]) for name in parts[0].by_state},
        np.concatenate([part.is_watched for part in parts]),
        np.concatenate([part.is_seen for part in parts]),
    )


def _measure(
    world: World,
    video: LatentVideo,
    starts: np.ndarray,
    length: int,
    num_queries: int,
    sampler: SamplerConfig,
) -> RecallScores:
    denoiser, seeds = world.denoiser, torch.arange(len(starts))
    latents, actions = video.sequences(starts, length)
    latents, poses = latents.float(), video.pose_sequences(starts, length)
    prefix = round(PREFIX_SHARE * length)
    memory = denoiser.initial_memory(len(starts))
    for frame in range(prefix):
        number = torch.full_like(seeds, frame)
        given = (latents[:, frame], actions[:, frame], memory, seeds, number, poses[:, frame])
        memory = watch(denoiser, *given)
    kept = memory.states_alone()
    memories = {
        "kept": kept,
        "emptied": replace(kept, matrices=torch.zeros_like(kept.matrices)),
        "swapped": replace(kept, matrices=kept.matrices.roll(1, 1)),
    }
    asked = np.unique(
        np.concatenate(
            [np.linspace(1, prefix - 2, num_queries), np.linspace(prefix, length - 1, num_queries)]
        )
        .round()
        .astype(np.int64)
    )
    distance, angle = pose_distances(poses[:, asked, None], poses[:, None, :prefix])  # [B, Q, prefix]
    near = (distance / NEAR[0]).maximum(angle / NEAR[1])
    nearest, best = near.min(-1)
    scores: dict[str, list[Tensor]] = {name: [] for name in (*memories, "copied")}
    for column, frame in enumerate(asked.tolist()):
        truth = world.codec.decode(latents[:, frame])
        for name, each in memories.items():
            dream = _ask(world, each, actions[:, frame], poses[:, frame], seeds, frame, sampler)
            scores[name].append(psnr(world.codec.decode(dream), truth))
        copy = latents[torch.arange(len(starts), device=best.device), best[:, column]]
        scores["copied"].append(psnr(world.codec.decode(copy), truth))
    is_watched = np.broadcast_to(asked < prefix, nearest.shape)
    return RecallScores(
        {name: torch.stack(each, 1).cpu().numpy() for name, each in scores.items()},
        is_watched,
        (nearest <= 1).cpu().numpy() & ~is_watched,
    )


def _ask(
    world: World,
    memory: MemoryState,
    actions: Tensor,
    pose: Tensor,
    seeds: Tensor,
    frame: int,
    sampler: SamplerConfig,
) -> Tensor:
    """Return what is drawn from the states of a memory and a pose, `[B, C, h, w]`."""
    context = world.denoiser.observe(actions, memory, pose=pose)
    shape = world.denoiser.latent_shape
    noise = draw_noise(seeds, torch.full_like(seeds, frame), shape).to(pose.device)
    return draw(world.denoiser, noise, context, memory, sampler)[0]
