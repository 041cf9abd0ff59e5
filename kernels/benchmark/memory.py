"""Sections of the benchmark about `commit` and `read`: errors against fp64, times, every cut."""

# B batch, N tokens of one frame, H heads, D width

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import kernels
from kernels.benchmark.inputs import REGIMES, make_frame, make_inputs, make_reading
from kernels.benchmark.peers import Commit, peers
from kernels.benchmark.report import (
    Report,
    Result,
    copy_bandwidth,
    cpu_milliseconds,
    graph_milliseconds,
    relative_error,
    say,
    show_times,
)

if TYPE_CHECKING:  # importing it needs Triton, which is not everywhere
    from kernels.gpu.launch import Cut
    from kernels.gpu.memory import MemoryConfig

Shape = tuple[int, int, int, int]

WIDE: list[Shape] = [(1, 1560, 12, 128), (1, 4680, 12, 128), (1, 3120, 12, 128)]
NARROW: list[Shape] = [(256, 64, 6, 64), (1, 80, 6, 64), (256, 128, 8, 64), (32, 80, 6, 64), (1, 64, 8, 64)]
"""Frames of the large model and of small ones, B N H D, the most telling first."""

ON_CPU: list[Shape] = [(1, 80, 6, 64), (8, 80, 6, 64), (1, 1560, 12, 128)]
"""One layer, the eight layers of the shipped world at once, and a frame of the large model."""


def commit_bytes(inputs: tuple[Tensor, ...]) -> int:
    """Return what a commit has to move: everything once, and the state once more."""
    return sum(tensor.nbytes for tensor in inputs) + inputs[-1].nbytes


