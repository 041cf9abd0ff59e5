"""The transformer equals the library's, and a derivation in plain tensor code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.wan_models import library_transformer, relative_error, tiny_config, tiny_transformer
from worldsim.errors import WorldError
from worldsim.wan.config import CausalConfig, WanConfig
from worldsim.wan.transformer import WanTransformer

FRAMES, ROWS, COLUMNS = 3, 2, 4  # of tokens


def inputs(dtype: torch.dtype = torch.float32, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Return noisy latents and a text."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 16, FRAMES, 2 * ROWS, 2 * COLUMNS, generator=generator, dtype=torch.float64)
    text = torch.randn(batch, 12, 32, generator=generator, dtype=torch.float64)
    return latents.to(dtype), text.to(dtype)


@pytest.mark.parametrize("times", [[3.0, 250.0], [937.5, 1000.0]])
def test_velocity_equals_that_of_diffusers(times: list[float]) -> None:
    model = tiny_transformer()
    latents, text = inputs()
    time = torch.tensor(times)
    expected = library_transformer(model)(latents, time, text, return_dict=False)[0]
    assert relative_error(model(latents, time, model.embed_text(text)), expected) < 1e-5


def test_velocity_of_frames_at_times_of_their_own_equals_that_of_diffusers() -> None:
    model = tiny_transformer()
    latents, text = inputs()
    time = torch.tensor([[0.0, 10.0, 500.0], [900.0, 0.0, 31.0]])
    of_tokens = time.repeat_interleave(ROWS * COLUMNS, 1)
    expected = library_transformer(model)(latents, of_tokens, text, return_dict=False)[0]
    assert relative_error(model(latents, time, model.embed_text(text)), expected) < 1e-5


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].flatten(1).T + weights[f"{name}.bias"]


def layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def turned(x: Tensor, places: list[tuple[int, int, int]]) -> Tensor:
    """Turn the pairs of `[T, 12]` heads by time, row and column: two pairs each."""
    out = torch.empty_like(x)
    for token, place in enumerate(places):
        for pair in range(6):
            angle = place[pair // 2] * 10_000.0 ** (-(pair % 2) * 2 / 4)
            a, b = x[token, 2 * pair], x[token, 2 * pair + 1]
            out[token, 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            out[token, 2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def attention(w: dict[str, Tensor], name: str, x: Tensor, seen: Tensor, places: list | None) -> Tensor:
    """Return the output of an attention for one video, `[T, 24]`; both heads are taken alone."""
    queries = rms_norm(linear(w, f"{name}.q", x), w[f"{name}.norm_q.weight"])
    keys = rms_norm(linear(w, f"{name}.k", seen), w[f"{name}.norm_k.weight"])
    values = linear(w, f"{name}.v", seen)
    outs = []
    for head in (slice(0, 12), slice(12, 24)):
        q, k = queries[:, head], keys[:, head]
        if places is not None:
            q, k = turned(q, places), turned(k, places)
        outs.append(torch.softmax(q @ k.T / math.sqrt(12), dim=-1) @ values[:, head])
    return linear(w, f"{name}.o", torch.cat(outs, dim=-1))


def derived(w: dict[str, Tensor], latents: Tensor, time: float, text: Tensor) -> Tensor:
    """Return the velocity of one video, `[16, F, height, width]`, in loops over tokens."""
    places = [(f, r, c) for f in range(FRAMES) for r in range(ROWS) for c in range(COLUMNS)]
    patches = [latents[:, f, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].flatten() for f, r, c in places]
    x = linear(w, "patch_embedding", torch.stack(patches))
    angles = time * torch.tensor([10_000.0 ** (-i / 16) for i in range(16)], dtype=torch.float64)
    waves = torch.cat([angles.cos(), angles.sin()])
    embedded = linear(w, "time_embedding.2", silu(linear(w, "time_embedding.0", waves)))
    modulation = linear(w, "time_projection.1", silu(embedded)).view(6, 24)
    words = linear(w, "text_embedding.2", gelu(linear(w, "text_embedding.0", text)))
    for block in ("blocks.0", "blocks.1"):
        inner = {name.removeprefix(f"{block}."): t for name, t in w.items() if name.startswith(f"{block}.")}
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation + inner["modulation"][0]
        seen = layer_norm(x) * (1 + scale) + shift
        x = x + gate * attention(inner, "self_attn", seen, seen, places)
        seen = layer_norm(x) * inner["norm3.weight"] + inner["norm3.bias"]
        x = x + attention(inner, "cross_attn", seen, words, None)
        seen = layer_norm(x) * (1 + mlp_scale) + mlp_shift
        x = x + mlp_gate * linear(inner, "ffn.2", gelu(linear(inner, "ffn.0", seen)))
    shift, scale = w["head.modulation"][0] + embedded
    out = linear(w, "head.head", layer_norm(x) * (1 + scale) + shift)
    velocity = torch.empty_like(latents)
    for token, (f, r, c) in enumerate(places):
        for i in range(4):
            velocity[:, f, 2 * r + i // 2, 2 * c + i % 2] = out[token, 16 * i : 16 * (i + 1)]
    return velocity


def test_velocity_equals_a_derivation_token_by_token() -> None:
    model = tiny_transformer(torch.float64)
    latents, text = inputs(torch.float64, batch=1)
    expected = derived(model.state_dict(), latents[0], 437.5, text[0])
    found = model(latents, torch.tensor([437.5]), model.embed_text(text))[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_a_short_text_is_filled_up_with_zeros_that_are_seen() -> None:
    model = tiny_transformer(torch.float64)
    latents, text = inputs(torch.float64, batch=1)
    time = torch.tensor([5.0])
    filled = text.clone()
    filled[:, 7:] = 0
    assert torch.equal(
        model(latents, time, model.embed_text(text[:, :7])), model(latents, time, model.embed_text(filled))
    )


def test_half_precision_stays_near() -> None:
    model = tiny_transformer()
    latents, text = inputs()
    time = torch.tensor([3.0, 250.0])
    expected = model(latents, time, model.embed_text(text))
    rounded = tiny_transformer(torch.bfloat16)
    found = rounded(latents.bfloat16(), time, rounded.embed_text(text.bfloat16()))
    assert found.dtype == torch.bfloat16
    assert relative_error(found.float(), expected) < 0.05


def test_the_published_shape_has_its_tensors_and_parameters() -> None:
    with torch.device("meta"):
        model = WanTransformer(WanConfig())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(shapes) == 825
    assert sum(math.prod(shape) for shape in shapes.values()) == 1_418_996_800
    assert shapes["patch_embedding.weight"] == (1536, 16, 1, 2, 2)
    assert shapes["time_projection.1.weight"] == (9216, 1536)
    assert shapes["blocks.29.modulation"] == (1, 6, 1536)
    assert shapes["blocks.0.self_attn.norm_q.weight"] == shapes["blocks.0.norm3.bias"] == (1536,)
    assert shapes["head.head.weight"] == (64, 1536)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 25}, "dim 25 must be an even multiple of num_heads 2"),
        ({"dim": 8}, "heads of 4 features"),
        ({"freq_dim": 31}, "freq_dim must be even"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"eps": 0.0}, "eps must"),
    ],
)
def test_a_shape_that_no_network_has_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(WorldError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 3, "sink": 1}, "window 3 must hold a block of 3 and a sink of 1"),
        ({"steps": [500, 1000]}, "steps must fall"),
        ({"steps": []}, "steps must fall and not be empty"),
        ({"steps": [1001]}, "steps must be numbers of at most 1000"),
        ({"shift": 0.0}, "shift must"),
    ],
)
def test_a_causal_form_that_cannot_be_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(WorldError, match=message):
        CausalConfig(**changes)


def test_wrong_shapes_are_named() -> None:
    model = tiny_transformer()
    latents, text = inputs()
    context = model.embed_text(text)
    with pytest.raises(WorldError, match=r"latents must be \[batch, 16, frames, even height"):
        model(latents[..., :-1], torch.zeros(2), context)
    with pytest.raises(WorldError, match=r"times must be \[2\] or \[2, 3\], got \[3\]"):
        model(latents, torch.zeros(3), context)
    with pytest.raises(WorldError, match=r"at most 12, 32\], got \[2, 13, 32\]"):
        model.embed_text(torch.zeros(2, 13, 32))
