"""Hybrid layers attend inside a block and read what the blocks before wrote into a state of constant size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.wan_models import note_attention, tiny_transformer
from worldsim.errors import WorldError
from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.attention.writes import MAX_BETA
from worldsim.wan.causal import FrameCache, block_velocity, commit_block
from worldsim.wan.config import CausalConfig
from worldsim.wan.conversion import with_hybrid_layers
from worldsim.wan.transformer import TextContext, WanTransformer

CAUSAL = CausalConfig(block=2, window=6)
HEADS, WIDTH = 2, 12


@pytest.fixture(scope="module")
def model() -> WanTransformer:
    return tiny_transformer(torch.float64)


@pytest.fixture
def hybrid(model: WanTransformer) -> WanTransformer:
    """Return a model of a hybrid and a softmax layer; all of the hybrid one's weights are random."""
    torch.manual_seed(0)
    made = with_hybrid_layers(model, [1], tokens_per_frame=4, half_lives=(1, 8))
    attention = attention_of(made)
    for phi in (attention.phi_q, attention.phi_k, attention.phi_v):
        phi.weight.add_(torch.randn_like(phi.weight), alpha=0.2)
    return made


def attention_of(model: WanTransformer) -> HybridAttention:
    attention = model.get_submodule("blocks.1.self_attn")
    assert isinstance(attention, HybridAttention)
    return attention


def video(frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 16, frames, 4, 4, generator=generator, dtype=torch.float64)


def text_of(model: WanTransformer) -> TextContext:
    generator = torch.Generator().manual_seed(5)
    return model.embed_text(torch.randn(2, 12, 32, generator=generator, dtype=torch.float64))


def velocities(model: WanTransformer, causal: CausalConfig, blocks: int = 3) -> list[Tensor]:
    text, cache, found = text_of(model), FrameCache(), []
    for number in range(blocks):
        time = torch.full((2,), 600.0)
        found.append(block_velocity(model, video(2, seed=10 + number), time, text, cache, causal))
        cache = commit_block(model, video(2, seed=number), text, cache, causal)
    return found


def test_nothing_changes_until_something_was_written(model: WanTransformer, hybrid: WanTransformer) -> None:
    before, after = velocities(model, CAUSAL), velocities(hybrid, CAUSAL)
    torch.testing.assert_close(after[0], before[0], rtol=1e-10, atol=1e-11)
    assert not torch.allclose(after[1], before[1], rtol=1e-3)


def test_a_layer_that_writes_nothing_attends_to_its_block_alone(
    model: WanTransformer, hybrid: WanTransformer
) -> None:
    """As a softmax layer without a window does; here both layers are made so."""
    both = with_hybrid_layers(model, [0, 1])
    for block in both.blocks:
        torch.nn.init.zeros_(block.self_attn.phi_v.weight)
    for found, expected in zip(
        velocities(both, CAUSAL), velocities(model, replace(CAUSAL, window=2)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def turned(x: Tensor, turns: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = turns[..., 0].unsqueeze(-2), turns[..., 1].unsqueeze(-2)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def by_head(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("bthi,hoi->btho", x, weight.squeeze(-1).unflatten(0, (HEADS, WIDTH)))


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def parts(layer: HybridAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return normed queries and keys, and values, `[B, tokens, H, D]`."""

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    q, k = normed(layer.q(x), layer.norm_q.weight), normed(layer.k(x), layer.norm_k.weight)
    q, k, v = (each.unflatten(-1, (HEADS, WIDTH)) for each in (q, k, layer.v(x)))
    return q, k, v


def derived(layer: HybridAttention, x: Tensor, turns: Tensor, state: Tensor) -> Tensor:
    q, k, v = parts(layer, x)
    scores = torch.einsum("bqhd,bkhd->bhqk", turned(q, turns), turned(k, turns)) / WIDTH**0.5
    local = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
    query = unit(turned(by_head(q, layer.phi_q.weight), turns))
    recalled = torch.einsum("bthk,bhkv->bthv", query, state) / WIDTH**0.5
    gate = torch.sigmoid(layer.gate_proj(x)).unsqueeze(-1)
    return layer.o((local + gate * recalled).flatten(-2))


def written(layer: HybridAttention, x: Tensor, turns: Tensor, state: Tensor) -> Tensor:
    """Return the state behind a block, token by token."""
    _, k, v = parts(layer, x)
    key, value = unit(turned(by_head(k, layer.phi_k.weight), turns)), by_head(v, layer.phi_v.weight)
    decay = -layer.A_log.exp() * torch.nn.functional.softplus(layer.a_proj(x) + layer.dt_bias)
    strength = MAX_BETA * torch.sigmoid(layer.b_proj(x))
    for token in range(x.shape[1]):
        kt, vt, beta = key[:, token, :, :, None], value[:, token, :, None], strength[:, token, :, None, None]
        state = decay[:, token, :, None, None].exp() * state
        state = state + beta * kt * (vt - kt.mT @ state)
    return state


def test_a_layer_equals_a_derivation_token_by_token(
    hybrid: WanTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = attention_of(hybrid)
    entered, read = note_attention(layer, monkeypatch)
    velocities(hybrid, CAUSAL, blocks=2)
    assert (len(entered), len(read)) == (4, 2), "behind the last layer's keys a commit computes nothing"
    state = torch.zeros(2, HEADS, WIDTH, WIDTH, dtype=torch.float64)
    for number, (x, turns) in enumerate(entered):  # velocity and commit, of two blocks
        if number % 2:
            state = written(layer, x, turns, state)
            continue
        given, made = read[number // 2]
        torch.testing.assert_close(given, state, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(made, derived(layer, x, turns, state), rtol=1e-9, atol=1e-11)
    assert state.abs().max() > 0.1


def test_its_state_has_a_constant_size(model: WanTransformer) -> None:
    sizes = []
    for layers in ([], [1], [0, 1]):
        made = with_hybrid_layers(model, layers)
        cache, of_blocks = FrameCache(), []
        for number in range(4):
            cache = commit_block(made, video(2, seed=number), text_of(made), cache, CAUSAL)
            of_blocks.append(cache.num_bytes)
        assert len(set(of_blocks)) == 1
        sizes.append(of_blocks[0])
    window, matrix = 2 * 2 * 4 * 4 * 24 * 8, 2 * HEADS * WIDTH**2 * 8  # of one layer
    assert sizes == [2 * window, window + matrix, 2 * matrix]


def test_what_does_not_fit_is_named(model: WanTransformer, hybrid: WanTransformer) -> None:
    with pytest.raises(WorldError, match=r"hybrid_layers must be some of 0 to 1, got \[2\]"):
        with_hybrid_layers(model, [2])
    with pytest.raises(WorldError, match="passes over a video block by block"):
        hybrid(video(2), torch.zeros(2), text_of(hybrid))
