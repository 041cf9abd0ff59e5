"""Recall by true poses: what the recurrent states alone say of a view, and what roll-outs gain by them.

After a real prefix, with recorded poses, frames are drawn with the states that the prefix left, with empty
ones, and with those of another clip. What the states kept is what the first gains over the others. Views are
asked for without a frame before them and without a window; roll-outs have both.
"""

# B clips, F frames, Q frames that are drawn, C h w latent size

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from training.data.latents import LatentVideo, fixed_starts
from worldsim.evaluation.metrics import psnr
from worldsim.model import belief
from worldsim.model.memory.pose import pose_distances
from worldsim.model.memory.state import MemoryState
from worldsim.runtime.noise import draw_noise
from worldsim.sampler import SamplerConfig, draw, watch
from worldsim.world import World

NEAR = (32.0, 4.0)
"""Map units and degrees within which a pose of the prefix is that of a later frame: it was seen."""
BATCH = 32
GAIN = "gain"


@dataclass(kw_only=True, frozen=True, slots=True)
class RecallConfig:
    """What is asked.

    Attributes:
        num_clips: Clips, spread evenly over held-out episodes.
        length: Frames of a clip.
        prefix_share: Share of them that is watched.
        num_queries: Views asked for of the prefix, and as many after it.
        num_steps: Denoising steps.
    """

    num_clips: int
    length: int
    prefix_share: float = 0.7
    num_queries: int = 8
    num_steps: int = 2

    @property
    def prefix(self) -> int:
        """Frames that are watched."""
        return min(max(round(self.prefix_share * self.length), 2), self.length - 1)


