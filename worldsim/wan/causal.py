"""The causal form: blocks of latent frames, one after another, which see a window of past keys and values."""

# B batch, N tokens per frame, H heads, D head width

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from worldsim.errors import WorldError
from worldsim.wan.config import PATCH, CausalConfig
from worldsim.wan.layers import Kept, Pair, Past, Reserved, Writes, wide
from worldsim.wan.schedule import clean_from, noised, step_sigmas, times
from worldsim.wan.transformer import TextContext, WanTransformer


@dataclass(frozen=True, slots=True)
class FrameCache:
    """Keys and values that the next block sees, a value: no function writes into one.

    Keys are turned by their frames' places in the video. Frames of the sink come first, then the latest, the
    last one last. With a window there are places for all frames that it holds, and rows may be of different
    ages: what has no frame yet is not seen. Without one the cache grows.
    """

    pairs: tuple[Pair | Reserved, ...] | None = None
    """Of each layer but hybrid ones, `[B, places * N, H, D]`; None before the first block."""
    matrices: tuple[Tensor, ...] = ()
    """Of each hybrid layer, `[B, H, D, D]`, at least fp32; none before the first block."""
    frames: Tensor | None = None
    """`[B]` int64, latent frames committed so far, the next one's place in the video; None for none."""

    @property
    def num_bytes(self) -> int:
        """Size of all keys, values and matrices."""
        pairs = sum(
            pair.nbytes if isinstance(pair, Reserved) else pair[0].nbytes + pair[1].nbytes
            for pair in self.pairs or ()
        )
        return pairs + sum(matrix.nbytes for matrix in self.matrices)

    def by_layer(self, model: WanTransformer) -> tuple[Past, ...] | None:
        """Return what each layer sees; None before the first block."""
        if self.pairs is None:
            return None
        pairs, matrices, hybrid = iter(self.pairs), iter(self.matrices), model.config.hybrid_layers
        return tuple(next(matrices if n in hybrid else pairs) for n in range(model.config.num_layers))


def reserved_cache(model: WanTransformer, frames: int, tokens_per_frame: int) -> FrameCache:
    """Return the empty cache of one video, with room for so many latent frames, all of which are seen."""
    config, like = model.config, model.patch_embedding.weight
    shape = (1, frames * tokens_per_frame, config.num_heads, config.head_width)
    num_hybrid = len(config.hybrid_layers)
    pairs = tuple(
        Reserved(like.new_zeros(shape), like.new_zeros(shape), 0)
        for _ in range(config.num_layers - num_hybrid)
    )
    matrix = wide(like.new_zeros(1, config.num_heads, config.head_width, config.head_width))
    return FrameCache(pairs, (matrix,) * num_hybrid, torch.zeros(1, dtype=torch.int64))


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
    actions: Tensor | None = None,
) -> Tensor:
    """Return the velocity of the next block, `[B, channels, frames, height, width]` as `latents`.

    Args:
        latents: Noisy latents of the block; the first block of a video may be shorter than others.
        time: 0 to 1000, `[B]` or `[B, frames]`.
        text: From `WanTransformer.embed_text`.
        cache: Of the blocks before.
        actions: `[B, A]` int64, what is pressed during the block, in a model with buttons.

    Raises:
        WorldError: If the block has another number of frames, or other shapes do not fit.
    """
    return _run(model, latents, time, text, cache, config, actions)[0]


def commit_block(
    model: WanTransformer,
    clean: Tensor,
    text: TextContext,
    cache: FrameCache,
    config: CausalConfig,
    actions: Tensor | None = None,
) -> FrameCache:
    """Return the cache behind a finished block, `[B, channels, frames, height, width]`: a pass at time 0.

    Raises:
        WorldError: If the block has another number of frames, or other shapes do not fit.
    """
    time = torch.zeros(clean.shape[0], dtype=torch.float64, device=clean.device)
    new = _run(model, clean, time, text, cache, config, actions)[1]
    frames, before = clean.shape[2], _ages(cache, len(clean))
    places = _places(before, frames, config).to(clean.device)
    past = cache.by_layer(model) or (None,) * len(new)
    pairs: list[Pair | Reserved] = []
    matrices: list[Tensor] = []
    for old, kept in zip(past, new, strict=True):
        if isinstance(kept, Writes):
            width = kept.keys.shape[-1]
            empty = kept.keys.new_zeros(len(clean), kept.keys.shape[2], width, width)
            matrices.append(kernels.commit(*kept, old if isinstance(old, Tensor) else empty))
        elif isinstance(old, Reserved):
            pairs.append(old.after(kept))
        else:
            keys, values = old if isinstance(old, tuple) else (None, None)
            given = (frames, places, config)
            pairs.append((_pushed(keys, kept[0], *given), _pushed(values, kept[1], *given)))
    return FrameCache(tuple(pairs), tuple(matrices), before + frames)


