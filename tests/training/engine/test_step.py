"""The settings of an update reach the operators and the compiler, and say where they cannot hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.autograd.graph import saved_tensors_hooks

from kernels import layers, selection
from training.engine.step import StepConfig, check_step, computing, replays_passes
from worldsim.errors import WorldError
from worldsim.model.attention.base import Rotary
from worldsim.model.block import Block, Residual, build_attention
from worldsim.model.config import DenoiserConfig
from worldsim.model.rotary import place_angles, turns

MODEL = DenoiserConfig(latent_shape=[4, 4, 4], num_values=[2], dim=64, ffn_dim=128, num_heads=2)


def kept_bytes(kept_share: float) -> tuple[int, list[Tensor]]:
    """Return what a compiled block keeps for its gradient beside its weights, and the gradients."""
    torch.compiler.reset()
    torch.manual_seed(0)
    block = Block(64, 128, build_attention(MODEL, 0))
    weights = {weight.untyped_storage().data_ptr() for weight in block.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    place = turns(place_angles(2, 2, 32)).float()
    rotary = Rotary(place, place.expand(2, 8, 4, 16, 2).contiguous())
    x, conditioning = torch.randn(2, 8, 2, 4, 64, requires_grad=True), torch.randn(2, 8, 2, 6, 64)
    with computing(StepConfig(kept_share=kept_share)), saved_tensors_hooks(pack, lambda tensor: tensor):
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=False)
        out, _ = compiled(Residual(x), conditioning, torch.zeros(2, 2, 32, 32), rotary)
        gradients = torch.autograd.grad(out.total().square().sum(), [x, *block.parameters()])
    return sum(kept.values()), list(gradients)


@pytest.mark.slow
def test_less_is_kept_for_the_gradient_and_the_gradient_is_the_same() -> None:
    everything, expected = kept_bytes(1.0)
    half, gradients = kept_bytes(0.5)
    assert half < 0.7 * everything
    for got, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)


def test_the_settings_hold_inside_and_not_after() -> None:
    x = torch.zeros(1, 2, 64)
    before = selection.ACTIVE
    with computing(StepConfig(kernels="fused", scan_precision="tf32")):
        assert layers.is_fused("modulate", x)
        assert selection.ACTIVE.scan_precision == "tf32"
    with computing(StepConfig(kernels="reference")):
        assert not layers.is_fused("modulate", x)
    assert selection.ACTIVE is before


def test_what_is_compiled_follows_the_settings() -> None:
    torch.compiler.reset()
    count = CompileCounter()

    def form(x: Tensor) -> Tensor:
        return x + 1 if layers.is_fused("modulate", x) else x - 1

    compiled = torch.compile(form, backend=count, fullgraph=True)
    x = torch.zeros(2)
    for kernels, expected in (("fused", 1.0), ("reference", -1.0), ("fused", 1.0)):
        with computing(StepConfig(kernels=kernels)):
            assert compiled(x).tolist() == [expected] * 2
    assert count.frame_count == 2  # the first is used again


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"kernels": "fused"}, "step.kernels=fused runs on CUDA, but the training is on cpu"),
        ({"kept_share": 0.5}, "step.kept_share=0.5 needs fabric.compile=true"),
    ],
)
def test_what_cannot_hold_is_said(step: dict[str, object], message: str) -> None:
    with pytest.raises(WorldError, match=message):
        check_step(StepConfig(**step), torch.device("cpu"), MODEL, is_compiled=False)


def test_heads_that_the_kernels_do_not_take_are_named() -> None:
    model = DenoiserConfig(latent_shape=[4, 4, 4], num_values=[2], dim=96, ffn_dim=128, num_heads=2)
    with pytest.raises(WorldError, match="takes heads of 32, 64, 128 features.*make them 48 wide"):
        check_step(StepConfig(kernels="fused"), torch.device("cuda"), model, is_compiled=True)
    wide = replace(model, dim=256)
    with pytest.raises(WorldError, match="takes heads of 32, 64 features.*make them 128 wide"):
        check_step(
            StepConfig(kernels="fused"), torch.device("cuda"), wide, is_compiled=True, dtype=torch.float32
        )
    check_step(StepConfig(kernels="fused"), torch.device("cuda"), wide, is_compiled=True)
    softmax = DenoiserConfig(
        latent_shape=[4, 4, 4], num_values=[2], dim=96, num_heads=2, num_layers=1, window_layers=[0]
    )
    check_step(StepConfig(kernels="fused"), torch.device("cuda"), softmax, is_compiled=True)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"kernels": "fast"}, "step.kernels must be one of auto, reference, fused, got 'fast'"),
        ({"scan_precision": "bf16"}, "step.scan_precision must be one of tf32x3, tf32, got 'bf16'"),
        ({"kept_share": 1.5}, r"step.kept_share must lie in \[0, 1\], got 1.5"),
    ],
)
def test_unknown_settings_are_named(step: dict[str, object], message: str) -> None:
    with pytest.raises(WorldError, match=message):
        StepConfig(**step)


def test_passes_are_replayed_where_they_can_be() -> None:
    full, gpu, cpu = replace(MODEL, full_layers=[1]), torch.device("cuda"), torch.device("cpu")

    def replays(
        graphs: bool | None, device: torch.device, model: DenoiserConfig = MODEL, **changed: bool
    ) -> bool:
        where = {"is_compiled": True, "is_sharded": False} | changed
        return replays_passes(StepConfig(graphs=graphs), device, model, **where)

    assert replays(None, gpu)
    assert not replays(None, cpu)
    assert not replays(None, gpu, full)
    assert not replays(None, gpu, is_sharded=True)
    assert not replays(None, gpu, is_compiled=False)
    assert not replays(False, gpu)
    assert replays(True, gpu, is_compiled=False)