@dataclass(frozen=True, slots=True)
class RecallScores:
    """PSNR in dB of frames drawn at true poses, `[B, Q]` each, against the codec's pictures of true frames.

    Attributes:
        by_state: Under "kept", "emptied" and "swapped" states, and "copied": the nearest frame of the prefix.
            Of views also "misled" and "misled_emptied": the first two after another clip's last frames.
            Under "followed" roll-outs of a world with odometry that is told no pose, not even of the prefix.
        is_watched: Which frames lie in the prefix.
        is_seen: Which of the others have the pose of a frame in the prefix.
    """

    by_state: Mapping[str, np.ndarray]
    is_watched: np.ndarray
    is_seen: np.ndarray

    def clip_means(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the mean of each clip by kind of frame and by state, `[B]`, NaN where it has none of them.

        Under "gain", what is kept gains over what is emptied.
        """
        kinds = {"watched": self.is_watched, "seen": self.is_seen, "later": ~self.is_watched}
        found: dict[str, dict[str, np.ndarray]] = {}
        for kind, chosen in kinds.items():
            count = chosen.sum(1)
            sums = {name: np.where(chosen, each, 0).sum(1) for name, each in self.by_state.items()}
            means = {name: np.where(count, each / count.clip(1), np.nan) for name, each in sums.items()}
            found[kind] = means | {GAIN: means["kept"] - means["emptied"]}
        return found

    def summary(self) -> dict[str, float]:
        """Return means over clips, and the standard error of the gain, for the log."""
        found: dict[str, float] = {}
        for kind, means in self.clip_means().items():
            known = {name: values[~np.isnan(values)] for name, values in means.items()}
            found[f"recall_{kind}_clips"] = float(len(known[GAIN]))
            if len(known[GAIN]):
                found |= {f"recall_{kind}_{name}_db": float(each.mean()) for name, each in known.items()}
                spread = known[GAIN].std(ddof=min(1, len(known[GAIN]) - 1))
                found[f"recall_{kind}_gain_se"] = float(spread / len(known[GAIN]) ** 0.5)
        return found


@dataclass(frozen=True, slots=True)
class Clips:
    """Held-out clips on the world's device.

    Attributes:
        latents: `[B, F, C, h, w]`, fp32.
        actions: `[B, F, A]`.
        poses: `[B, F, 3]`; each clip begins at x, y and heading 0, or lies on the map of the world's level.
        seeds: `[B]` int64 on the CPU, of the noise.
        are_told: Whether a world is told the poses, or follows them by its odometry.
    """

    latents: Tensor
    actions: Tensor
    poses: Tensor
    seeds: Tensor
    are_told: bool = True

    def told(self, frame: int) -> Tensor | None:
        """Return the poses `[B, 3]` of a frame; None if they are to be found out."""
        return self.poses[:, frame] if self.are_told else None

    def noise(self, frame: int) -> Tensor:
        """Return what a frame is drawn from, `[B, C, h, w]`, the same whatever the state."""
        number = torch.full_like(self.seeds, frame)
        shape = (self.latents.shape[2], self.latents.shape[3], self.latents.shape[4])
        return draw_noise(self.seeds, number, shape).to(self.latents.device)

    def watched(self, world: World, count: int) -> MemoryState:
        """Return a world's memory of the first so many frames; on a level's map it is told their poses."""
        memory, clips = world.initial_memory(len(self.seeds)), self
        if world.on_level_map:
            clips = replace(self, are_told=True)
        for frame in range(count):
            number = torch.full_like(self.seeds, frame)
            given = (self.latents[:, frame], self.actions[:, frame], memory, self.seeds, number)
            memory = watch(world.denoiser, *given, clips.told(frame), world.odometry)
        return memory


Draw = Callable[[World, Clips, MemoryState, np.ndarray, SamplerConfig], Tensor]
"""Draws frames `[Q]` of clips from a memory, `[B, Q, C, h, w]`."""


@torch.no_grad()
def measure_recall(world: World, video: LatentVideo, config: RecallConfig) -> RecallScores:
    """Ask for views by their pose, of the prefix and after it, evenly spread.

    Args:
        world: With keys of poses, on the video's device.
        video: With poses.
        config: What is asked.
    """
    prefix, count = config.prefix, config.num_queries
    frames = np.concatenate(
        [np.linspace(1, prefix - 2, count), np.linspace(prefix, config.length - 1, count)]
    )
    return _measure(world, video, config, np.unique(frames.round().clip(0).astype(np.int64)), _ask)


@torch.no_grad()
def measure_rollouts(world: World, video: LatentVideo, config: RecallConfig) -> RecallScores:
    """Roll out all that follows the prefix under recorded actions, at true poses; see `measure_recall`."""
    return _measure(world, video, config, np.arange(config.prefix, config.length), roll_out)


def _measure(
    world: World, video: LatentVideo, config: RecallConfig, frames: np.ndarray, draw_frames: Draw
) -> RecallScores:
    parts = []
    starts = fixed_starts(video.lengths, config.length, config.num_clips)
    for part in np.array_split(starts, -(-len(starts) // BATCH)):
        latents, actions = video.sequences(part, config.length)
        poses = video.pose_sequences(part, config.length, on_map=world.on_level_map)
        clips = Clips(latents.float(), actions, poses, torch.from_numpy(part.astype(np.int64)))
        parts.append(_measure_clips(world, clips, config, frames, draw_frames))
    return RecallScores(
        {name: np.concatenate([part.by_state[name] for part in parts]) for name in parts[0].by_state},
        np.concatenate([part.is_watched for part in parts]),
        np.concatenate([part.is_seen for part in parts]),
    )


def _measure_clips(
    world: World, clips: Clips, config: RecallConfig, frames: np.ndarray, draw_frames: Draw
) -> RecallScores:
    kept, prefix = clips.watched(world, config.prefix), config.prefix
    memories = {
        "kept": kept,
        "emptied": replace(kept, matrices=torch.zeros_like(kept.matrices)),
        "swapped": replace(kept, matrices=kept.matrices.roll(1, 1)),
    }
    novelty = world.config.sampler.write_novelty
    sampler = SamplerConfig(num_steps=config.num_steps, write_novelty=novelty)
    drawn = {name: draw_frames(world, clips, each, frames, sampler) for name, each in memories.items()}
    if draw_frames is _ask:
        for label, name in (("misled", "kept"), ("misled_emptied", "emptied")):
            drawn[label] = _ask(world, clips, _misled(memories[name]), frames, sampler, alone=False)
    if draw_frames is roll_out and world.odometry is not None:
        own = replace(clips, are_told=False)
        drawn["followed"] = roll_out(world, own, own.watched(world, prefix), frames, sampler)
    distance, angle = pose_distances(clips.poses[:, frames, None], clips.poses[:, None, :prefix])
    nearest, best = (distance / NEAR[0]).maximum(angle / NEAR[1]).min(-1)  # [B, Q]
    rows = torch.arange(len(clips.seeds), device=best.device)[:, None]
    drawn["copied"] = clips.latents[rows, best]
    truth = clips.latents[:, frames]
    is_watched = np.broadcast_to(frames < prefix, nearest.shape)
    scores = {name: _decoded_psnr(world, each, truth) for name, each in drawn.items()}
    return RecallScores(scores, is_watched, (nearest <= 1).cpu().numpy() & ~is_watched)


def _decoded_psnr(world: World, latents: Tensor, truth: Tensor) -> np.ndarray:
    """Return the PSNR of frames `[B, Q, C, h, w]` as the codec shows them, `[B, Q]`."""
    decode = world.codec.decode
    pairs = zip(latents.unbind(1), truth.unbind(1), strict=True)
    return torch.stack([psnr(decode(found), decode(right)) for found, right in pairs], 1).cpu().numpy()


def _misled(memory: MemoryState) -> MemoryState:
    """Return a memory whose last frames are those of the clip before it in the batch."""
    other = memory.rows(torch.arange(len(memory.latents), device=memory.latents.device).roll(1))
    return replace(other, matrices=memory.matrices, phase=memory.phase)


def _ask(
    world: World,
    clips: Clips,
    memory: MemoryState,
    frames: np.ndarray,
    sampler: SamplerConfig,
    *,
    alone: bool = True,
) -> Tensor:
    states, drawn = memory.states_alone() if alone else memory, []
    for frame in frames.tolist():
        context = world.denoiser.observe(clips.actions[:, frame], states, pose=clips.poses[:, frame])
        drawn.append(draw(world.denoiser, clips.noise(frame), context, states, sampler)[0])
    return torch.stack(drawn, 1)


def roll_out(
    world: World, clips: Clips, memory: MemoryState, frames: np.ndarray, sampler: SamplerConfig
) -> Tensor:
    """Return `[B, Q, C, h, w]`: what a world dreams under recorded actions, as frames `[Q]` of clips."""
    drawn, clean = [], torch.zeros(len(clips.seeds), device=clips.latents.device)
    for frame in frames.tolist():
        given, actions = (world.denoiser, world.odometry), clips.actions[:, frame]
        context = belief.observe(*given, actions, memory, pose=clips.told(frame))
        dream, context = draw(world.denoiser, clips.noise(frame), context, memory, sampler)
        memory = belief.commit(*given, dream, clean, context, memory, sampler.write_novelty)
        drawn.append(dream)
    return torch.stack(drawn, 1)
