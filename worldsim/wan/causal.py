"""The causal form: blocks of latent frames, one after another, which see a window of past keys and values."""

# B batch, N tokens per frame, H heads, D head width

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.wan.config import CausalConfig
from worldsim.wan.layers import Pair
from worldsim.wan.schedule import clean_from, noised, step_sigmas, times
from worldsim.wan.transformer import TextContext, WanTransformer


@dataclass(frozen=True, slots=True)
class FrameCache:
    """Keys and values that the next block sees, a value: no function writes into one.

    Keys are turned by their frames' places in the video. Frames of the sink come first, the latest last.
    """

    pairs: tuple[Pair, ...] | None = None
    """Of each layer, `[B, frames * N, H, D]`; None before the first block."""
    frames: int = 0
    """Latent frames committed so far; the next one's place in the video."""

    @property
    def num_bytes(self) -> int:
        """Size of all keys and values."""
        return sum(tensor.nbytes for pair in self.pairs or () for tensor in pair)


def visible_frames(frames: int, config: CausalConfig) -> Tensor:
    """Return which frames (columns) each frame (row) sees, `[frames, frames]` bool.

    Where the number of frames is no multiple of a block, the first block is the shorter one.
    """
    number = torch.arange(frames)
    first = frames % config.block
    end = (number - first).div(config.block, rounding_mode="floor").add(1).mul(config.block).add(first)
    start = torch.zeros_like(end) if config.kept is None else end - config.block - config.kept
    before_end = number[None] < end[:, None]
    return before_end & ((number[None] >= start[:, None]) | (number[None] < config.sink))


def block_velocity(
    model: WanTransformer,
    latents: Tensor,
    time: Tensor,
    text: TextContext,
    cache: FrameCache,
    config: CausalConfig,
) -> Tensor:
    """Return the velocity of the next block, `[B, channels, frames, height, width]` as `latents`.

    Args:
        latents: Noisy latents of the block; the first block of a video may be shorter than others.
        time: 0 to 1000, `[B]` or `[B, frames]`.
        text: From `WanTransformer.embed_text`.
        cache: Of the blocks before.

    Raises:
        WorldError: If the block has another number of frames, or other shapes do not fit.
    """
    return _run(model, latents, time, text, cache, config)[0]


def commit_block(
    model: WanTransformer,
    clean: Tensor,
    text: TextContext,
    cache: FrameCache,
    config: CausalConfig,
) -> FrameCache:
    """Return the cache behind a finished block, `[B, channels, frames, height, width]`: a pass at time 0.

    Raises:
        WorldError: If the block has another number of frames, or other shapes do not fit.
    """
    time = torch.zeros(clean.shape[0], dtype=torch.float64, device=clean.device)
    pairs = _run(model, clean, time, text, cache, config)[1]
    tokens = pairs[0][0].shape[1] // clean.shape[2]
    if cache.pairs is not None:
        joined = zip(cache.pairs, pairs, strict=True)
        pairs = tuple((torch.cat([a[0], b[0]], 1), torch.cat([a[1], b[1]], 1)) for a, b in joined)
    kept = tuple((_forget(k, tokens, config), _forget(v, tokens, config)) for k, v in pairs)
    return FrameCache(kept, cache.frames + clean.shape[2])


def generate_block(
    model: WanTransformer,
    noise: Tensor,
    text: TextContext,
    cache: FrameCache,
    config: CausalConfig,
    fresh: Tensor | None = None,
) -> Tensor:
    """Return the next block's clean latents, as `noise` `[B, channels, frames, height, width]`.

    Each step estimates the clean latents; the next one starts from them with fresh noise, as few-step
    checkpoints were trained.

    Args:
        noise: Standard normal; the first step starts from it.
        fresh: Standard normal noise of the later steps, `[steps - 1, *noise.shape]`; none for a single step.

    Raises:
        WorldError: If shapes do not fit.
    """
    sigmas = step_sigmas(config)
    if len(sigmas) > 1 and (fresh is None or fresh.shape != (len(sigmas) - 1, *noise.shape)):
        raise WorldError(
            f"{len(sigmas)} steps need fresh noise [{len(sigmas) - 1}, *{list(noise.shape)}], "
            f"got {None if fresh is None else list(fresh.shape)}"
        )
    x = clean = noise
    for index, sigma in enumerate(sigmas.tolist()):
        if index and fresh is not None:
            x = noised(clean, fresh[index - 1], sigma)
        time = times(torch.full((x.shape[0],), sigma, dtype=torch.float64, device=x.device))
        clean = clean_from(x, block_velocity(model, x, time, text, cache, config), sigma)
    return clean


def _run(
    model: WanTransformer,
    latents: Tensor,
    time: Tensor,
    text: TextContext,
    cache: FrameCache,
    config: CausalConfig,
) -> tuple[Tensor, tuple[Pair, ...]]:
    frames = latents.shape[2] if latents.ndim == 5 else 0
    if frames != config.block and (cache.frames or not 0 < frames < config.block):
        first = "" if cache.frames else f"1 to {config.block} of the first, or "
        raise WorldError(f"a block has {first}{config.block} latent frames, got {list(latents.shape)}")
    return model.run(latents, time, text, first_frame=cache.frames, past=cache.pairs)


def _forget(tensor: Tensor, tokens: int, config: CausalConfig) -> Tensor:
    """Return what the next block sees of the `[B, frames * N, H, D]` keys or values of all frames."""
    sink, kept, held = config.sink, config.kept, tensor.shape[1] // tokens
    if kept is None or held <= sink + kept:
        return tensor
    return torch.cat([tensor[:, : sink * tokens], tensor[:, (held - kept) * tokens :]], dim=1)
