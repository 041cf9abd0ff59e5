"""Benchmark of `commit` and `read`: errors against fp64, and times."""

# B batch, N tokens of one frame, H heads, D width

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import kernels
from kernels.benchmark.inputs import REGIMES, make_frame, make_inputs, make_reading
from kernels.benchmark.peers import Commit, peers
from kernels.benchmark.report import (
    Report,
    Result,
    attempt,
    copy_bandwidth,
    cpu_milliseconds,
    graph_milliseconds,
    relative_error,
    relative_errors,
    say,
    show_times,
)

Shape = tuple[int, int, int, int]

WIDE: list[Shape] = [(1, 1560, 12, 128), (1, 4680, 12, 128), (1, 3120, 12, 128)]
NARROW: list[Shape] = [(256, 64, 6, 64), (1, 80, 6, 64), (256, 128, 8, 64), (32, 80, 6, 64), (1, 64, 8, 64)]
"""Frames of the large model and of small ones, B N H D, the most telling first."""

ON_CPU: list[Shape] = [(1, 80, 6, 64), (8, 80, 6, 64), (1, 1560, 12, 128)]
"""One layer, the eight layers of the shipped world at once, and a frame of the large model."""


def halve(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs with keys and values in bf16."""
    return inputs[0].bfloat16(), inputs[1].bfloat16(), *inputs[2:]


def exact(inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the state after the commit, in fp64."""
    k, v, g, beta, state = (tensor.double() for tensor in inputs)
    return kernels.commit(k, v, g, beta, state, form="torch")


def forms(device: str) -> dict[str, Commit]:
    """Return everything that commits on this device."""
    if device == "cpu":
        return {"torch": partial(kernels.commit, form="torch")}
    from kernels.gpu import memory as triton_memory

    def exactly(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
        return triton_memory.commit(k, v, g, beta, state, triton_memory.default_for(k.float(), v.float()))

    ours = {"triton": partial(kernels.commit, form="triton"), "triton, tf32x3": exactly}
    return ours | peers() | {"torch": partial(kernels.commit, form="torch")}


def commit_error(label: str, commit: Commit, inputs: tuple[Tensor, ...], expected: Tensor) -> Result:
    """Return the relative error of one form; prints it."""
    error = relative_error(commit(*inputs), expected)
    say(f"{label:60s} {error:.1e}")
    return {"error": error}


@torch.no_grad()
def commit_errors(report: Report) -> Result:
    """Compare every form's state with fp64 for the same inputs, keys and values in bf16."""
    results: Result = {}
    shapes = [(2, 80, 6, 64), (1, 312, 2, 128)] if report.device == "cpu" else [NARROW[3], WIDE[0]]
    for shape in shapes:
        for regime in REGIMES:
            inputs = halve(make_frame(regime, shape, report.device))
            expected = exact(inputs)
            for name, commit in forms(report.device).items():
                label = f"{shape}, {regime}, {name}"
                results[label] = attempt(label, partial(commit_error, label, commit, inputs, expected))
    return results


@torch.no_grad()
def errors_over_frames(report: Report) -> Result:
    """Compare the state after 1, 21 and 252 frames with fp64, each form going on from its own state."""
    results: Result = {}
    for regime in REGIMES:
        (k, v, g, beta, state), _ = make_inputs(regime, (1, 252, 80, 2, 64), report.device)
        running = forms(report.device)
        states = dict.fromkeys(running, state) | {"exact": state.double()}
        for frame in range(252):
            inputs = halve((k[:, frame], v[:, frame], g[:, frame], beta[:, frame]))  # without the state
            states["exact"] = exact((*inputs, states["exact"]))
            inputs = [tensor.contiguous() for tensor in inputs]
            for name, commit in list(running.items()):
                try:
                    states[name] = commit(*inputs, states[name])
                except Exception as problem:
                    say(f"{regime}, {name}: {type(problem).__name__}: {str(problem)[:200]}")
                    del running[name]
            if frame + 1 in (1, 21, 252):
                each = [states[name] for name in running]
                label = f"{regime}, {frame + 1}"
                results[label] = relative_errors(label, list(running), each, [states["exact"]] * len(each))
        if report.seconds_left() < 8:
            break
    return results


def time_in_graph(label: str, run: Callable[[], object], floor_ms: float | None = None) -> Result:
    """Return the times of a call in a CUDA graph by its label, or how it failed; prints them."""
    return {label: attempt(label, lambda: show_times(label, graph_milliseconds(run), floor_ms))}


@torch.no_grad()
def commit_times(shapes: list[Shape], report: Report) -> Result:
    """Time every form at the shapes, each in CUDA graphs, beside the floor that memory traffic sets."""
    bandwidth = copy_bandwidth()
    results: Result = {"copy_gb_s": bandwidth}
    for shape in shapes:
        inputs = halve(make_frame("random", shape, report.device))
        # Everything has to be moved once, and the state once more.
        floor = (sum(tensor.nbytes for tensor in inputs) + inputs[-1].nbytes) / bandwidth / 1e6
        for name, commit in forms(report.device).items():
            if name != "torch" or shape[1] <= 128:
                results |= time_in_graph(f"commit {shape}, {name}", partial(commit, *inputs), floor)
        say_ratios(shape, results)
    return results


def say_ratios(shape: Shape, results: Result) -> None:
    """Print how many times faster than each peer the Triton form is."""
    ours = results[f"commit {shape}, triton"].get("median_ms")
    for name in peers():
        theirs = results[f"commit {shape}, {name}"].get("median_ms")
        if ours and theirs:
            say(f"commit {shape}: {theirs / ours:.2f} times as fast as {name}")


@torch.no_grad()
def read_times(report: Report) -> Result:
    """Time reading and its gradient in Triton, in two precisions, and reading in the torch form."""
    from kernels.gpu import memory as triton_memory

    compiled = torch.compile(kernels.read)
    results: Result = {}
    for shape in ((1024, 160, 6, 64), (1, 4680, 12, 128)):
        inputs = make_reading(shape, report.device)
        mixed = (*inputs[:3], inputs[3].bfloat16())
        expected = kernels.read(*(tensor.double() for tensor in mixed), form="torch").float()
        runs: dict[str, Callable[[], object]] = {
            "torch": partial(kernels.read, *mixed, form="torch"),
            "torch, compiled": partial(compiled, *mixed, form="torch"),
        }
        for config in (triton_memory.DEFAULT, triton_memory.HALF):
            runs[config.precision] = partial(triton_memory.read, *mixed, config)
            back = partial(triton_memory.read_backward, *mixed[:3], expected, config)
            runs[f"{config.precision}, gradient"] = back
        for name, run in runs.items():
            results |= time_in_graph(f"read {shape}, {name}", run)
    return results


def cpu_rows(report: Report) -> Result:
    """Time the operators on a CPU: the torch form, and the reference where it does not take too long."""
    results: Result = {}
    for shape in ON_CPU:
        inputs = make_frame("random", shape, "cpu")
        runs: dict[str, Callable[[], object]] = {"torch": partial(kernels.commit, *inputs, form="torch")}
        if shape[1] < 200:
            runs["reference"] = partial(kernels.commit, *inputs, form="reference")
        with torch.no_grad():
            times = cpu_milliseconds(runs)
        results |= {f"commit {shape}, {n}": show_times(f"commit {shape}, {n}", t) for n, t in times.items()}
    reading = make_reading((1, 80, 6, 64), "cpu")
    with torch.no_grad():
        times = cpu_milliseconds(
            {f: partial(kernels.read, *reading, form=f) for f in ("torch", "reference")}, 100
        )
    return results | {f"read, {name}": show_times(f"read, {name}", took) for name, took in times.items()}


def cpu_scan(report: Report) -> Result:
    """Time the scan forward, and with its gradient, on a CPU, the forms in turns."""
    inputs, weights = make_inputs("random", (4, 16, 80, 4, 64), "cpu")
    leaves = [tensor.requires_grad_() for tensor in inputs]

    def both(form: str) -> object:
        return torch.autograd.grad(kernels.scan_frames(*leaves, form=form), leaves, weights)

    def ahead(form: str) -> object:
        with torch.no_grad():
            return kernels.scan_frames(*leaves, form=form)

    results: Result = {}
    for name, run in (("forward", ahead), ("with gradient", both)):
        times = cpu_milliseconds({"torch": partial(run, "torch"), "reference": partial(run, "reference")}, 3)
        results |= {f"{name}, {form}": show_times(f"scan {name}, {form}", t) for form, t in times.items()}
    return results
