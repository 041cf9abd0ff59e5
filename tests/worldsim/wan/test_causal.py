"""Blocks with cached keys and values equal a whole pass in which each frame sees what its block saw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, is_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.wan_models import tiny_transformer
from worldsim.errors import WorldError
from worldsim.wan.causal import (
    FrameCache,
    block_velocity,
    commit_block,
    generate_block,
    visible_frames,
)
from worldsim.wan.config import CausalConfig
from worldsim.wan.schedule import step_sigmas, times
from worldsim.wan.transformer import TextContext, WanTransformer

TOKENS = 4
FORMS = {
    "chunks": CausalConfig(block=3, window=6),
    "chunks, all seen": CausalConfig(block=3, window=None),
    "chunks with a sink": CausalConfig(block=3, window=7, sink=1),
    "frames": CausalConfig(block=1, window=4),
    "frames with a sink": CausalConfig(block=1, window=4, sink=2),
    "frames, nothing else seen": CausalConfig(block=1, window=1),
}


@pytest.fixture(scope="module")
def model() -> WanTransformer:
    return tiny_transformer(torch.float64)


@pytest.fixture(scope="module")
def text(model: WanTransformer) -> TextContext:
    return model.embed_text(normal(2, 12, 32, seed=5))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def video(frames: int, seed: int = 0) -> Tensor:
    return normal(2, 16, frames, 4, 4, seed=seed)


def blocks_of(frames: int, config: CausalConfig) -> list[slice]:
    ends = [*range(frames % config.block or config.block, frames + 1, config.block)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def told(block: slice, frame: int, config: CausalConfig) -> bool:
    """Return whether a frame is in sight of a block, as the published cache is written.

    The cache holds `window` frames, the block's own among them; when it is full, the oldest that is not of
    the sink makes place.
    """
    cache: list[int] = []
    for number in range(block.stop):
        cache.append(number)
        if config.window is not None and len(cache) > config.window:
            del cache[config.sink]
    return frame in cache


@pytest.mark.parametrize("name", FORMS)
def test_blocks_equal_a_masked_whole_pass(name: str, model: WanTransformer, text: TextContext) -> None:
    """For each block: clean frames before it, its own noisy, in one pass with a mask made from the words."""
    config = FORMS[name]
    frames = 10 if config.block == 3 else 6
    clean, noisy = video(frames), video(frames, seed=1)
    cache = FrameCache()
    for block in blocks_of(frames, config):
        time = torch.full((2,), 600.0)
        found = block_velocity(model, noisy[:, :, block], time, text, cache, config)
        mask = torch.zeros(block.stop, block.stop, dtype=torch.bool)
        for other in blocks_of(frames, config):
            for row in range(other.start, min(other.stop, block.stop)):
                mask[row] = torch.tensor([told(other, column, config) for column in range(block.stop)])
        both = torch.cat([clean[:, :, : block.start], noisy[:, :, block]], dim=2)
        frame_times = torch.zeros(2, block.stop).index_fill(1, torch.arange(block.start, block.stop), 600.0)
        expected = model(both, frame_times, text, visible=mask)[:, :, block]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
        cache = commit_block(model, clean[:, :, block], text, cache, config)
    assert cache.frames is not None and cache.frames.tolist() == [frames, frames]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("frames", [9, 10, 11])
def test_the_mask_says_what_the_published_cache_holds(name: str, frames: int) -> None:
    config = FORMS[name]
    expected = [
        [told(block, column, config) and column < block.stop for column in range(frames)]
        for block in blocks_of(frames, config)
        for _ in range(block.start, block.stop)
    ]
    assert visible_frames(frames, config).tolist() == expected


def test_the_mask_hides_what_it_says(model: WanTransformer, text: TextContext) -> None:
    """One layer, so that nothing is passed on: a frame changes only what sees it."""
    shallow = tiny_transformer(torch.float64, num_layers=1)
    context = shallow.embed_text(normal(2, 12, 32, seed=5))
    config = CausalConfig(block=1, window=3, sink=1)
    mask = visible_frames(6, config)
    latents, time = video(6), torch.zeros(2)
    before = shallow(latents, time, context, visible=mask)
    for frame in range(6):
        changed = latents.clone()
        changed[:, :, frame] += 1
        moved = (shallow(changed, time, context, visible=mask) - before).abs().amax((0, 1, 3, 4)) > 1e-9
        assert torch.equal(moved, mask[:, frame])


def shown(cache: FrameCache) -> tuple[Tensor, ...]:
    if cache.ring is None or cache.frames is None:
        return ()
    return cache.ring.in_order(cache.frames)


def test_a_cache_is_a_value_of_constant_size(model: WanTransformer, text: TextContext) -> None:
    config = FORMS["frames with a sink"]
    cache, sizes = FrameCache(), []
    for frame in range(8):
        before = shown(cache)
        new = commit_block(model, video(1, seed=frame), text, cache, config)
        assert all(torch.equal(a, b) for a, b in zip(before, shown(cache), strict=True))
        cache = new
        sizes.append(cache.num_bytes)
    one = 2 * 2 * 2 * TOKENS * 24 * 8  # layers, keys and values, batch, tokens, width, bytes
    assert sizes == 8 * [3 * one]


class MadeTensors(TorchDispatchMode):
    """Note the sizes of all tensors that operators make; views of others are none."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if is_tensor(leaf)}
        made = [leaf for leaf in tree_leaves(out) if is_tensor(leaf)]
        self.sizes += [leaf.nbytes for leaf in made if leaf.untyped_storage().data_ptr() not in given]
        return out


