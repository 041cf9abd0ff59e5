"""Noise of frames, decided by seed and frame alone, and its prefetching on background threads."""

# B batch

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.runtime.cores import usable_cores
from worldsim.runtime.isolation import isolated

MANY_ROWS, MAX_NOISE_THREADS = 64, 8
"""Rows from which on their noise is drawn in threads, and in how many."""
DRAW_FRAME, COMMIT_FRAME, WATCH_FRAME = 0, 1, 2
"""What a frame needs noise for: to begin drawing it, to commit it, and to watch it if it is a real one."""


def draw_noise(
    seeds: Tensor, frame_index: Tensor, shape: tuple[int, ...], purpose: int = DRAW_FRAME
) -> Tensor:
    """Return standard normal noise `[B, *shape]` fp32 on the CPU, decided by each row's seed and frame alone.

    Philox is counter-based: any frame's noise can be drawn without drawing those before it.

    Args:
        seeds: `[B]` int64, at least 0.
        frame_index: `[B]` int64, at least 0.
        shape: Of one row.
        purpose: `DRAW_FRAME`, `COMMIT_FRAME` or `WATCH_FRAME`: what is needed for one must not be the same
            for another.
    """
    noise = torch.empty(len(seeds), *shape, dtype=torch.float32)
    rows, keys = noise.numpy(), (seeds.tolist(), frame_index.tolist())
    if len(noise) < MANY_ROWS:
        fill_noise(rows, *keys, purpose)
    else:  # a GPU would wait for it
        threads = noise_threads()
        with ThreadPoolExecutor(threads) as pool:
            pieces = (range(first, len(noise), threads) for first in range(threads))
            list(pool.map(lambda piece: fill_noise(rows, *keys, purpose, piece), pieces))
    return noise


def noise_threads() -> int:
    """Return in how many threads the noise of many rows is drawn."""
    return min(usable_cores(), MAX_NOISE_THREADS)


def fill_noise(
    noise: np.ndarray,
    seeds: Sequence[int],
    frames: Sequence[int],
    purpose: int,
    rows: Iterable[int] | None = None,
) -> None:
    """Write the noise of some rows, as `draw_noise` returns it; other threads go on meanwhile.

    Args:
        noise: `[B, ...]` fp32, written to.
        rows: Which; all by default.
    """
    # One generator, set anew for each row: making one takes five times as long, and no thread can go on then.
    philox = np.random.Philox(key=0)
    generator, state = np.random.Generator(philox), philox.state
    for row in range(len(noise)) if rows is None else rows:
        state["state"] = {
            "counter": np.array([0, 0, purpose, frames[row]], dtype=np.uint64),
            "key": np.array([seeds[row], 0], dtype=np.uint64),
        }
        philox.state = state  # nothing is left over from the row before
        generator.standard_normal(dtype=np.float32, out=noise[row])


@dataclass(slots=True)
class _Buffer:
    """Noise on the host, and of which seeds and frames it is.

    Attributes:
        noise: `[B, ...]` fp32, in pinned memory where there is a GPU.
        keys: `[2, B]` int64, seeds and frames.
        drawing: What is still being written.
        copied: When the device has it; only then it may be written to again.
    """

    noise: Tensor
    keys: Tensor | None = None
    drawing: list[Future[None]] = field(default_factory=list)
    copied: torch.cuda.Event | None = None


class NoiseAhead:
    """Draws what `draw_noise` draws, the next frame's in threads, before it is asked for.

    What it returns is decided by each row's seed and frame alone: rows that went on otherwise than guessed,
    since they were reset, say, are drawn when they are asked for.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._shape, self._device = shape, device
        self._num_threads = noise_threads()
        self._pool, self._process = ThreadPoolExecutor(self._num_threads, "noise"), os.getpid()
        self._buffers: dict[int, list[_Buffer]] = {}

    @isolated
    def draw(self, seeds: Tensor, frame_index: Tensor, purpose: int = DRAW_FRAME) -> Tensor:
        """Return a frame's noise, `[B, *shape]` fp32 on the device, and begin to draw the next frame's.

        Arguments are those of `draw_noise`, on the CPU; what comes next is guessed for each purpose.

        Raises:
            WorldError: In a process that was forked since: neither the threads nor CUDA come along.
        """
        if self._process != os.getpid():
            raise WorldError(
                "a world on a GPU cannot be stepped in a process that was forked after it was loaded: "
                "load it there, in a process that was started with the context 'spawn' or 'forkserver'"
            )
        guessed, other = self._buffers_of(purpose, len(seeds))
        keys = torch.stack([seeds, frame_index])
        self._complete(guessed, keys, purpose)
        noise = torch.empty_like(guessed.noise, device=self._device, pin_memory=False)
        noise.copy_(guessed.noise, non_blocking=True)
        if self._device.type == "cuda":
            guessed.copied = torch.cuda.Event()
            guessed.copied.record(torch.cuda.current_stream(self._device))
        self._guess(other, torch.stack([seeds, frame_index + 1]), purpose)
        self._buffers[purpose] = [other, guessed]
        return noise

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _buffers_of(self, purpose: int, batch_size: int) -> list[_Buffer]:
        """Return the buffer that holds the guess, and the one whose noise was used last."""
        buffers = self._buffers.get(purpose)
        if buffers is None or len(buffers[0].noise) != batch_size:
            pin = self._device.type == "cuda"
            buffers = [
                _Buffer(torch.empty(batch_size, *self._shape, dtype=torch.float32, pin_memory=pin))
                for _ in range(2)
            ]
        return buffers

    def _complete(self, buffer: _Buffer, keys: Tensor, purpose: int) -> None:
        """Wait for a guess, and draw the rows that it got wrong."""
        self._wait(buffer)
        missed = range(keys.shape[1])
        if buffer.keys is not None:
            missed = (buffer.keys != keys).any(0).nonzero().flatten().tolist()
        self._begin(buffer, keys, purpose, missed)
        self._wait(buffer)

    def _guess(self, buffer: _Buffer, keys: Tensor, purpose: int) -> None:
        if buffer.copied is not None:
            buffer.copied.synchronize()  # a frame ago: nobody waits
        self._begin(buffer, keys, purpose, range(keys.shape[1]))

    def _begin(self, buffer: _Buffer, keys: Tensor, purpose: int, rows: range | list[int]) -> None:
        buffer.keys = keys
        noise, (seeds, frames) = buffer.noise.numpy(), keys.tolist()
        pieces = (rows[first :: self._num_threads] for first in range(self._num_threads))
        buffer.drawing = [
            self._pool.submit(fill_noise, noise, seeds, frames, purpose, piece) for piece in pieces if piece
        ]

    @staticmethod
    def _wait(buffer: _Buffer) -> None:
        """Wait until a buffer is written; what went wrong there is raised here."""
        keys, buffer.keys = buffer.keys, None
        for future in buffer.drawing:
            future.result()
        buffer.keys, buffer.drawing = keys, []
