"""Benchmark of the gradient of `commit`: errors against fp64 autograd, and times."""

# B batch, N tokens of one frame, H heads, D width

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import kernels
from kernels.benchmark.inputs import REGIMES, make_frame
from kernels.benchmark.peers import Commit, peers
from kernels.benchmark.report import (
    Report,
    Result,
    attempt,
    cpu_milliseconds,
    milliseconds,
    relative_errors,
    show_times,
)

Shape = tuple[int, int, int, int]
Gradients = tuple[Tensor, ...]

NAMES = ("dk", "dv", "dg", "dbeta", "dstate")
ON_CUDA: list[Shape] = [(32, 80, 6, 64), (1, 1560, 12, 128)]
ON_CPU: list[Shape] = [(1, 80, 6, 64), (1, 320, 2, 128)]


def gradients_of(commit: Commit, inputs: tuple[Tensor, ...], weights: Tensor) -> Gradients:
    """Return the gradients of the five inputs of a commit for `weights`, those of the state after it."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    final = commit(*leaves)
    return torch.autograd.grad(final, leaves, weights.to(final.dtype))


def commit_gradients(report: Report) -> Result:
    """Compare every form's gradients with fp64 autograd, k and v in fp32 and in bf16; then time them."""
    on_cuda = report.device == "cuda"
    forms: dict[str, Commit] = {"torch": partial(kernels.commit, form="torch")}
    if on_cuda:
        forms = {"triton": partial(kernels.commit, form="triton")} | forms
        forms |= {name: form for name, form in peers().items() if name == "fla chunk"}
    results: Result = {}
    for shape in ON_CUDA if on_cuda else ON_CPU:
        able = dict(forms)
        for regime in REGIMES:
            for dtype in (torch.float32, torch.bfloat16):
                compared = compare(able, shape, regime, dtype, report.device)
                able = {name: form for name, form in able.items() if "failed" not in compared[name]}
                key = f"{shape}, {regime}, {str(dtype).removeprefix('torch.')}"
                results |= {f"{key}, {name}": errors for name, errors in compared.items()}
        results |= time_forms(able, shape, report.device)
    return results


def compare(forms: dict[str, Commit], shape: Shape, regime: str, dtype: torch.dtype, device: str) -> Result:
    """Return the relative errors of every form's gradients, by form; the operands are rounded before both."""
    k, v, *others = make_frame(regime, shape, device)
    inputs = (k.to(dtype), v.to(dtype), *others)
    weights = torch.randn(others[-1].shape, generator=torch.Generator(device).manual_seed(1), device=device)
    exact = partial(kernels.commit, form="torch")
    expected = gradients_of(exact, tuple(tensor.double() for tensor in inputs), weights.double())
    results: Result = {}
    for name, commit in forms.items():
        label = f"{shape}, {regime}, {str(dtype).removeprefix('torch.')}, {name}"

        def errors(commit: Commit = commit, label: str = label) -> Result:
            return relative_errors(label, NAMES, gradients_of(commit, inputs, weights), expected)

        results[name] = attempt(label, errors)
    return results


def time_forms(forms: dict[str, Commit], shape: Shape, device: str) -> Result:
    """Time a commit with its gradient, bf16 keys and values on a card, fp32 on a CPU."""
    k, v, *others = make_frame("random", shape, device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    inputs = (k.to(dtype), v.to(dtype), *others)
    weights = torch.ones_like(others[-1])
    runs: dict[str, Callable[[], object]] = {
        name: partial(gradients_of, commit, inputs, weights) for name, commit in forms.items()
    }
    on_cuda = device == "cuda"
    times = {n: milliseconds(run) for n, run in runs.items()} if on_cuda else cpu_milliseconds(runs)
    labels = {name: f"commit with gradient {shape}, {name}" for name in forms}
    return {labels[name]: show_times(labels[name], took) for name, took in times.items()}
