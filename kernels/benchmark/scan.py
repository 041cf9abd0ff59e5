"""Sections of the benchmark about `scan_frames` on a card: errors against fp64, times, every cut."""

# B batch, F frames, N tokens of one frame, H heads, D width

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from kernels.benchmark.inputs import REGIMES, make_inputs
from kernels.benchmark.report import Report, Result, copy_bandwidth, milliseconds, relative_error, say
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
    """Return the outputs and gradients of the Triton form cut as in `config`, without autograd."""
    from kernels.gpu import launch as triton_launch

    def run(inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        k, v, g, beta, state = inputs
        before, final, transition = triton_launch.forward(k, v, g, beta, state, config)
        d_before, d_final = weights
        incoming = (before, transition, d_before, d_final)
        return before, final, *triton_launch.backward(k, v, g, beta, *incoming, config=config)

    return run


def relative_errors(values: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> dict[str, float]:
    """Return the relative Frobenius error of each, infinite where a number is not finite."""
    pairs = zip(NAMES, values, expected, strict=True)
    return {name: relative_error(value, right) for name, value, right in pairs}


def show_errors(label: str, errors: dict[str, float]) -> None:
    """Print one line of errors."""
    say(f"{label:34s}" + "".join(f" {name} {error:8.1e}" for name, error in errors.items()))


def check_errors(report: Report) -> Result:
    """Compare both forms in fp32 with fp64 autograd, at the true frame and on inputs that break kernels."""
    from kernels.gpu.launch import DEFAULT

    results: Result = {}
    for regime in REGIMES:
        inputs, weights = make_inputs(regime, (2, 32, 80, 6, 64), "cuda")
        expected = with_gradients(
            scan_frames_torch, tuple(t.double() for t in inputs), tuple(t.double() for t in weights)
        )
        forms = {
            "triton": lambda i, w: with_gradients(scan_frames_triton, i, w),
            "triton, tf32": with_config(replace(DEFAULT, precision="tf32")),
            "torch": lambda i, w: with_gradients(scan_frames_torch, i, w),
        }
        for form, run in forms.items():
            errors = relative_errors(run(inputs, weights), expected)
            show_errors(f"{regime}, {form}", errors)
            results[f"{regime}, {form}"] = errors
        half = (inputs[0], inputs[1].bfloat16(), *inputs[2:])
        values = with_gradients(scan_frames_triton, half, weights)
        rounded = with_gradients(
            scan_frames_torch, tuple(t.double() for t in half), tuple(t.double() for t in weights)
        )
        errors = relative_errors(values, rounded)
        show_errors(f"{regime}, triton, bf16 v", errors)
        results[f"{regime}, triton, bf16 v"] = errors
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
    """Check and time heads of 128, whose cuts were never measured."""
    small, weights = make_inputs("similar_keys", (1, 4, 80, 2, 128), "cuda")
    exact = [tuple(tensor.double() for tensor in part) for part in (small, weights)]
    errors = relative_errors(
        with_gradients(scan_frames_triton, small, weights), with_gradients(scan_frames_torch, *exact)
    )
    show_errors("similar_keys, width 128", errors)
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

    expected = tuple(t.double() for t in with_gradients(block, inputs, weights))
    errors = relative_errors(with_gradients(torch.compile(block, fullgraph=True), inputs, weights), expected)
    show_errors("compiled against eager", errors)
    return errors


def sweep(report: Report) -> Result:
    """Time every way to cut each kernel, then the whole form with the best of each."""
    from kernels.benchmark.sweep import sweep_cuts

    inputs, weights = make_inputs("random", (32, 32, 80, 6, 64), "cuda")
    best, results = sweep_cuts(inputs, weights, milliseconds, say, report.seconds_left)
    small, small_weights = make_inputs("similar_keys", (2, 32, 80, 6, 64), "cuda")
    expected = with_gradients(
        scan_frames_torch, tuple(t.double() for t in small), tuple(t.double() for t in small_weights)
    )
    errors = relative_errors(with_config(best)(small, small_weights), expected)
    show_errors("best cuts, similar_keys", errors)
    run = with_config(best)
    both = milliseconds(lambda: run(inputs, weights))
    say(f"best cuts, forward + backward without autograd: {both['median_ms']:.3f} ms\n{best}")
    return {"cuts": results, "best": asdict(best), "errors": errors, "forward_backward": both}


def start_compilers(shares: int, only: str) -> list[subprocess.Popen[bytes]]:
    """Start processes that fill Triton's cache on disk with the cuts that are measured."""
    command = [sys.executable, "-m", "kernels.benchmark.sweep"]
    return [subprocess.Popen([*command, str(share), str(shares), only]) for share in range(shares)]


def await_compilers(compilers: list[subprocess.Popen[bytes]], report: Report) -> Result:
    """Wait until nothing else runs on the GPU; what is not ready by then is compiled when it is needed."""
    for process in compilers:
        try:
            process.wait(timeout=max(1.0, report.seconds_left() - 45))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return {"exit_codes": [process.returncode for process in compilers]}
