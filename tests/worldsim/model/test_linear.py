"""Weights laid out for the CPU give what the ordinary layers give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from worldsim.model.linear import FeedForward, Linear, Packed, can_pack, map_together

BF16_STEP = 2.0**-8
"""Relative rounding error of bf16: it keeps 8 bits."""

needs_bf16_units = pytest.mark.skipif(
    not can_pack(torch.zeros(1, 1, dtype=torch.bfloat16)), reason="needs a CPU that multiplies bf16 numbers"
)


def inputs(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def linear(dim: int, out: int, *, bias: bool = True, dtype: torch.dtype = torch.bfloat16) -> Linear:
    layer = Linear(dim, out, bias=bias)
    if bias:
        torch.nn.init.normal_(layer.bias)
    return layer.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("sizes", [(6, 6, 6), (8,), (3, 5)], ids=str)
def test_narrow_layers_give_together_what_each_gives(sizes: tuple[int, ...]) -> None:
    layers = [
        linear(32, size, bias=index == 1, dtype=torch.float64).requires_grad_()
        for index, size in enumerate(sizes)
    ]
    x = inputs(2, 5, 32, dtype=torch.float64).requires_grad_()
    leaves = [x, *(weight for layer in layers for weight in layer.parameters())]
    found = []
    for outs in (map_together(layers, x), [layer(x) for layer in layers]):
        assert [out.shape for out in outs] == [(2, 5, size) for size in sizes]
        loss = torch.stack([out.square().sum() * (1 + index) for index, out in enumerate(outs)]).sum()
        found.append([*outs, *torch.autograd.grad(loss, leaves)])
    for together, alone in zip(*found, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@needs_bf16_units
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("shape", [(80,), (1, 80), (3, 80), (1,), (7, 5)], ids=str)
@pytest.mark.parametrize(("dim", "out"), [(384, 384), (384, 1280), (1280, 384), (32, 6)])
def test_packed_result_has_the_bits_of_the_ordinary_one(
    dim: int, out: int, shape: tuple[int, ...], bias: bool
) -> None:
    layer, x = linear(dim, out, bias=bias), inputs(*shape, dim)
    ordinary = layer(x)
    layer.pack(80)
    assert layer.packed is not None
    assert torch.equal(layer(x), ordinary)


@needs_bf16_units
def test_packed_gelu_is_exact_to_bf16_rounding() -> None:
    layer, x = linear(384, 1280), inputs(80, 384)
    exact = functional.gelu(
        functional.linear(x.double(), layer.weight.double(), layer.bias.double()), approximate="tanh"
    )
    ordinary = layer(x, gelu=True).double()
    layer.pack(80)
    packed = layer(x, gelu=True).double()
    # The ordinary form rounds before and after the GELU, the packed one only after it.
    torch.testing.assert_close(packed, exact, rtol=1.5 * BF16_STEP, atol=1e-3)
    torch.testing.assert_close(packed, ordinary, rtol=3 * BF16_STEP, atol=4e-3)
    assert (packed - exact).square().mean() <= (ordinary - exact).square().mean()


@needs_bf16_units
def test_layers_side_by_side_give_their_own_outputs_in_order() -> None:
    layers = [linear(384, 384), linear(384, 6, bias=False), linear(384, 6), linear(384, 128)]
    x = inputs(2, 80, 384)
    packed = Packed(layers, 80)
    assert packed.sizes == [384, 6, 6, 128]
    parts = packed(x).split(packed.sizes, dim=-1)
    for layer, part in zip(layers, parts, strict=True):
        assert part.shape == (2, 80, layer.out_features)
        assert torch.equal(part, layer(x))


@needs_bf16_units
def test_packing_again_takes_the_new_weight() -> None:
    layer, x = linear(64, 32), inputs(80, 64)
    layer.pack(80)
    layer.weight.neg_()
    layer.pack(80)
    assert torch.equal(layer(x), functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("gelu", [False, True], ids=["linear", "gelu"])
def test_fp32_falls_back_to_the_ordinary_layer(gelu: bool) -> None:
    layer, x = linear(64, 32, dtype=torch.float32), inputs(80, 64, dtype=torch.float32)
    layer.pack(80)
    assert not can_pack(layer.weight)
    assert layer.packed is None
    expected = functional.linear(x, layer.weight, layer.bias)
    if gelu:
        expected = functional.gelu(expected, approximate="tanh")
    assert torch.equal(layer(x, gelu=gelu), expected)


def test_layer_computes_in_its_own_dtype() -> None:
    assert linear(16, 8, dtype=torch.float32)(inputs(4, 16)).dtype is torch.float32
    assert linear(16, 8)(inputs(4, 16, dtype=torch.float32)).dtype is torch.bfloat16


def test_feed_forward_is_the_sequence_of_its_layers() -> None:
    mlp, x = FeedForward(16, 48).requires_grad_(False), inputs(5, 16, dtype=torch.float32)
    assert torch.equal(mlp(x), torch.nn.Sequential(*mlp)(x))
    assert set(mlp.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
