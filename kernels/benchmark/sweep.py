"""Every way to cut the Triton kernels that is worth a measurement, one kernel at a time.

`python -m kernels.benchmark.sweep 2 8` compiles the third of eight shares of them into Triton's disk cache,
and measures nothing: the benchmark has other processes do that, so that its own time goes into measuring. A
third argument is that of the benchmark's `--only`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kernels.benchmark.inputs import make_inputs
from kernels.gpu import launch as triton_launch
from kernels.gpu.launch import DEFAULT, Cut, Frames, LaunchConfig

CUTS = {
    "invert": [Cut(0, 1), Cut(0, 2)],
    "build": [
        *(Cut(32, 2), Cut(16, 1, 2), Cut(16, 2), Cut(32, 2, 2), Cut(32, 4), Cut(64, 4), Cut(64, 4, 2)),
        *(Cut(32, 2, 1, 168), Cut(64, 4, 1, 128)),
    ],
    "scan": [Cut(16, 4, 2), Cut(16, 2, 2), Cut(16, 4, 3), Cut(32, 4, 2), Cut(64, 4, 2)],
    "solve": [Cut(64, 4), Cut(16, 2), Cut(32, 4), Cut(64, 4, 2), Cut(64, 4, 1, 168), Cut(64, 4, 1, 128)],
    "values": [Cut(0, 4), Cut(0, 4, 2), Cut(0, 8), Cut(0, 4, 1, 128)],
    "keys": [
        *(Cut(32, 4), Cut(16, 2), Cut(16, 2, 2), Cut(32, 4, 2), Cut(64, 8)),
        *(Cut(32, 4, 1, 168), Cut(32, 4, 1, 128), Cut(64, 8, 1, 128)),
    ],
}
"""For each kernel the cut that `DEFAULT` has, then the others."""

Outputs = tuple[Tensor, ...]
Step = Callable[[LaunchConfig], Outputs]


def candidates() -> list[tuple[str, Cut]]:
    """Return kernel and cut of everything that is measured."""
    return [(name, cut) for name, cuts in CUTS.items() for cut in cuts]


def cut_as(name: str, cut: Cut) -> LaunchConfig:
    """Return `DEFAULT` but for one kernel."""
    changed: dict[str, Any] = {name: cut}
    return replace(DEFAULT, **changed)


def steps(inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> dict[str, Step]:
    """Return each kernel as a function of how it is cut, with the operands that it has in training."""
    k, v, g, beta, state = inputs
    d_before, d_final = weights
    frames = Frames(k, v, g, beta, DEFAULT)
    transition, write = triton_launch.build_maps(frames, *triton_launch.invert(frames))
    before, _ = triton_launch.scan(frames, transition, write, state)
    d_write, _ = triton_launch.scan_gradient(frames, transition, d_before, d_final)

    inverse = triton_launch.invert(frames)
    z, u = triton_launch.solve(frames, *inverse, before, d_write)
    decay = inverse[1]

    def cut(config: LaunchConfig) -> Frames:
        return Frames(k, v, g, beta, config)

    def scans(config: LaunchConfig) -> Outputs:
        ahead = triton_launch.scan(cut(config), transition, write, state)
        return *ahead, *triton_launch.scan_gradient(cut(config), transition, d_before, d_final)

    return {
        "invert": lambda config: triton_launch.invert(cut(config)),
        "build": lambda config: triton_launch.build_maps(cut(config), *inverse),
        "scan": scans,
        "solve": lambda config: triton_launch.solve(cut(config), *inverse, before, d_write),
        "values": lambda config: triton_launch.value_gradients(
            cut(config), decay, transition, before, d_write, z
        ),
        "keys": lambda config: triton_launch.key_gradients(cut(config), decay, before, d_write, z, u),
    }


def difference(values: Outputs, expected: Outputs) -> float:
    """Return the largest relative difference of the outputs; infinite if one is not finite."""
    worst = 0.0
    for value, right in zip(values, expected, strict=True):
        if not bool(value.isfinite().all()):
            return float("inf")
        worst = max(worst, float(((value - right).norm() / right.norm().clamp_min(1e-30)).detach()))
    return worst


def registers(name: str) -> str:
    """Return registers and spills of the kernel that was compiled last, where Triton tells."""
    functions = {
        "invert": triton_launch.invert_blocks,
        "build": triton_launch.frame_map_forward,
        "scan": triton_launch.scan_backward,
        "solve": triton_launch.frame_map_solve,
        "values": triton_launch.value_gradient,
        "keys": triton_launch.key_gradient,
    }
    try:
        compiled = list(functions[name].device_caches[torch.cuda.current_device()][0].values())[-1]
    except (AttributeError, IndexError, KeyError, TypeError):
        return "registers unknown"
    return f"{compiled.n_regs} registers, {compiled.n_spills} spilled"


def sweep_cuts(
    inputs: tuple[Tensor, ...],
    weights: tuple[Tensor, ...],
    milliseconds: Callable[[Callable[[], object]], dict[str, float]],
    say: Callable[[str], None],
    seconds_left: Callable[[], float],
) -> tuple[LaunchConfig, list[dict[str, Any]]]:
    """Time every cut; return the fastest right ones, as a configuration, and all results."""
    run = steps(inputs, weights)
    results: list[dict[str, Any]] = []
    best: dict[str, tuple[float, Cut]] = {}
    expected = {name: run[name](DEFAULT) for name in CUTS}
    for name, cut in candidates():
        if seconds_left() < 8:
            say(f"no time left for {name} {cut}")
            continue
        config = cut_as(name, cut)
        try:
            error = difference(run[name](config), expected[name])
            took = milliseconds(lambda name=name, config=config: run[name](config))["median_ms"]
        except Exception as problem:
            say(f"{name:7s} {cut}: {type(problem).__name__}: {str(problem)[:300]}")
            results.append({"kernel": name, "cut": str(cut), "failed": str(problem)[:300]})
            continue
        say(f"{name:7s} {cut}: {took:.3f} ms, differs by {error:.1e}, {registers(name)}")
        results.append({"kernel": name, "cut": str(cut), "median_ms": took, "difference": error})
        if error < 1e-4 and took < best.get(name, (float("inf"), cut))[0]:
            best[name] = (took, cut)
    return replace(DEFAULT, **{name: cut for name, (_, cut) in best.items()}), results


def compile_share(share: int, shares: int) -> None:
    """Run some of the candidates once, on one sequence: its kernels are those of many."""
    run = steps(*make_inputs("random", (1, 32, 80, 6, 64), "cuda"))
    for name, cut in candidates()[share::shares]:
        try:
            run[name](cut_as(name, cut))
        except Exception as problem:  # the benchmark meets it again, and reports it
            sys.stderr.write(f"{name} {cut}: {type(problem).__name__}\n")


def main(share: int, shares: int, only: str = "") -> None:
    """Compile a share of what the benchmark measures, the commits first, as it does."""
    from kernels.benchmark import memory

    if only in "commit: cuts":
        memory.compile_share(share, shares)
    if only in "scan: cuts":
        compile_share(share, shares)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
