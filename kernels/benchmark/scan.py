"""Benchmark of `scan_frames` on a GPU: errors against fp64, times, memory."""

# B batch, F frames, N tokens of one frame, H heads, D width

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.benchmark.inputs import REGIMES, make_inputs
from kernels.benchmark.report import Report, Result, copy_bandwidth, milliseconds, relative_errors, say
from kernels.operators import scan_frames_triton
from kernels.torch_scan import scan_frames as scan_frames_torch

Scan = Callable[..., tuple[Tensor, ...]]
NAMES = ("before", "final", "dk", "dv", "dg", "dbeta", "dstate")


def with_gradients(scan: Scan, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the two outputs of `scan`, and the gradients of its five inputs for `weights`."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    before, final = scan(*leaves)[:2]
    gradients = torch.autograd.grad((before, final), leaves, weights)
    return before.detach(), final.detach(), *gradients


def with_config(config: Any) -> Scan:
    """Return the outputs and gradients of the Triton form launched by `config`, without autograd."""
    from kernels.gpu import launch as triton_launch

    def run(inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        k, v, g, beta, state = inputs
        before, final, transition = triton_launch.forward(k, v, g, beta, state, config)
        d_before, d_final = weights
        incoming = (before, transition, d_before, d_final)
        return before, final, *triton_launch.backward(k, v, g, beta, *incoming, config=config)

    return run


def doubled(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the tensors in fp64."""
    return tuple(tensor.double() for tensor in tensors)


def check_errors(report: Report) -> Result:
    """Compare both forms in fp32 with fp64 autograd, at the true frame and on inputs that break kernels."""
    from kernels.gpu.launch import DEFAULT

    forms: dict[str, Callable[..., tuple[Tensor, ...]]] = {
        "triton": partial(with_gradients, scan_frames_triton),
        "triton, tf32": with_config(replace(DEFAULT, precision="tf32")),
        "torch": partial(with_gradients, scan_frames_torch),
    }
    results: Result = {}
    for regime in REGIMES:
        inputs, weights = make_inputs(regime, (2, 32, 80, 6, 64), "cuda")
        half = (inputs[0], inputs[1].bfloat16(), *inputs[2:])
        cases = {name: (run, inputs) for name, run in forms.items()}
        cases["triton, bf16 v"] = forms["triton"], half
        for name, (run, given) in cases.items():
            label = f"{regime}, {name}"
            expected = with_gradients(scan_frames_torch, doubled(given), doubled(weights))
            results[label] = relative_errors(label, NAMES, run(given, weights), expected)
    return results


def time_form(label: str, scan: Scan, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Result:
    """Measure forward, forward + backward, and the memory that the latter takes."""
    torch.cuda.empty_cache()
    with torch.no_grad():
        ahead = milliseconds(lambda: scan(*inputs))
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    both = milliseconds(lambda: with_gradients(scan, inputs, weights))
    peak = (torch.cuda.max_memory_allocated() - held) / 2**30
    say(
        f"{label:28s} forward {ahead['median_ms']:9.3f} ms   with gradient {both['median_ms']:9.3f} ms "
        f"(p10 {both['p10_ms']:.3f}, p90 {both['p90_ms']:.3f})   peak {peak:.2f} GiB"
    )
    return {"forward": ahead, "forward_backward": both, "peak_memory_gib": peak}


def time_forms(report: Report) -> Result:
    """Time both forms without compilation, beside the floor that memory traffic sets."""
    from kernels.gpu.launch import DEFAULT

    inputs, weights = make_inputs("random", (32, 32, 80, 6, 64), "cuda")
    bandwidth = copy_bandwidth()
    states = weights[0].nbytes
    read = sum(tensor.nbytes for tensor in inputs)
    floors = {"forward": read + states, "forward_backward": 3 * read + 3 * states}
    say(
        f"copy {bandwidth:.0f} GB/s; floors "
        + str({n: f"{b / bandwidth / 1e6:.3f} ms" for n, b in floors.items()})
    )
    results: Result = {"copy_gb_s": bandwidth, "floor_bytes": floors}
    results["triton"] = time_form("triton", scan_frames_triton, inputs, weights)
    results["torch"] = time_form("torch", scan_frames_torch, inputs, weights)
    for precision in ("tf32x3", "tf32"):
        run = with_config(replace(DEFAULT, precision=precision))
        both = milliseconds(lambda run=run: run(inputs, weights))
        say(f"triton, {precision}, without autograd: with gradient {both['median_ms']:.3f} ms")
        results[f"triton, {precision}, without autograd"] = both
    return results


def time_wide(report: Report) -> Result:
    """Check and time heads of 128, whose launch settings were never measured."""
    small, weights = make_inputs("similar_keys", (1, 4, 80, 2, 128), "cuda")
    values = with_gradients(scan_frames_triton, small, weights)
    expected = with_gradients(scan_frames_torch, doubled(small), doubled(weights))
    errors = relative_errors("similar_keys, width 128", NAMES, values, expected)
    inputs, weights = make_inputs("random", (16, 32, 80, 3, 128), "cuda")
    return {
        "errors": errors,
        "triton": time_form("triton, width 128", scan_frames_triton, inputs, weights),
        "torch": time_form("torch, width 128", scan_frames_torch, inputs, weights),
    }


def time_compiled(report: Report) -> Result:
    """Time the form in PyTorch under torch.compile."""
    inputs, weights = make_inputs("random", (32, 32, 80, 6, 64), "cuda")
    return {"torch": time_form("torch, compiled", torch.compile(scan_frames_torch), inputs, weights)}


def compile_around(report: Report) -> Result:
    """Compile a function that calls the Triton form, as one graph, and compare its gradients."""
    from kernels.dispatch import scan_frames

    inputs, weights = make_inputs("random", (2, 32, 80, 6, 64), "cuda")

    def block(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        before, final = scan_frames(torch.nn.functional.normalize(k, dim=-1), 2 * v, g, beta, state)
        return before + 1.0, final

    expected = doubled(with_gradients(block, inputs, weights))
    values = with_gradients(torch.compile(block, fullgraph=True), inputs, weights)
    return relative_errors("compiled against eager", NAMES, values, expected)
