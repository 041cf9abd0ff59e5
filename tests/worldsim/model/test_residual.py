"""The last sum of a layer is left to the norm after it where that adds in one pass, and nowhere else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import checks, layers
from kernels.selection import using
from training.objectives.distillation import LayerDistillation
from training.objectives.noise import ObjectiveConfig
from worldsim.model.block import Residual
from worldsim.model.config import DenoiserConfig
from worldsim.model.denoiser import Denoiser

LAYERS = 4
OPERATORS = ("modulate", "add_modulate", "modulate_gradient", "add_modulate_gradient", "addcmul")


def network(**settings: Any) -> Denoiser:
    """Return a network none of whose weights are zero."""
    torch.manual_seed(0)
    shape = {"dim": 64, "ffn_dim": 96, "num_heads": 2, "num_layers": LAYERS, "window": 2}
    denoiser = Denoiser(DenoiserConfig(latent_shape=[4, 4, 4], num_values=[3], **shape, **settings))
    for weight in denoiser.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    return denoiser


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what `Denoiser.forward` takes."""
    clean, noisy = torch.randn(2, 2, 3, 4, 4, 4, dtype=dtype)
    return clean, noisy, torch.rand(2, 3, 2, dtype=dtype), torch.randint(3, (2, 3, 1))


class Counted(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func.name().partition("::")[2].partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ["triton", "torch"])
def test_two_norms_a_layer_and_no_sum_between_layers(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "check_no_nan", lambda *_: None)  # there are no numbers to look at
    counted = Counted()
    with FakeTensorMode(), counted, using(layers=form):
        denoiser = network(window_layers=[2])
        loss = denoiser(*batch(torch.float32)).sum()
        torch.autograd.grad(loss, list(denoiser.parameters()), allow_unused=True)
    # Fused, all norms but the first have a sum before them; else each sum and each modulation is an addcmul.
    both = [1, 2 * LAYERS, 1, 2 * LAYERS, 0] if form == "triton" else [0, 0, 0, 0, 4 * LAYERS + 1]
    assert [counted.found[name] for name in OPERATORS] == both


def fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let norms be taken for fused, and compute what they would in PyTorch."""
    monkeypatch.setattr(layers, "is_fused", lambda operator, _: operator in layers.NORMS[:2])


def outputs_and_gradients(denoiser: Denoiser) -> list[Tensor]:
    passed = denoiser.run_sequences(*batch(torch.float64), denoiser.initial_memory(2))
    assert passed.summary is not None
    loss = (passed.velocity - 1).square().mean() + (passed.summary - 1).square().mean()
    gradients = torch.autograd.grad(loss, list(denoiser.parameters()), allow_unused=True)
    states = [state for state in passed.final_states if isinstance(state, Tensor)]
    return [passed.velocity, passed.summary, *states, *(each for each in gradients if each is not None)]


@pytest.mark.parametrize("windows", [[1, 3], []])
def test_a_network_says_and_learns_the_same(windows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    found, kinds = [], {"window_layers": windows, "full_layers": [] if windows else [1, 3]}
    for is_fused in (False, True):
        if is_fused:
            fuse(monkeypatch)
        found.append(outputs_and_gradients(network(outcome_heads=True, **kinds).double()))
    assert len(found[0]) == len(found[1]) > 60
    for got, right in zip(*found, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-12)


def test_only_the_fused_form_leaves_something_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[Residual] = []

    def run_block(index: int, residual: Residual, *given: Any) -> Residual:
        left.append(denoiser.layers()[index](residual, *given)[0])
        return left[-1]

    for is_fused in (False, True):
        if is_fused:
            fuse(monkeypatch)
        denoiser = network(window_layers=[2])
        denoiser(*batch(torch.float32), run_block)
    for plain, fused in zip(left[:LAYERS], left[LAYERS:], strict=True):
        assert plain.branch is None
        assert plain.total() is plain.x
        assert fused.branch is not None
        assert (fused.x - plain.x).abs().max() > 1e-3
        torch.testing.assert_close(fused.total(), plain.x)


def test_the_first_stage_of_a_conversion_sees_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere = list(range(LAYERS))
    teacher = network(window_layers=[], full_layers=everywhere)
    student, losses = network(window_layers=[], full_layers=[0, 2]), []
    latents, _, _, actions = batch(torch.float32)
    stage = LayerDistillation(teacher, student, [1, 3], ObjectiveConfig())
    for is_fused in (False, True):
        if is_fused:
            fuse(monkeypatch)
        losses.append(stage(latents, actions, torch.Generator().manual_seed(1)))
    assert losses[0].keys() == losses[1].keys() == {"loss", "layer_01", "layer_03"}
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss)
