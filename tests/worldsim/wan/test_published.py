"""ARL2's released hybrid layers are read from a checkpoint by their names, and compute what is published."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.wan_models import (
    REASON,
    import_tiny_world,
    note_attention,
    save_tiny_checkpoint,
    tiny_config,
    tiny_transformer,
)
from training.cli.entry import describe_error
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.model.attention.hybrid import HybridAttention
from worldsim.wan.causal import FrameCache, block_velocity, commit_block
from worldsim.wan.checkpoint import load_transformer
from worldsim.wan.config import CausalConfig
from worldsim.wan.published import PublishedAttention
from worldsim.wan.transformer import TextContext, WanTransformer
from worldsim.world import World

DIM, HEADS, WIDTH, RANK, HIDDEN = 24, 2, 12, 16, 32
CAUSAL = CausalConfig(block=3, window=6)
FRAMES, ROWS, COLUMNS = 3, 2, 2
"""Of a block, in tokens."""
Weights = dict[str, Tensor]


def published(*, adapters: bool = True, layer: int = 1) -> Weights:
    """Return a checkpoint's tensors with one hybrid layer, by the release's names and shapes."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    weights = dict(tiny_transformer(torch.float64).state_dict())
    attention, mlp = f"blocks.{layer}.self_attn.", f"blocks.{layer}.ffn."
    for name in ("a_proj", "b_proj", "gate_proj"):
        weights[f"{attention}{name}.weight"] = normal(HEADS, DIM, scale=0.3)
    weights[f"{attention}A_log"] = normal(HEADS, scale=0.5) - 2
    weights[f"{attention}dt_bias"] = normal(HEADS) - 1
    for name in ("phi_q", "phi_k", "phi_v"):
        identity = torch.eye(WIDTH, dtype=torch.float64).repeat(HEADS, 1).unsqueeze(-1)
        weights[f"{attention}{name}.weight"] = identity + normal(DIM, WIDTH, 1, scale=0.2)
    if adapters:
        for name in "qkv":
            weights[f"{attention}lora_{name}_A"] = normal(DIM, RANK, scale=0.2)
            weights[f"{attention}lora_{name}_B"] = normal(RANK, DIM, scale=0.2)
        for number, sizes in ((0, (DIM, HIDDEN)), (2, (HIDDEN, DIM))):
            for end in ("weight", "bias"):
                weights[f"{mlp}{number}.linear.{end}"] = weights.pop(f"{mlp}{number}.{end}")
            weights[f"{mlp}{number}.lora_A"] = normal(sizes[0], RANK, scale=0.2)
            weights[f"{mlp}{number}.lora_B"] = normal(RANK, sizes[1], scale=0.2)
    return weights


def written(weights: Weights, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"num_heads": HEADS, "text_len": 12}))
    save_file({name: each.contiguous() for name, each in weights.items()}, folder / "model.safetensors")
    return folder / "model.safetensors"


def loaded(weights: Weights, folder: Path) -> WanTransformer:
    return load_transformer(written(weights, folder), torch.float64)


def video(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 16, FRAMES, 2 * ROWS, 2 * COLUMNS)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def text_of(model: WanTransformer) -> TextContext:
    generator = torch.Generator().manual_seed(5)
    return model.embed_text(torch.randn(1, 12, 32, generator=generator, dtype=torch.float64))


# The published layer, from its equations: one video, tokens [N, DIM], a state [HEADS, WIDTH, WIDTH] of rows
# by key and columns by value.


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    out = x @ w[f"{name}.weight"].T
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def adapted(w: Weights, name: str, x: Tensor) -> Tensor:
    """Return a projection with its adapter: alpha 32 over rank 16 times `x A B`."""
    out = linear(w, name, x)
    if f"lora_{name}_A" in w:
        out = out + (32 / 16) * (x @ w[f"lora_{name}_A"]) @ w[f"lora_{name}_B"]
    return out


def rms(x: Tensor, weight: Tensor) -> Tensor:
    """Return the norm over the full width of all heads."""
    return weight * x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + 1e-6)


def grouped(x: Tensor, weight: Tensor) -> Tensor:
    """Return a convolution of one tap over tokens `[N, DIM]`, a group for each head."""
    return F.conv1d(x.T[None], weight, groups=HEADS)[0].T


