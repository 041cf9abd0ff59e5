"""The Triton form equals the token-by-token recurrence: in the interpreter, and on a GPU if there is one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
from kernels.benchmark.inputs import REGIMES, make_inputs

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-5  # fp32, keys of cosine 0.99 included
TOLERANCE_ON_GPU = 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("tokens", [20, 33, 48])
def test_outputs_and_gradients_equal_those_of_the_recurrence(
    interpreted_scan: dict[str, dict[str, float]], tokens: int, regime: str
) -> None:
    errors = interpreted_scan[f"{tokens} tokens, {regime}"]
    assert len(errors) == 7
    assert all(error < TOLERANCE for error in errors.values()), errors


@pytest.mark.slow
@pytest.mark.parametrize("case", ["widths_differ", "only_final_is_used", "candidates", "opcheck", "compiled"])
def test_the_operator_holds(interpreted_scan: dict[str, dict[str, float]], case: str) -> None:
    errors = interpreted_scan[case]
    assert errors
    assert all(error < TOLERANCE for error in errors.values()), errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("inside", "^$"),
        ("after", "loads bytes 0 to 24 of x_pointer, which has 20"),
        ("before", "loads bytes -4 to 20 of x_pointer, which has 20"),
        ("stored", "stores bytes 0 to 24 of out_pointer, which has 20"),
    ],
)
def test_lanes_outside_of_the_tensors_of_a_kernel_are_refused(
    interpreted_scan: dict[str, dict[str, str]], case: str, message: str
) -> None:
    """All that runs in the interpreter is held to this, forward and gradient."""
    assert re.search(message, interpreted_scan["outside"][case])


def test_asking_for_triton_on_a_cpu_says_what_to_do() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: it is a Linux package")
    inputs, _ = make_inputs("random", (1, 1, 4, 1, 16), "cpu")
    with pytest.raises(ValueError, match="form='torch'"):
        kernels.scan_frames(*inputs, form="triton")


def test_a_width_that_triton_does_not_take_is_named() -> None:
    inputs, _ = make_inputs("random", (1, 1, 4, 1, 24), "cpu")
    with pytest.raises(ValueError, match="width 24"):
        kernels.scan_frames(*inputs, form="triton")


def test_fp64_is_not_for_triton() -> None:
    inputs, _ = make_inputs("random", (1, 1, 4, 1, 16), "cpu")
    with pytest.raises(ValueError, match="float64"):
        kernels.scan_frames(*(tensor.double() for tensor in inputs), form="triton")


def test_importing_the_operators_does_not_import_triton() -> None:
    command = "import sys, kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.parametrize("regime", REGIMES)
def test_the_gpu_agrees_with_fp64_at_the_true_frame(regime: str) -> None:
    inputs, weights = make_inputs(regime, (2, 32, 80, 6, 64), "cuda")
    results = []
    for form, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        outputs = kernels.scan_frames(*leaves, form=form)
        gradients = torch.autograd.grad(outputs, leaves, [weight.to(dtype) for weight in weights])
        results.append([tensor.detach().double() for tensor in (*outputs, *gradients)])
    for value, expected in zip(*results, strict=True):
        assert value.isfinite().all()
        assert (value - expected).norm() <= TOLERANCE_ON_GPU * expected.norm().clamp_min(1e-30)
