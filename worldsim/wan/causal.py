"""The causal form: blocks of latent frames, one after another, which see a window of past keys and values."""

# B batch, N tokens per frame, H heads, D head width

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

import kernels
from worldsim.errors import WorldError
from worldsim.model.memory.frame_ring import FrameRing, RingShape
from worldsim.wan.config import PATCH, CausalConfig
from worldsim.wan.layers import Pair, Past, Places, Reserved, Writes, behind, wide
from worldsim.wan.schedule import clean_from, noised, step_sigmas, times
from worldsim.wan.transformer import TextContext, WanTransformer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FrameCache:
    """Keys and values that the next block sees, a value: what it shows is never written to.

    Keys are turned by their frames' places in the video. A window is a ring, whose rows may be of different
    ages: what has no frame yet is not seen. Without one the cache grows. The empty cache has neither.
    """

    ring: FrameRing | None = None
    """Of all layers but hybrid ones, where there is a window."""
    pairs: tuple[Pair | Reserved, ...] = ()
    """Of each layer but hybrid ones, `[B, frames * N, H, D]`, where all frames are seen."""
    matrices: tuple[Tensor, ...] = ()
    """Of each hybrid layer, `[B, H, D, D]`, at least fp32."""
    frames: Tensor | None = None
    """`[B]` int64, latent frames committed so far, the next one's place in the video; None for none."""
    is_full: bool | None = None
    """Whether all rows see all places of the ring; None asks the device, and waits for it."""

    @property
    def num_bytes(self) -> int:
        """Size of all keys, values and matrices that are seen; a ring has room for a block more."""
        pairs = sum(
            pair.nbytes if isinstance(pair, Reserved) else pair[0].nbytes + pair[1].nbytes
            for pair in self.pairs
        )
        ring = 0 if self.ring is None else self.ring.nbytes
        return pairs + ring + sum(matrix.nbytes for matrix in self.matrices)

    def alone(self) -> AbstractContextManager[None]:
        """Keep other threads from the ring inside the block; see `FrameRing.alone`."""
        return nullcontext() if self.ring is None else self.ring.alone()

    def by_layer(self, model: WanTransformer, count: int) -> tuple[Past, ...] | None:
        """Return what each layer sees beside a block of `count` frames; None before the first block.

        The pass over the block writes its own keys and values behind it.
        """
        if self.frames is None:
            return None
        seen: Iterator[Past] = iter(self.pairs if self.ring is None else self._places(self.ring, count))
        matrices, hybrid = iter(self.matrices), model.config.hybrid_layers
        return tuple(next(matrices) if n in hybrid else next(seen) for n in range(model.config.num_layers))

    def _places(self, ring: FrameRing, count: int) -> Iterator[Places]:
        assert self.frames is not None, "a ring begins with the first block"
        ring.claim()
        own = ring.shape.own_places(self.frames, count)
        return (Places(*pair, own) for pair in zip(ring.keys, ring.values, strict=True))

    def visible(self, tokens: int) -> Tensor | None:
        """Return which tokens of the ring are seen, `[B, 1, 1, places * tokens]` bool; None for all."""
        if self.ring is None or self.frames is None or self.is_full:
            return None
        shape = self.ring.shape
        if self.is_full is None and bool((self.frames >= shape.sink + shape.kept).all()):
            return None
        return shape.visible(self.frames)[..., None].expand(-1, -1, tokens).flatten(1)[:, None, None]


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
    none = torch.zeros(1, dtype=torch.int64, device=like.device)
    return FrameCache(pairs=pairs, matrices=(matrix,) * num_hybrid, frames=none)


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
    *,
    is_fused: bool = False,
) -> Tensor:
    """Return the velocity of the next block, `[B, channels, frames, height, width]` as `latents`.

    Args:
        latents: Noisy latents of the block; the first block of a video may be shorter than others.
        time: 0 to 1000, `[B]` or `[B, frames]`.
        text: From `WanTransformer.embed_text`.
        cache: Of the blocks before.
        actions: `[B, A]` int64, what is pressed during the block, in a model with buttons.
        is_fused: Compile layers, where possible, for these shapes; see `WanBlock.forward`.

    Raises:
        WorldError: If the block has another number of frames, or other shapes do not fit.
    """
    given = (latents, time, text, cache, config, actions)
    return _passed(model.velocity, model, *given, is_fused=is_fused)[0]


