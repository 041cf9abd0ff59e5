"""Launch settings beside the chosen ones, all of which must compile and compute the same.

Those that were measured to be slow everywhere are in docs/experiments/kernels.md alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from kernels.benchmark.layers import settings_of
from kernels.gpu import launch as triton_launch
from kernels.gpu.chunk_launch import ChunkConfig
from kernels.gpu.launch import DEFAULT as SCAN_DEFAULT
from kernels.gpu.launch import Frames, LaunchConfig, ScanConfig
from kernels.gpu.memory import DEFAULT, HALF, MemoryConfig
from kernels.gpu.settings import HALF as LAYERS
from kernels.gpu.settings import LayerConfig

CANDIDATES = {
    name: [LaunchConfig(*numbers) for numbers in choices]
    for name, choices in {
        "invert": [(0, 1), (0, 2)],
        "build": [
            *((32, 2), (16, 1, 2), (16, 2), (32, 2, 2), (32, 4), (64, 4), (64, 4, 2)),
            *((32, 2, 1, 168), (64, 4, 1, 128)),
        ],
        "scan": [(16, 4, 2), (16, 2, 2), (16, 4, 3), (32, 4, 2), (64, 4, 2)],
        "solve": [(64, 4), (16, 2), (32, 4), (64, 4, 2), (64, 4, 1, 168), (64, 4, 1, 128)],
        "values": [(0, 4), (0, 4, 2), (0, 8), (0, 4, 1, 128)],
        "keys": [
            *((32, 4), (16, 2), (16, 2, 2), (32, 4, 2), (64, 8)),
            *((32, 4, 1, 168), (32, 4, 1, 128), (64, 8, 1, 128)),
        ],
    }.items()
}
"""Launch settings by kernel of the scan; the first is the one that others are compared with."""

Outputs = tuple[Tensor, ...]
Step = Callable[[ScanConfig], Outputs]


def candidates() -> list[tuple[str, LaunchConfig]]:
    """Return kernel and settings of every candidate of the scan."""
    return [(name, launch) for name, choices in CANDIDATES.items() for launch in choices]


def steps(inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> dict[str, Step]:
    """Return each kernel as a function of its settings, with the operands that it has in training."""
    k, v, g, beta, state = inputs
    d_before, d_final = weights
    frames = Frames(k, v, g, beta, SCAN_DEFAULT)
    transition, write = triton_launch.build_maps(frames, *triton_launch.invert(frames))
    before, _ = triton_launch.scan(frames, transition, write, state)
    d_write, _ = triton_launch.scan_gradient(frames, transition, d_before, d_final)

    inverse = triton_launch.invert(frames)
    z, u = triton_launch.solve(frames, *inverse, before, d_write)
    decay = inverse[1]

    def frames_with(config: ScanConfig) -> Frames:
        return Frames(k, v, g, beta, config)

    def scans(config: ScanConfig) -> Outputs:
        ahead = triton_launch.scan(frames_with(config), transition, write, state)
        return *ahead, *triton_launch.scan_gradient(frames_with(config), transition, d_before, d_final)

    return {
        "invert": lambda config: triton_launch.invert(frames_with(config)),
        "build": lambda config: triton_launch.build_maps(frames_with(config), *inverse),
        "scan": scans,
        "solve": lambda config: triton_launch.solve(frames_with(config), *inverse, before, d_write),
        "values": lambda config: triton_launch.value_gradients(
            frames_with(config), decay, transition, before, d_write, z
        ),
        "keys": lambda config: triton_launch.key_gradients(frames_with(config), decay, before, d_write, z, u),
    }


def difference(values: Outputs, expected: Outputs) -> float:
    """Return the largest relative difference of the outputs; infinite if one holds NaN or inf."""
    worst = 0.0
    for value, right in zip(values, expected, strict=True):
        if not bool(value.isfinite().all()):
            return float("inf")
        worst = max(worst, float(((value - right).norm() / right.norm().clamp_min(1e-30)).detach()))
    return worst


SEGMENTS = replace(HALF.chunks, segment=10)
SMALL = ChunkConfig(16, 20, copies=False, prepare=LaunchConfig(16, 2), build=LaunchConfig(64, 4, 3))

CHUNKS = [
    SEGMENTS,
    SMALL,
    replace(SMALL, segment=34),
    replace(SMALL, copies=True),
    replace(SMALL, prepare=LaunchConfig(16, 1)),
    replace(SMALL, prepare=LaunchConfig(16, 1), segment=34),
    replace(SEGMENTS, segment=17),
    replace(SEGMENTS, segment=17, build=LaunchConfig(64, 4, 4), chain=LaunchConfig(16, 4, 4)),
    ChunkConfig(32, copies=False, prepare=LaunchConfig(32, 2), apply=LaunchConfig(16, 4, 3)),
    ChunkConfig(segment=5),
]
"""For frames of many tokens."""

WHOLE = [
    (16, LaunchConfig(64, 2, 2)),
    (16, LaunchConfig(32, 1, 2)),
    (16, LaunchConfig(16, 1)),
    (16, LaunchConfig(64, 1)),
    (32, LaunchConfig(64, 2)),
    (64, LaunchConfig(64, 4)),
    (16, LaunchConfig(64, 2, 2, 168)),
]
"""For frames of few tokens: tokens of a step, and columns."""


def commit_configs() -> dict[str, list[MemoryConfig]]:
    """Return the candidates of a commit: of few tokens at once, and of many in chunks."""
    whole = [replace(HALF, block=block, whole=launch) for block, launch in WHOLE]
    whole += [replace(HALF, merges="tf32x3", whole=LaunchConfig(32, 1))]
    whole += [replace(HALF, max_whole=0, chunks=ChunkConfig(64, copies=False, apply=LaunchConfig(64, 4)))]
    whole += [
        replace(DEFAULT, whole=launch)
        for launch in (LaunchConfig(16, 4), LaunchConfig(32, 4), LaunchConfig(16, 2))
    ]
    chunks = [replace(HALF, max_whole=0, chunks=config) for config in CHUNKS]
    exact = replace(DEFAULT.chunks, segment=20)
    chunks += [replace(DEFAULT, max_whole=0, chunks=config) for config in (exact, DEFAULT.chunks)]
    return {"whole": whole, "chunks": chunks}


def read_configs() -> list[MemoryConfig]:
    """Return the candidates of a reading."""
    reads = [
        (LaunchConfig(32, 4), LaunchConfig(32, 4)),
        (LaunchConfig(64, 4), LaunchConfig(16, 4)),
        (LaunchConfig(32, 8), LaunchConfig(32, 8)),
        (LaunchConfig(64, 8), LaunchConfig(64, 8)),
    ]
    return [
        replace(DEFAULT, precision=p, read=read, gradient=gradient)
        for read, gradient in reads
        for p in ("tf32x3", "fp16")
    ]


def layer_configs() -> list[LayerConfig]:
    """Return the candidates of a layer's kernels: one of each kernel's settings changed at a time."""
    return list(settings_of(LAYERS).values())