def rotated(x: Tensor, first_frame: int) -> Tensor:
    """Return heads `[N, HEADS, WIDTH]` whose pairs are complex numbers, turned by frame, row and column."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    token = 0
    for frame in range(first_frame, first_frame + FRAMES):
        for row in range(ROWS):
            for column in range(COLUMNS):
                angles = [place / 10_000 ** (2 * i / 4) for place in (frame, row, column) for i in range(2)]
                turn = [complex(math.cos(angle), math.sin(angle)) for angle in angles]
                pairs[token] = pairs[token] * torch.tensor(turn, dtype=torch.complex128)
                token += 1
    return torch.view_as_real(pairs).flatten(-2)


def by_heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, WIDTH))


def layer_output(w: Weights, x: Tensor, state: Tensor, first_frame: int) -> Tensor:
    """Return what a layer gives of a block, which reads the state before it."""
    q, k = rms(linear(w, "q", x), w["norm_q.weight"]), rms(linear(w, "k", x), w["norm_k.weight"])
    q, k = (rotated(by_heads(each), first_frame) for each in (q, k))
    v, out = by_heads(linear(w, "v", x)), torch.empty(len(x), HEADS, WIDTH, dtype=torch.float64)
    memory = grouped(rms(adapted(w, "q", x), w["norm_q.weight"]), w["phi_q.weight"])
    asked = F.normalize(rotated(by_heads(memory), first_frame), dim=-1)
    gate = torch.sigmoid(x @ w["gate_proj.weight"].T)
    for head in range(HEADS):
        scores = (q[:, head] @ k[:, head].T / math.sqrt(WIDTH)).softmax(dim=-1)
        read = asked[:, head] @ state[head] / math.sqrt(WIDTH)
        out[:, head] = scores @ v[:, head] + gate[:, head, None] * read
    return linear(w, "o", out.flatten(-2))


def state_behind(w: Weights, x: Tensor, state: Tensor, first_frame: int) -> Tensor:
    """Return the state behind a block: the gated delta rule, token by token."""
    k = grouped(rms(adapted(w, "k", x), w["norm_k.weight"]), w["phi_k.weight"])
    k = F.normalize(rotated(by_heads(k), first_frame), dim=-1)
    v = by_heads(grouped(adapted(w, "v", x), w["phi_v.weight"]))
    decay = torch.exp(-torch.exp(w["A_log"]) * F.softplus(x @ w["a_proj.weight"].T + w["dt_bias"]))
    beta = 2 * torch.sigmoid(x @ w["b_proj.weight"].T)
    for t in range(len(x)):
        for h in range(HEADS):
            faded = decay[t, h] * state[h]
            found = k[t, h] @ faded
            state = state.clone()
            state[h] = faded + beta[t, h] * torch.outer(k[t, h], v[t, h] - found)
    return state


@pytest.mark.parametrize("adapters", [True, False])
def test_a_layer_equals_a_derivation_token_by_token(
    adapters: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = published(adapters=adapters)
    model = loaded(weights, tmp_path)
    assert model.config.hybrid_layers == [1] and model.config.memory_rank == (RANK if adapters else 0)
    layer = model.get_submodule("blocks.1.self_attn")
    assert isinstance(layer, PublishedAttention)
    entered, read = note_attention(layer, monkeypatch)
    text, cache = text_of(model), FrameCache()
    for block in range(3):
        block_velocity(model, video(block + 10), torch.tensor([600.0]), text, cache, CAUSAL)
        cache = commit_block(model, video(block), text, cache, CAUSAL)
    inner = {n.removeprefix("blocks.1.self_attn."): t for n, t in weights.items() if "1.self_attn" in n}
    state = torch.zeros(HEADS, WIDTH, WIDTH, dtype=torch.float64)
    for number, (x, _) in enumerate(entered):  # drawing and commit, of three blocks
        first = FRAMES * (number // 2)
        if number % 2:
            state = state_behind(inner, x[0], state, first)
            continue
        given, made = (each[0] for each in read[number // 2])
        torch.testing.assert_close(given, state, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(made, layer_output(inner, x[0], state, first), rtol=1e-10, atol=1e-12)
    assert state.abs().max() > 0.1
    torch.testing.assert_close(cache.matrices[0][0], state, rtol=1e-10, atol=1e-12)


def test_an_mlp_is_that_of_its_adapters(tmp_path: Path) -> None:
    weights = published()
    model = loaded(weights, tmp_path)
    x = torch.randn(5, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def product(number: int, x: Tensor) -> Tensor:
        name = f"blocks.1.ffn.{number}"
        return (
            linear(weights, f"{name}.linear", x)
            + 2 * x @ weights[f"{name}.lora_A"] @ weights[f"{name}.lora_B"]
        )

    expected = product(2, F.gelu(product(0, x), approximate="tanh"))
    torch.testing.assert_close(model.get_submodule("blocks.1.ffn")(x), expected, rtol=1e-10, atol=1e-12)


def test_other_layers_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    weights = published()
    found = loaded(weights, tmp_path).state_dict()
    plain = {name for name in weights if "ffn" not in name or ".1." not in name}
    assert all(torch.equal(found[name], weights[name]) for name in plain)
    assert found.keys() - weights.keys() == {
        f"blocks.1.ffn.{n}.{end}" for n in (0, 2) for end in ("weight", "bias")
    }


def test_whole_videos_in_training_equal_blocks_in_play(tmp_path: Path) -> None:
    model, frames = loaded(published(), tmp_path), 3 * FRAMES
    clean, noisy = (torch.cat([video(n) for n in numbers], 2) for numbers in ((0, 1, 2), (10, 11, 12)))
    generator = torch.Generator().manual_seed(5)
    words = torch.randn(1, 12, 32, generator=generator, dtype=torch.float64)
    times = torch.full((1, 3), 600.0)
    found = model.forward_sequence(clean, noisy, times, words, CAUSAL)
    text, cache = text_of(model), FrameCache()
    for start in range(0, frames, FRAMES):
        block = slice(start, start + FRAMES)
        velocity = block_velocity(model, noisy[:, :, block], times[:, 0], text, cache, CAUSAL)
        torch.testing.assert_close(found[:, :, block], velocity, rtol=1e-8, atol=1e-9)
        cache = commit_block(model, clean[:, :, block], text, cache, CAUSAL)


def test_a_training_checkpoint_becomes_a_hybrid_world(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason=REASON)
    save_tiny_checkpoint(tmp_path / "checkpoint")
    weights = {f"model._fsdp_wrapped_module.{n}": t.float() for n, t in published().items()}
    torch.save({"generator_ema": weights}, tmp_path / "checkpoint" / "model.pt")
    path = tmp_path / "checkpoint" / "model.pt"
    world = World.from_pretrained(import_tiny_world(tmp_path, causal=CAUSAL, checkpoint=path))
    shape: Any = world.config.transformer
    assert (shape.hybrid_layers, shape.hybrid_form, shape.memory_rank) == ([1], "published", RANK)
    assert shape == tiny_config(hybrid_layers=[1], hybrid_form="published", memory_rank=RANK, num_values=[])
    card = (tmp_path / "world" / "README.md").read_text()
    assert "Hybrid layers: 1, as in ARL2's release" in card
    env = ARL2WorldEnv(world)
    env.reset(seed=0)
    frames = np.stack([env.step(np.array([0]))[0] for _ in range(2 * env.action_repeat)])
    assert bool(env.get_state().memory.matrices.any()) and frames.std() > 0


def changed(name: str, tensor: Tensor | None) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        left = {n: t for n, t in weights.items() if n != name}
        return left if tensor is None else left | {name: tensor}

    return change


A, M = "blocks.1.self_attn.", "blocks.1.ffn."
REFUSED: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "a missing gate": (changed(f"{A}gate_proj.weight", None), f"lacks 1 tensors, {A}gate_proj.weight"),
    "a missing adapter": (changed(f"{A}lora_v_B", None), f"lacks 1 tensors, {A}lora_v_B"),
    "half an adapter": (changed(f"{M}0.lora_B", None), f"lacks {M}0.lora_B, the other half of an adapter"),
    "no wrapped layer": (changed(f"{M}2.linear.weight", None), f"tensors of no use, {M}2.lora_A"),
    "twice": (changed(f"{M}0.weight", torch.zeros(HIDDEN, DIM)), f"has both {M}0.weight and"),
    "another rank": (
        changed(f"{A}lora_q_A", torch.zeros(DIM, 8)),
        r"lora_q_A has the shape \[24, 8\]; those",
    ),
    "another rank of an MLP": (changed(f"{M}0.lora_A", torch.zeros(DIM, 4)), r"\[24, 4\]; those of ARL2"),
    "an adapter's shape": (
        changed(f"{M}2.lora_B", torch.zeros(RANK, 5)),
        r"ffn\.2\.lora_B has the shape \[16, 5\], not \[16, 24\]",
    ),
    "a map's shape": (changed(f"{A}phi_q.weight", torch.zeros(24, 12)), r"phi_q\.weight has the shape"),
    "our strengths": (changed(f"{A}b_proj.bias", torch.zeros(2)), f"tensors of no use, {A}b_proj.bias"),
    "another adapter": (changed("blocks.0.cross_attn.lora_q_A", torch.zeros(2)), "1 tensors of no use"),
    "NaN": (changed(f"{M}0.lora_A", torch.full((DIM, RANK), torch.nan)), r"ffn\.0\.weight holds NaN"),
    "another model": (changed("vace_blocks.0.weight", torch.zeros(2)), "is a VACE model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_such_checkpoint_is_one_sentence(name: str, tmp_path: Path) -> None:
    change, message = REFUSED[name]
    path = written(change(published()), tmp_path)
    with pytest.raises(WorldError, match=message) as raised:
        load_transformer(path, torch.float32)
    assert "\n" not in describe_error(raised.value)
    assert re.match(r"\S+ ", str(raised.value)), "the file is named"


def test_strengths_reach_below_two_alone() -> None:
    layer = PublishedAttention(DIM, HEADS, 4, (1.0, 8.0), 0)
    found = layer.strengths(torch.tensor([-20.0, 0.0, 5.0, 50.0], dtype=torch.float64))
    expected = 2 * torch.sigmoid(torch.tensor([-20.0, 0.0, 5.0], dtype=torch.float64))
    torch.testing.assert_close(found[:3], expected, rtol=1e-15, atol=0)
    assert 1.99 < float(found[3]) < 2
    assert isinstance(layer, HybridAttention)
    with pytest.raises(WorldError, match="memory_rank is of hybrid layers of the form published"):
        tiny_config(hybrid_layers=[0], memory_rank=4)
