"""Teaching of sight: how brightness is read from latents, and how parts of the picture answer a step."""

# T frames of video, N pairs of frames, C h w latent size, R x K parts of a picture

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldsim.codec import FrameCodec
from worldsim.model.memory.sight import FREEDOM, POINTS, Flow, Sight

LUMA = (0.299, 0.587, 0.114)
READ_FRAMES = 768
"""From which brightness is learned to be read."""
RIDGE = 1e-3
CHUNK = 64
BATCH = 128
LEARNING_RATE = 3e-3
HIDDEN_SHARE = 0.3
"""Of the latents that tell how near parts are: with few frames they are learned by heart."""
ROUNDS = 8
USUAL_ERROR = 0.5
"""Points; a part that flies otherwise counts less."""


@torch.no_grad()
def fit_brightness(flow: Flow, codec: FrameCodec, latents: Tensor) -> None:
    """Fit how brightness is read from latents, to pictures that a codec decodes, by least squares.

    Args:
        flow: Changed in place.
        codec: On the device of the latents.
        latents: `[N, C, h, w]`; `READ_FRAMES` are enough.
    """
    size = 1 + flow.weight[0].numel()
    gram = torch.zeros(size, size, dtype=torch.float64, device=latents.device)
    right = gram[:, : POINTS**2].clone()
    for chunk in latents.float().split(CHUNK):
        images = codec.decode_images(chunk)
        bright = torch.einsum("nchw,c->nhw", images.clamp(0, 1), images.new_tensor(LUMA))
        height, width = (POINTS * size for size in chunk.shape[-2:])
        padded = codec.config.padded_size
        missing = (0, padded[1] - bright.shape[2], 0, padded[0] - bright.shape[1])
        bright = functional.pad(bright.unsqueeze(1), missing, mode="replicate")
        wanted = functional.pixel_unshuffle(functional.adaptive_avg_pool2d(bright, (height, width)), POINTS)
        seen = functional.unfold(chunk, 3, padding=1)  # [n, 9 C, h w]
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1).transpose(0, 1).flatten(1)
        wanted = wanted.transpose(0, 1).flatten(1)
        gram += seen @ seen.T
        right += seen @ wanted.T
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
    solved = torch.linalg.solve(gram + ridge, right).T.float()
    flow.weight.copy_(solved[:, :-1].unflatten(1, flow.weight.shape[1:]))
    flow.bias.copy_(solved[:, -1])


class TaughtFrames(NamedTuple):
    """Frames whose steps are known.

    Attributes:
        latents: `[T, C, h, w]`, of all frames.
        frames: `[N]`, those to learn from, with the ones before them.
        steps: `[N, 3]` fp32 in units, along and across the heading before, on the way to them.
    """

    latents: Tensor
    frames: Tensor
    steps: Tensor


def teach_sight(sight: Sight, taught: TaughtFrames, num_steps: int, seed: int) -> None:
    """Teach sight how parts answer: as usual by least squares, as here by updates.

    Args:
        sight: That reads brightness already, on the video's device; changed in place.
        taught: Video.
        num_steps: Updates.
        seed: Of what is drawn.
    """
    latents, pairs, steps = taught
    with torch.no_grad():
        parts = [sight.flow(latents[each - 1], latents[each]) for each in pairs.split(CHUNK)]
    flow, known = (torch.cat(part) for part in zip(*parts, strict=True))
    _fit_answers(sight, flow, known, steps)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(sight.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps)
    for _ in range(num_steps):
        drawn = torch.randint(len(pairs), (BATCH,), generator=generator).to(pairs.device)
        before = _hide(latents[pairs[drawn] - 1].float(), generator)
        loss = flow_loss(sight, before, flow[drawn], known[drawn], steps[drawn])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(sight.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _hide(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Return latents some of which are 0, the others larger by as much (dropout, drawn on the processor)."""
    is_kept = torch.rand(latents.shape, generator=generator) >= HIDDEN_SHARE
    return latents * is_kept.to(latents.device) / (1 - HIDDEN_SHARE)


def flow_loss(sight: Sight, before: Tensor, flow: Tensor, known: Tensor, steps: Tensor) -> Tensor:
    """Return how unlikely flows are for known displacements, by Student's t; in nats a number.

    Args:
        sight: Learns.
        before: `[B, C, h, w]`, latents.
        flow: `[B, 2, R, K]` in points.
        known: `[B, 2, R, K]`, of `Flow`.
        steps: `[B, 3]` in units.
    """
    answers, scale = sight.responses(before, known)
    errors = flow - torch.einsum("bcirk,bi->bcrk", answers, steps)
    errors = errors - torch.einsum("crk,b->bcrk", sight.bends, steps[:, 2].square())
    unlikely = scale + (FREEDOM + 1) / 2 * (errors * (-scale).exp()).square().div(FREEDOM).log1p()
    is_found = known.isfinite()
    return torch.where(is_found, unlikely, 0.0).sum() / is_found.sum()


@torch.no_grad()
def _fit_answers(sight: Sight, flow: Tensor, known: Tensor, steps: Tensor) -> None:
    """Fit the usual flow of each part for each displacement, by least squares of what is found."""
    steps = torch.cat([steps, steps[:, 2:].square()], dim=1)
    solved = flow.new_zeros(*flow.shape[1:], 4)
    weight, ridge = known.exp(), torch.eye(4, device=flow.device)  # 0 where nothing is found
    for _ in range(ROUNDS):
        gram = torch.einsum("ncrk,ni,nj->crkij", weight, steps, steps)
        right = torch.einsum("ncrk,ncrk,ni->crki", weight, flow, steps)
        usual = gram.diagonal(dim1=-2, dim2=-1).mean().clamp_min(1e-6)  # 0 where nobody moves
        solved = torch.linalg.solve(gram + 1e-3 * usual * ridge, right)
        errors = flow - torch.einsum("crki,ni->ncrk", solved, steps)
        weight = known.exp() / (1 + (errors / USUAL_ERROR).square())
    sight.answers.copy_(solved[..., :3].permute(0, 3, 1, 2))
    sight.bends.copy_(solved[..., 3])
