"""Every way to cut a commit or a reading that is worth a measurement, the best guesses first."""

from __future__ import annotations

from dataclasses import replace

from kernels.triton_chunk_launch import Chunks
from kernels.triton_launch import Cut
from kernels.triton_memory import DEFAULT, HALF, MemoryConfig

SEGMENTS = Chunks(segment=5)

CHUNKS = [
    SEGMENTS,
    replace(SEGMENTS, segment=15),
    Chunks(),
    replace(SEGMENTS, copies=False),
    replace(SEGMENTS, segment=7, build=Cut(128, 8, 2)),
    replace(SEGMENTS, segment=3, build=Cut(128, 8, 2)),
    Chunks(apply=Cut(32, 4, 3)),
    Chunks(apply=Cut(16, 8, 3)),
    Chunks(copies=False, apply=Cut(16, 4, 2)),
    replace(SEGMENTS, build=Cut(64, 4, 3)),
    replace(SEGMENTS, segment=8, build=Cut(64, 8, 2)),
    replace(SEGMENTS, build=Cut(32, 4, 2)),
    replace(SEGMENTS, prepare=Cut(64, 8)),
    replace(SEGMENTS, prepare=Cut(64, 4, 1, 168)),
    replace(SEGMENTS, chain=Cut(32, 4, 3)),
    replace(SEGMENTS, chain=Cut(16, 8, 3)),
    Chunks(32, 10, prepare=Cut(32, 2), build=Cut(64, 4, 3)),
    Chunks(32, 10, prepare=Cut(32, 4), build=Cut(64, 4, 3)),
    Chunks(32, prepare=Cut(32, 2), apply=Cut(16, 4, 3)),
]
"""For frames of many tokens."""

WHOLE = [
    (16, Cut(64, 2, 2)),
    (16, Cut(64, 2)),
    (16, Cut(32, 1)),
    (16, Cut(32, 1, 2)),
    (16, Cut(32, 2, 2)),
    (16, Cut(64, 4)),
    (16, Cut(64, 4, 2)),
    (16, Cut(16, 1)),
    (16, Cut(16, 1, 2)),
    (16, Cut(64, 1)),
    (32, Cut(64, 4)),
    (32, Cut(64, 2)),
    (32, Cut(32, 2)),
    (64, Cut(64, 4)),
    (64, Cut(64, 8)),
    (16, Cut(64, 2, 2, 168)),
]
"""For frames of few tokens: tokens of a step, and columns."""


def commit_configs() -> dict[str, list[MemoryConfig]]:
    """Return every way to cut a commit that is measured: of few tokens at once, and of many in chunks."""
    whole = [replace(HALF, block=block, whole=cut) for block, cut in WHOLE]
    whole += [replace(HALF, merges="tf32x3", whole=cut) for cut in (Cut(64, 2), Cut(32, 1))]
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
