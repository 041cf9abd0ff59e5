"""Launch settings beside the chosen ones, all of which must compile and compute the same.

Those that were measured to be slow everywhere are in docs/experiments/LOG.md alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from kernels.gpu import launch as triton_launch
from kernels.gpu.chunk_launch import Chunks
from kernels.gpu.launch import DEFAULT as SCAN_DEFAULT
from kernels.gpu.launch import Cut, Frames, LaunchConfig
from kernels.gpu.memory import DEFAULT, HALF, MemoryConfig

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
"""For each kernel the cut that `kernels.gpu.launch.DEFAULT` has, then the others."""

Outputs = tuple[Tensor, ...]
Step = Callable[[LaunchConfig], Outputs]


def candidates() -> list[tuple[str, Cut]]:
    """Return kernel and cut of everything that is measured."""
    return [(name, cut) for name, cuts in CUTS.items() for cut in cuts]


def cut_as(name: str, cut: Cut) -> LaunchConfig:
    """Return `kernels.gpu.launch.DEFAULT` but for one kernel."""
    changed: dict[str, Any] = {name: cut}
    return replace(SCAN_DEFAULT, **changed)


def steps(inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> dict[str, Step]:
    """Return each kernel as a function of how it is cut, with the operands that it has in training."""
    k, v, g, beta, state = inputs
    d_before, d_final = weights
    frames = Frames(k, v, g, beta, SCAN_DEFAULT)
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


SEGMENTS = replace(HALF.chunks, segment=10)
SMALL = Chunks(16, 20, copies=False, prepare=Cut(16, 2), build=Cut(64, 4, 3))

CHUNKS = [
    SEGMENTS,
    SMALL,
    replace(SMALL, segment=34),
    replace(SMALL, copies=True),
    replace(SMALL, prepare=Cut(16, 1)),
    replace(SMALL, prepare=Cut(16, 1), segment=34),
    replace(SEGMENTS, segment=17),
    replace(SEGMENTS, segment=17, build=Cut(64, 4, 4), chain=Cut(16, 4, 4)),
    Chunks(32, copies=False, prepare=Cut(32, 2), apply=Cut(16, 4, 3)),
    Chunks(segment=5),
]
"""For frames of many tokens."""

WHOLE = [
    (16, Cut(64, 2, 2)),
    (16, Cut(32, 1, 2)),
    (16, Cut(16, 1)),
    (16, Cut(64, 1)),
    (32, Cut(64, 2)),
    (64, Cut(64, 4)),
    (16, Cut(64, 2, 2, 168)),
]
"""For frames of few tokens: tokens of a step, and columns."""


def commit_configs() -> dict[str, list[MemoryConfig]]:
    """Return every way to cut a commit that is measured: of few tokens at once, and of many in chunks."""
    whole = [replace(HALF, block=block, whole=cut) for block, cut in WHOLE]
    whole += [replace(HALF, merges="tf32x3", whole=Cut(32, 1))]
    whole += [replace(HALF, few=0, chunks=Chunks(64, copies=False, apply=Cut(64, 4)))]
    whole += [replace(DEFAULT, whole=cut) for cut in (Cut(16, 4), Cut(32, 4), Cut(16, 2))]
    chunks = [replace(HALF, few=0, chunks=cut) for cut in CHUNKS]
    exact = replace(DEFAULT.chunks, segment=20)
    chunks += [replace(DEFAULT, few=0, chunks=cut) for cut in (exact, DEFAULT.chunks)]
    return {"whole": whole, "chunks": chunks}


def read_configs() -> list[MemoryConfig]:
    """Return every way to cut a reading that is measured."""
    reads = [
        (Cut(32, 4), Cut(32, 4)),
        (Cut(64, 4), Cut(16, 4)),
        (Cut(32, 8), Cut(32, 8)),
        (Cut(64, 8), Cut(64, 8)),
    ]
    return [
        replace(DEFAULT, precision=p, read=read, gradient=gradient)
        for read, gradient in reads
        for p in ("tf32x3", "fp16")
    ]
