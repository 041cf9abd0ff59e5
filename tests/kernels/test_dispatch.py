"""The dispatcher takes what it is told, and says what is wrong with what it gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
from kernels import reference
from kernels.benchmark_inputs import make_inputs
from kernels.dispatch import choose_form
from kernels.torch_scan import scan_frames as scan_frames_torch

ROOT = Path(__file__).resolve().parents[2]


def test_a_cpu_runs_the_torch_form_bit_for_bit() -> None:
    inputs, _ = make_inputs("random", (2, 3, 20, 2, 16), "cpu")
    for got, expected in zip(kernels.scan_frames(*inputs), scan_frames_torch(*inputs), strict=True):
        assert torch.equal(got, expected)


def test_the_reference_can_be_asked_for() -> None:
    inputs, _ = make_inputs("random", (1, 2, 5, 2, 16), "cpu")
    got, expected = kernels.scan_frames(*inputs, form="reference"), reference.scan_frames(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_cuda_chooses_triton_unless_it_computes_in_fp64() -> None:
    with torch.device("meta"):
        assert choose_form("scan_frames", torch.empty(1)) == "torch"
    with torch._subclasses.FakeTensorMode():
        assert choose_form("scan_frames", torch.empty(1, device="cuda")) == "triton"
        assert choose_form("scan_frames", torch.empty(1, device="cuda", dtype=torch.float64)) == "torch"


def test_the_environment_chooses() -> None:
    command = "import torch, kernels.dispatch as d; print(d.choose_form('scan_frames', torch.empty(1)))"
    environment = os.environ | {"ARL2_KERNELS": "reference"}
    run = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "reference"


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(ValueError, match="'cuda', expected one of auto"):
        choose_form("scan_frames", torch.empty(1), "cuda")


@pytest.mark.parametrize("wrong", ["v", "g", "beta", "state"])
@pytest.mark.parametrize("form", ["reference", "torch", "triton"])
def test_a_shape_that_does_not_fit_is_named(wrong: str, form: str) -> None:
    names = ("k", "v", "g", "beta", "state")
    inputs = dict(zip(names, make_inputs("random", (1, 2, 5, 2, 16), "cpu")[0], strict=True))
    inputs[wrong] = inputs[wrong][:, :1]
    with pytest.raises(ValueError, match=f"^{wrong} has shape"):
        kernels.scan_frames(**inputs, form=form)
