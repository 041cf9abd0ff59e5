"""Every way to cut a commit or a reading that is worth a measurement, the best guesses first.

Those that were measured to be slow everywhere are in docs/experiments/LOG.md alone.
"""

from __future__ import annotations

from dataclasses import replace

from kernels.gpu.chunk_launch import Chunks
from kernels.gpu.launch import Cut
from kernels.gpu.memory import DEFAULT, HALF, MemoryConfig

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