def generate_block(
    model: WanTransformer,
    noise: Tensor,
    text: TextContext,
    cache: FrameCache,
    config: CausalConfig,
    fresh: Tensor | None = None,
    actions: Tensor | None = None,
) -> Tensor:
    """Return the next block's clean latents, as `noise` `[B, channels, frames, height, width]`.

    Each step estimates the clean latents; the next one starts from them with fresh noise, as few-step
    checkpoints were trained.

    Args:
        noise: Standard normal; the first step starts from it.
        fresh: Standard normal noise of the later steps, `[steps - 1, *noise.shape]`; none for a single step.
        actions: See `block_velocity`.

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
        clean = clean_from(x, block_velocity(model, x, time, text, cache, config, actions), sigma)
    return clean


def _run(
    model: WanTransformer,
    latents: Tensor,
    time: Tensor,
    text: TextContext,
    cache: FrameCache,
    config: CausalConfig,
    actions: Tensor | None,
) -> tuple[Tensor, tuple[Kept, ...]]:
    frames = latents.shape[2] if latents.ndim == 5 else 0
    is_first = cache.pairs is None
    if frames != config.block and not (is_first and 0 < frames < config.block):
        first = f"1 to {config.block} of the first, or " if is_first else ""
        raise WorldError(f"a block has {first}{config.block} latent frames, got {list(latents.shape)}")
    ages = _ages(cache, len(latents))
    tokens = latents.shape[3] * latents.shape[4] // PATCH**2
    visible = None if is_first else _visible(ages, frames, tokens, config)
    visible = None if visible is None else visible.to(latents.device)
    return model.run(
        latents, time, text, first_frame=ages, past=cache.by_layer(model), visible=visible, actions=actions
    )


def _ages(cache: FrameCache, batch_size: int) -> Tensor:
    """Return how many frames each video has, `[B]` int64 on the CPU."""
    return torch.zeros(batch_size, dtype=torch.int64) if cache.frames is None else cache.frames.cpu()


def _visible(ages: Tensor, frames: int, tokens: int, config: CausalConfig) -> Tensor | None:
    """Return which cached tokens, and the block's own, are seen, `[B, 1, 1, tokens]` bool; None for all."""
    sink, kept = config.sink, config.kept
    if kept is None or bool((ages >= sink + kept).all()):
        return None
    number = _numbers(ages, kept)
    filled = torch.cat([torch.arange(sink) < ages[:, None], number >= sink], dim=1)
    seen = F.pad(filled, (0, frames), value=True).repeat_interleave(tokens, dim=1)
    return seen[:, None, None]


def _numbers(ages: Tensor, kept: int) -> Tensor:
    """Return the places in the video of the latest frames, `[B, kept]`; below 0 where there is none."""
    return ages[:, None] - kept + torch.arange(kept)


def _places(ages: Tensor, frames: int, config: CausalConfig) -> Tensor:
    """Return where each cached frame behind a block is, `[B, places]`, among those before it and its own."""
    sink, kept = config.sink, config.kept
    if kept is None:
        return torch.arange(int(ages[0]) + frames).expand(len(ages), -1)
    number = torch.arange(sink).expand(len(ages), -1)
    own = sink + kept + number - ages[:, None]
    first = torch.where((number >= ages[:, None]) & (number < ages[:, None] + frames), own, number)
    # The latest are those before it moved on, and its own behind them.
    return torch.cat([first, sink + frames + torch.arange(kept).expand(len(ages), -1)], dim=1)


def _pushed(old: Tensor | None, new: Tensor, frames: int, places: Tensor, config: CausalConfig) -> Tensor:
    """Return keys or values of the cached frames, `[B, places * N, H, D]`, with those of a block."""
    block = new.unflatten(1, (frames, -1))
    if old is None:
        empty = 0 if config.kept is None else config.sink + config.kept
        cached = block.new_zeros(len(block), empty, *block.shape[2:])
    else:
        cached = old.unflatten(1, (-1, block.shape[2]))
    rows = torch.arange(len(block), device=block.device)[:, None]
    return torch.cat([cached, block], dim=1)[rows, places].flatten(1, 2)
