"""Critic of clips: the world's own network over their frames, with logits of places and of the whole."""

# B clips, T frames, N tokens per frame, D model width, K depths, C h w latent size, A action axes

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldsim.model.block import Residual
from worldsim.model.denoiser import Denoiser
from worldsim.model.linear import at_least_fp32, embed_patches
from worldsim.model.memory.motion import departures
from worldsim.model.memory.state import MemoryState
from worldsim.model.segments import split_memory

DEPTHS, HIDDEN, HEADS = 3, 128, 4
LONGEST_PERIOD = 1024.0


class Logits(NamedTuple):
    """What a critic says of clips; more is more real.

    Attributes:
        patches: `[B, K, T, N]`, of each token, from features of three depths.
        video: `[B]`, of a clip as a whole.
    """

    patches: Tensor
    video: Tensor

    def total(self) -> Tensor:
        """Return one logit for each clip, `[B]`: the mean over all places, plus that of the whole."""
        return self.patches.mean(dim=(1, 2, 3)) + self.video


class VideoHead(nn.Module):
    """One logit of a clip: a learned query reads the tokens of all its frames at once (arXiv 2606.03972).

    Nothing is causal here: how much a frame counts depends on those after it. A critic that judges frame by
    frame, each by what came before, is content with a picture that stands still.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.randn(HEADS, dim // HEADS))
        self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return `[B]` of tokens `[B, T, N, D]`."""
        x = self.norm(tokens) + frame_numbers(tokens.shape[1], tokens.shape[-1], tokens.device)[:, None]
        x = x.flatten(1, 2)  # [B, T * N, D]
        k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.key, self.value))
        q = self.query[None, :, None].expand(len(x), -1, -1, -1)  # [B, HEADS, 1, D / HEADS]
        read = functional.scaled_dot_product_attention(q, k, v)
        return self.out(read.flatten(1)).squeeze(-1)


class Critic(nn.Module):
    """Tell recorded clips from drawn ones, both under the same noise, actions and frames before.

    The network runs once over the noisy frames: each is judged after what the noisy ones before it wrote, in
    a recycled model after what the passes over them wrote.

    Args:
        denoiser: Whose copy the critic begins as.
        is_frozen: Train the heads alone.

    Attributes:
        depths: The layers, by number, whose tokens are judged.
    """

    def __init__(self, denoiser: Denoiser, *, is_frozen: bool = False) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(denoiser).requires_grad_(not is_frozen)
        for unused in (self.trunk.head, self.trunk.outcome):  # a critic predicts no velocity
            if unused is not None:
                unused.requires_grad_(False)
        count, dim = denoiser.config.num_layers, denoiser.config.dim
        self.depths = sorted({max(0, count * (part + 1) // DEPTHS - 1) for part in range(DEPTHS)})
        self.patches = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))
            for _ in self.depths
        )
        self.video = VideoHead(dim)

    def forward(
        self,
        latents: Tensor,
        noisy: Tensor,
        levels: Tensor,
        actions: Tensor,
        memory: MemoryState,
        poses: Tensor | None = None,
    ) -> Logits:
        """Judge clips.

        Args:
            latents: `[B, T, C, h, w]`, the clean frames: what the path of the memory follows.
            noisy: The same frames under noise: what is judged.
            levels: `[B]`, the noise level of a clip.
            actions: `[B, T, A]`.
            memory: State before the first frame.
            poses: `[B, T, 3]`, where frames are seen from; for keys of poses.

        Returns:
            The logits, fp32.
        """
        tokens = self.tokens(latents, noisy, levels, actions, memory, poses)
        with torch.autocast(noisy.device.type, enabled=False):  # differences of logits need their digits
            wide = [each.float() for each in tokens]
            heads = zip(self.patches, wide, strict=True)
            patches = torch.stack([head(each).squeeze(-1) for head, each in heads], dim=1)
            return Logits(patches, self.video(wide[-1]))

    def tokens(
        self,
        latents: Tensor,
        noisy: Tensor,
        levels: Tensor,
        actions: Tensor,
        memory: MemoryState,
        poses: Tensor | None = None,
    ) -> list[Tensor]:
        """Return the tokens after each of the depths, `[B, T, N, D]`; arguments as for `forward`."""
        trunk = self.trunk
        action = trunk.embed_actions(actions)  # [B, T, D]
        first = memory.latents.to(noisy.dtype)[:, None]
        clean_before, before = (torch.cat([first, x[:, :-1]], dim=1) for x in (latents.detach(), noisy))
        phases, arrived = trunk.path_phases(clean_before, latents.detach(), action, memory, poses)
        rotary = trunk.rotary(phases, range(noisy.shape[1]), departures(arrived, memory))
        time = (trunk.embed_time(levels)[:, None] + action).unsqueeze(2)  # [B, T, 1, D]
        conditioning = at_least_fp32(trunk.time_projection(time)).unflatten(-1, (6, -1))
        x = embed_patches(noisy.unsqueeze(2), trunk.patch_embedding)  # [B, T, 1, N, D]
        residual = Residual(x + trunk.embed_given(before.unsqueeze(2), phases.unsqueeze(2)))
        found: list[Tensor] = []
        states = split_memory(trunk.layers(), memory, residual.x)
        for index, (block, state) in enumerate(zip(trunk.layers(), states, strict=True)):
            residual, _ = block(residual, conditioning, state, rotary)
            if index in self.depths:
                found.append(residual.total().squeeze(2))
        return found


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Compute without gradients for a module's parameters, but through it, until the end of the block."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def frame_numbers(count: int, dim: int, device: torch.device) -> Tensor:
    """Return sines and cosines of the numbers of frames, `[count, dim]`."""
    rates = LONGEST_PERIOD ** -(torch.arange(dim // 2, device=device) / (dim // 2))
    angles = torch.arange(count, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