def test_nothing_as_large_as_the_window_is_made(model: WanTransformer, text: TextContext) -> None:
    """Neither a pass nor a commit copies what is cached; a held older state is copied once."""
    config, cache = CausalConfig(block=1, window=200), FrameCache()
    for _ in range(2):
        cache = commit_block(model, video(1), text, cache, config)
    window = 2 * 199 * TOKENS * 24 * 8  # batch, frames, tokens, width, bytes: of keys, or of values
    with MadeTensors() as made:
        block_velocity(model, video(1), torch.full((2,), 600.0), text, cache, config)
        after = commit_block(model, video(1), text, cache, config)
    assert 0 < max(made.sizes) < window / 10
    with MadeTensors() as made:
        commit_block(model, video(1), text, after, config)
    assert sum(size >= window for size in made.sizes) == 2, "keys and values of a cache that is held"


def test_generation_is_the_published_loop(model: WanTransformer, text: TextContext) -> None:
    config = CausalConfig(block=1, window=4, steps=[1000, 500])
    noise, fresh = video(1, seed=2), video(1, seed=3)
    cache = commit_block(model, video(1), text, FrameCache(), config)
    half = 5 * 0.5 / (1 + 4 * 0.5)  # half the noise, shifted by 5
    first = noise - block_velocity(model, noise, torch.full((2,), 1000.0), text, cache, config)
    second = (1 - half) * first + half * fresh
    time = torch.full((2,), 1000 * half, dtype=torch.float64)
    expected = second - half * block_velocity(model, second, time, text, cache, config)
    found = generate_block(model, noise, text, cache, config, fresh[None])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(WorldError, match="2 steps need fresh noise"):
        generate_block(model, noise, text, cache, config)


def test_times_of_steps_are_those_of_the_checkpoints() -> None:
    found = times(step_sigmas(CausalConfig())).tolist()
    assert found == pytest.approx([1000, 937.5, 5000 / 6, 625], rel=1e-12)
    assert step_sigmas(CausalConfig(steps=[1000])).tolist() == [1.0]
    unshifted = step_sigmas(CausalConfig(shift=1.0, steps=[1000, 757, 522, 1]))
    assert unshifted.tolist() == pytest.approx([1, 0.757, 0.522, 0.001], rel=1e-12)


def test_a_block_of_another_length_is_refused(model: WanTransformer, text: TextContext) -> None:
    config, time = CausalConfig(block=3, window=6), torch.zeros(2)
    with pytest.raises(WorldError, match="1 to 3 of the first, or 3 latent frames"):
        block_velocity(model, video(4), time, text, FrameCache(), config)
    cache = commit_block(model, video(2), text, FrameCache(), config)
    with pytest.raises(WorldError, match="a block has 3 latent frames, got"):
        block_velocity(model, video(2), time, text, cache, config)
