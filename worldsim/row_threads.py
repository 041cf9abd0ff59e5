"""A batch on a CPU, stepped in pieces that run beside each other, one thread each.

A frame is hundreds of small operators. Shared among threads, each of them ends with threads waiting for each
other: two threads then need 40 % more processor time than one. Whole rows in threads of their own never wait.
"""

# B batch, A action axes

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from worldsim.model.memory import MemoryState
from worldsim.simulator import Simulator
from worldsim.state import WorldState

MAX_PIECES = 4
"""Python itself runs one thread at a time: more pieces wait for it more than they compute."""


class RowThreads:
    """Steps B dreams in pieces; on a GPU, with one thread or for one dream, all at once.

    Args:
        simulator: Of the world.
        batch_size: B.
    """

    def __init__(self, simulator: Simulator, batch_size: int) -> None:
        threads = torch.get_num_threads() if simulator.world.device.type == "cpu" else 1
        num_pieces = min(threads, batch_size, MAX_PIECES)
        self._simulator = simulator
        self._pieces = list(_pieces(batch_size, num_pieces))
        self._pool: ThreadPoolExecutor | None = None
        if num_pieces > 1:
            own = max(1, threads // num_pieces)
            ready = threading.Barrier(num_pieces + 1)

            def begin() -> None:
                # When a thread first asks, it takes over the common number: now, not after its own was set.
                torch.get_num_threads()
                torch.set_num_threads(own)
                ready.wait()

            self._pool = ThreadPoolExecutor(num_pieces, "dreams", initializer=begin)
            for _ in range(num_pieces):
                self._pool.submit(int)
            ready.wait()
            torch.set_num_threads(threads)  # what threads that come later begin with

    def step(self, state: WorldState, actions: Tensor) -> WorldState:
        """Return the state after the frames that `actions` `[B, A]` lead to; `state` stays as it was."""
        if self._pool is None:
            return self._simulator.step(state, actions)[1]
        futures = [
            self._pool.submit(self._simulator.step, _rows(state, piece), actions[piece])
            for piece in self._pieces
        ]
        return WorldState.join([future.result()[1] for future in futures])

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _pieces(batch_size: int, num_pieces: int) -> Iterator[slice]:
    bounds = [batch_size * piece // num_pieces for piece in range(num_pieces + 1)]
    return (slice(*both) for both in zip(bounds, bounds[1:], strict=False))


def _rows(state: WorldState, piece: slice) -> WorldState:
    """Return some rows of a state without copying them."""
    memory: MemoryState = state.memory.slice_rows(piece)
    return WorldState(
        memory=memory,
        frame_index=state.frame_index[piece],
        seed=state.seed[piece],
        frames=state.frames[piece],
    )
