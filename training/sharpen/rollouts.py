"""Roll-outs of a world within its own training: frames that it draws one after the other, one pass each."""

# B clips, F watched frames, T drawn frames, C h w latent size, A action axes

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.sharpen.settings import RolloutConfig
from worldsim.model.denoiser import Denoiser
from worldsim.model.memory.state import MemoryState
from worldsim.model.segments import check_constant_memory, merge_memory
from worldsim.sampler import SamplerConfig, draw

POOL = 4
"""Side of the cells over which latents are averaged where only what is coarse counts."""


def pooled(latents: Tensor, side: int = POOL) -> Tensor:
    """Return the means of latents `[..., C, h, w]` over cells; those at the edge may be smaller."""
    small = functional.avg_pool2d(latents.flatten(0, -4), side, ceil_mode=True)
    return small.unflatten(0, latents.shape[:-3])


@torch.no_grad()
def watch_clips(
    denoiser: Denoiser, latents: Tensor, actions: Tensor, noise: Tensor, poses: Tensor | None = None
) -> MemoryState:
    """Return the memory after clean frames, all frames at once.

    Args:
        denoiser: The world's network, of constant memory.
        latents: `[B, F, C, h, w]`.
        actions: `[B, F, A]` int64, the action that led to each.
        noise: `[B, F, C, h, w]`, what the passes of a recycled model begin from; others ask for none.
        poses: `[B, F, 3]`, where frames are seen from; for keys of poses.
    """
    check_constant_memory(denoiser.config)
    levels = torch.zeros(*latents.shape[:2], 2, device=latents.device)
    empty = denoiser.initial_memory(len(latents))
    if denoiser.config.recycled:
        passed = denoiser.run_sequences(latents, None, levels, actions, empty, noise=noise, poses=poses)
    else:
        passed = denoiser.run_sequences(latents, latents, levels, actions, empty, poses=poses)
    return merge_memory(empty, passed, latents)


def roll_out(
    denoiser: Denoiser,
    memory: MemoryState,
    actions: Tensor,
    noise: Tensor,
    commit_noise: Tensor,
    sampler: SamplerConfig,
    *,
    num_watched: int,
    gradient_frames: int = 1,
    poses: Tensor | None = None,
) -> Tensor:
    """Draw frames as play does, each after those before it.

    The frame before is given to a pass without gradients, and so is the state, but within `gradient_frames`
    consecutive frames: backward costs no more for the last frame than for the first.

    Args:
        denoiser: The world's network.
        memory: State before the first frame.
        actions: `[B, T, A]` int64, the action that leads to each frame.
        noise: `[B, T, C, h, w]`, standard normal, of which frames are drawn.
        commit_noise: Same shape, of which `sampler.commit_level` is mixed into what is committed.
        sampler: How a frame is drawn.
        num_watched: Frames committed before, in all rows.
        gradient_frames: Frames through whose state gradients flow; 1 is none beside the frame's own.
        poses: `[B, T, 3]`, where frames are seen from; for keys of poses.

    Returns:
        Latents `[B, T, C, h, w]`, each with the gradient of the pass that drew it.
    """
    frames, count, level = [], noise.shape[1], sampler.commit_level
    levels = torch.full((len(noise),), level, device=noise.device)
    for index in range(count):
        # Known without asking the device, which would have to finish first.
        is_full = not denoiser.config.window_layers or num_watched + index > denoiser.config.window
        pose = None if poses is None else poses[:, index]
        context = denoiser.observe(actions[:, index], memory, is_full, pose)
        latents, context = draw(denoiser, noise[:, index], context, memory, sampler)
        frames.append(latents)
        if index + 1 == count:
            break
        clean = (1 - level) * latents.detach() + level * commit_noise[:, index]
        goes_on = (index + 1) % gradient_frames != 0
        with torch.set_grad_enabled(goes_on and torch.is_grad_enabled()):
            memory = denoiser.commit(clean, levels, context, memory, sampler.write_novelty)
        memory = memory if goes_on else memory.map(lambda _, tensor: tensor.detach())
    return torch.stack(frames, dim=1)


@dataclass(frozen=True, slots=True)
class Clips:
    """Clips of which the first frames were watched.

    Attributes:
        memory: After those, without gradients.
        real: `[B, T, C, h, w]` fp32, what followed.
        actions: `[B, T, A]`, what led to it.
        poses: `[B, T, 3]`, where it is seen from; None but for keys of poses.
    """

    memory: MemoryState
    real: Tensor
    actions: Tensor
    poses: Tensor | None = None

    def repeat(self, count: int) -> Clips:
        """Return the clips `count` times, one after the other."""
        memory = MemoryState.join([self.memory] * count)
        poses = None if self.poses is None else self.poses.repeat(count, 1, 1)
        return Clips(memory, self.real.repeat(count, 1, 1, 1, 1), self.actions.repeat(count, 1, 1), poses)


class OwnFrames(nn.Module):
    """A world that draws its own frames: what the objectives share.

    Args:
        denoiser: What learns.
        config: The clips.
        sampler: The world's; frames are drawn in one step of it.
    """

    def __init__(self, denoiser: Denoiser, config: RolloutConfig, sampler: SamplerConfig) -> None:
        super().__init__()
        self.denoiser, self.config = denoiser, config
        self.sampler = replace(sampler, num_steps=1)

    def watched(
        self, latents: Tensor, actions: Tensor, generator: torch.Generator, poses: Tensor | None = None
    ) -> Clips:
        """Watch the first frames of clips `[B, F + T, C, h, w]`; actions `[B, F + T, A]`, poses as many."""
        latents, count = latents.float(), self.config.prefix_frames
        real = latents[:, :count]
        noise = torch.randn(real.shape, generator=generator, device=real.device)
        seen, later = (None, None) if poses is None else (poses[:, :count], poses[:, count:])
        memory = watch_clips(self.denoiser, real, actions[:, :count], noise, seen)
        return Clips(memory, latents[:, count:], actions[:, count:], later)

    def draw(self, clips: Clips, generator: torch.Generator) -> Tensor:
        """Return what is drawn after what was watched, `[B, T, C, h, w]`."""
        noise, commit_noise = (
            torch.randn(clips.real.shape, generator=generator, device=clips.real.device) for _ in range(2)
        )
        return roll_out(
            self.denoiser,
            clips.memory,
            clips.actions,
            noise,
            commit_noise,
            self.sampler,
            num_watched=self.config.prefix_frames,
            gradient_frames=self.config.gradient_frames,
            poses=clips.poses,
        )

    def draw_each(self, clips: Clips, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return `count` independent draws of each clip, `[B, T, C, h, w]` fp32 each."""
        return self.draw(clips.repeat(count), generator).float().chunk(count)


def reach_all(module: nn.Module) -> Tensor:
    """Return 0 with a gradient of 0 for each trained parameter of a module.

    Devices exchange the gradients of all parameters, and wait for those that a loss does not reach: drawing
    one frame reads no state that the same pass would have written.
    """
    return torch.stack([p.flatten()[0].float() for p in module.parameters() if p.requires_grad]).sum() * 0