def halve(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs with keys and values in bf16."""
    return inputs[0].bfloat16(), inputs[1].bfloat16(), *inputs[2:]


def exact(inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the state after the commit, in fp64."""
    with torch.no_grad():
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


def attempt(label: str, run: Callable[[], Result]) -> Result:
    """Return what `run` does, or how it failed: a form that cannot run a shape does not end the section."""
    try:
        with torch.no_grad():
            return run()
    except Exception as problem:
        say(f"{label:44s} {type(problem).__name__}: {str(problem)[:200]}")
        return {"failed": str(problem)[:500]}


def commit_errors(report: Report) -> Result:
    """Compare every form's state with fp64 for the same inputs, keys and values in bf16."""
    results: Result = {}
    shapes: list[Shape] = (
        [(2, 80, 6, 64), (1, 312, 2, 128)] if report.device == "cpu" else [NARROW[3], WIDE[0]]
    )
    for shape in shapes:
        for regime in REGIMES:
            inputs = halve(make_frame(regime, shape, report.device))
            expected = exact(inputs)
            for name, commit in forms(report.device).items():
                label = f"{shape}, {regime}, {name}"
                results[label] = attempt(
                    label, lambda c=commit, i=inputs, e=expected: {"error": relative_error(c(*i), e)}
                )
                say(f"{label:60s} {results[label].get('error', float('nan')):.1e}")
    return results


def errors_over_frames(report: Report) -> Result:
    """Compare the state after 1, 21 and 252 frames with fp64, each form going on from its own state."""
    results: Result = {}
    for regime in REGIMES:
        (k, v, g, beta, state), _ = make_inputs(regime, (1, 252, 80, 2, 64), report.device)
        names = forms(report.device)
        states = dict.fromkeys(names, state) | {"exact": state.double()}
        for frame in range(252):
            inputs = halve((k[:, frame], v[:, frame], g[:, frame], beta[:, frame]))  # without the state
            states["exact"] = exact((*inputs, states["exact"]))
            for name in list(names):
                try:
                    with torch.no_grad():
                        written = [tensor.contiguous() for tensor in inputs]
                        states[name] = names[name](
                            written[0], written[1], written[2], written[3], states[name]
                        )
                except Exception as problem:
                    say(f"{regime}, {name}: {type(problem).__name__}: {str(problem)[:200]}")
                    del names[name]
            if frame + 1 in (1, 21, 252):
                errors = {name: relative_error(states[name], states["exact"]) for name in names}
                results[f"{regime}, {frame + 1}"] = errors
                say(f"{regime}, {frame + 1:3d} frames: " + str({n: f"{e:.1e}" for n, e in errors.items()}))
        if report.seconds_left() < 8:
            break
    return results


def commit_times(shapes: list[Shape], report: Report) -> Result:
    """Time every form at the shapes, each in CUDA graphs, beside the floor that memory traffic sets."""
    bandwidth = copy_bandwidth()
    results: Result = {"copy_gb_s": bandwidth}
    for shape in shapes:
        inputs = halve(make_frame("random", shape, report.device))
        floor = commit_bytes(inputs) / bandwidth / 1e6
        for name, commit in forms(report.device).items():
            label = f"commit {shape}, {name}"
            if name == "torch" and shape[1] > 128:
                continue
            results[label] = attempt(
                label,
                lambda c=commit, i=inputs, n=label, f=floor: show_times(
                    n, graph_milliseconds(lambda: c(*i)), f
                ),
            )
        say_ratios(shape, results)
    return results


def say_ratios(shape: Shape, results: Result) -> None:
    """Print how many times faster than each peer the Triton form is."""
    ours = results[f"commit {shape}, triton"].get("median_ms")
    for name in peers():
        theirs = results[f"commit {shape}, {name}"].get("median_ms")
        if ours and theirs:
            say(f"commit {shape}: {theirs / ours:.2f} times as fast as {name}")


def cut_shapes() -> dict[str, list[Shape]]:
    """Return the shapes at which cuts are measured."""
    return {"whole": [NARROW[0], NARROW[2], NARROW[1]], "chunks": WIDE[:2]}


def compile_share(share: int, shares: int) -> None:
    """Run some of the cuts once, so that Triton's cache on disk has them when they are measured."""
    from kernels.benchmark.cuts import commit_configs
    from kernels.gpu import memory as triton_memory

    jobs = [
        (shape, config)
        for kind, shapes in cut_shapes().items()
        for shape in shapes
        for config in commit_configs()[kind]
    ]
    for shape, config in jobs[share::shares]:
        k, v, g, beta, state = halve(make_frame("random", shape, "cuda"))
        # What fails here the benchmark meets again, and reports.
        with suppress(Exception):
            triton_memory.commit(k, v, g, beta, state, config)


def describe(config: MemoryConfig) -> str:
    """Return what of a commit's configuration matters, short enough for a line."""

    def short(cut: Cut) -> str:
        return "/".join(str(part) for part in astuple(cut) if part is not None)

    few, many = config.few, config.chunks
    if few:
        return f"{config.precision} {config.merges} C {config.block} whole {short(config.whole)}"
    text = f"{config.precision} C {many.size} {'copies ' if many.copies else ''}prepare {short(many.prepare)}"
    if many.segment == 0:
        return f"{text} apply {short(many.apply)}"
    return f"{text} segment {many.segment} build {short(many.build)} chain {short(many.chain)}"


def commit_cuts(report: Report) -> Result:
    """Time every way to cut a commit, at the shapes of its kind."""
    from kernels.benchmark.cuts import commit_configs
    from kernels.gpu import memory as triton_memory

    results: Result = {}
    for kind, shapes in cut_shapes().items():
        for shape in shapes:
            inputs = halve(make_frame("similar_keys", shape, report.device))
            expected = exact(inputs)
            for config in commit_configs()[kind]:
                if report.seconds_left() < 12:
                    say("no time left")
                    return results
                label = f"{shape} {describe(config)}"
                run = partial(triton_memory.commit, *inputs, config)

                def measure(
                    run: Callable[[], Tensor] = run, label: str = label, e: Tensor = expected
                ) -> Result:
                    error = relative_error(run(), e)
                    return show_times(f"{label} {error:.0e}", graph_milliseconds(run)) | {"error": error}

                results[label] = attempt(label, measure)
    return results


def read_times(report: Report) -> Result:
    """Time reading: Triton's cuts, forward and gradient, beside the torch form, eager and compiled."""
    from kernels.benchmark.cuts import read_configs
    from kernels.gpu import memory as triton_memory

    results: Result = {}
    for shape in ((1024, 160, 6, 64), (1, 4680, 12, 128)):
        inputs = make_reading(shape, report.device)
        mixed = (*inputs[:3], inputs[3].bfloat16())
        expected = kernels.read(*(tensor.double() for tensor in mixed), form="torch")
        for config in read_configs():
            label = f"read {shape} {config.precision} {config.read}"
            run = partial(triton_memory.read, *mixed, config)
            results[label] = attempt(
                label,
                lambda r=run, n=label, e=expected: show_times(
                    f"{n} {relative_error(r(), e):.0e}", graph_milliseconds(r)
                ),
            )
            back = partial(triton_memory.read_backward, *mixed[:3], expected.float(), config)
            label = f"read, gradient {shape} {config.precision} {config.gradient}"
            results[label] = attempt(label, lambda r=back, n=label: show_times(n, graph_milliseconds(r)))
        for name, form in (("torch", kernels.read), ("torch, compiled", torch.compile(kernels.read))):
            run = partial(form, *mixed, form="torch")
            label = f"read {shape} {name}"
            results[label] = attempt(label, lambda r=run, n=label: show_times(n, graph_milliseconds(r)))
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