def commit_block(
    model: WanTransformer,
    clean: Tensor,
    text: TextContext,
    cache: FrameCache,
    config: CausalConfig,
    actions: Tensor | None = None,
    *,
    is_fused: bool = False,
) -> FrameCache:
    """Return the cache behind a finished block, `[B, channels, frames, height, width]`: a pass at time 0.

    `is_fused` is that of `block_velocity`.

    Raises:
        WorldError: If the block has another number of frames, or other shapes do not fit.
    """
    time = torch.zeros(clean.shape[0], dtype=torch.float64, device=clean.device)
    with cache.alone():  # until what was written belongs to a state
        given = (clean, time, text, cache, config, actions)
        new, past = _passed(model.remember, model, *given, is_fused=is_fused)
        ring = None if cache.ring is None else cache.ring.after()  # the pass has written into it
    before = _ages(cache, clean)
    pairs: list[Pair | Reserved] = []
    matrices: list[Tensor] = []
    window: list[Pair] = []
    for old, kept in zip(past or (None,) * len(new), new, strict=True):
        if isinstance(kept, Writes):
            width = kept.keys.shape[-1]
            empty = kept.keys.new_zeros(len(clean), kept.keys.shape[2], width, width)
            matrices.append(kernels.commit(*kept, old if isinstance(old, Tensor) else empty))
        elif isinstance(old, Reserved):
            pairs.append(old.after(kept))
        elif config.kept is None:
            pairs.append(behind(old, kept) if isinstance(old, tuple) else kept)
        else:
            window.append(kept)
    if cache.ring is None and window:
        ring = _ring_of(window, before, clean.shape[2], config)
    return FrameCache(ring, tuple(pairs), tuple(matrices), before + clean.shape[2], cache.is_full or None)


def ring_shape(config: CausalConfig) -> RingShape:
    """Return the places of a model's window.

    Raises:
        WorldError: If it sees all frames.
    """
    if config.kept is None:
        raise WorldError("a model that sees all frames keeps them all, and has no window")
    return RingShape(config.sink, config.kept, config.block)


def _ring_of(window: list[Pair], before: Tensor, count: int, config: CausalConfig) -> FrameRing:
    """Return the ring behind a video's first block, of which the layers' keys and values are given."""
    like, shape = window[0][0], ring_shape(config)
    tokens, *head = like.shape[1:]
    sizes = (len(window), len(like), tokens // count, head[0], head[1])
    ring = FrameRing.empty(shape, sizes, like.dtype, like.device)
    own = shape.own_places(before, count)
    for keys, values, pair in zip(ring.keys, ring.values, window, strict=True):
        Places(keys, values, own).behind(pair)
    return ring.after()


def generate_block(
    model: WanTransformer,
    noise: Tensor,
    text: TextContext,
    cache: FrameCache,
    config: CausalConfig,
    fresh: Tensor | None = None,
    actions: Tensor | None = None,
    *,
    is_fused: bool = False,
) -> Tensor:
    """Return the next block's clean latents, as `noise` `[B, channels, frames, height, width]`.

    Each step estimates the clean latents; the next one starts from them with fresh noise, as few-step
    checkpoints were trained.

    Args:
        noise: Standard normal; the first step starts from it.
        fresh: Standard normal noise of the later steps, `[steps - 1, *noise.shape]`; none for a single step.
        actions: See `block_velocity`, as for `is_fused`.

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
        velocity = block_velocity(model, x, time, text, cache, config, actions, is_fused=is_fused)
        clean = clean_from(x, velocity, sigma)
    return clean


def _passed(
    run: Callable[..., T],
    model: WanTransformer,
    latents: Tensor,
    time: Tensor,
    text: TextContext,
    cache: FrameCache,
    config: CausalConfig,
    actions: Tensor | None,
    *,
    is_fused: bool,
) -> tuple[T, tuple[Past, ...] | None]:
    """Return what one of the model's passes makes of a block, and what each layer sees beside it."""
    frames = latents.shape[2] if latents.ndim == 5 else 0
    is_first = cache.frames is None
    if frames != config.block and not (is_first and 0 < frames < config.block):
        first = f"1 to {config.block} of the first, or " if is_first else ""
        raise WorldError(f"a block has {first}{config.block} latent frames, got {list(latents.shape)}")
    with cache.alone():
        past = cache.by_layer(model, frames)
        made = run(
            latents,
            time,
            text,
            first_frame=_ages(cache, latents),
            past=past,
            visible=cache.visible(latents.shape[3] * latents.shape[4] // PATCH**2),
            actions=actions,
            is_fused=is_fused,
        )
    return made, past


def _ages(cache: FrameCache, latents: Tensor) -> Tensor:
    """Return how many frames each video has, `[B]` int64."""
    if cache.frames is not None:
        return cache.frames
    return torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
