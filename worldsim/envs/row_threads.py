"""A batch on a CPU, stepped in pieces that run beside each other, one thread each.

A frame is hundreds of small operators. Shared among threads, each of them ends with threads waiting for each
other: two threads then need 40 % more processor time than one. Whole rows in threads of their own never wait.
"""

# B batch, A action axes

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from worldsim.model.memory.state import MemoryState
from worldsim.runtime.isolation import isolated
from worldsim.simulator import Simulator
from worldsim.state import WorldState

Argument = TypeVar("Argument")
Result = TypeVar("Result")

MAX_WORKERS = 4
"""Python itself runs one thread at a time: more of them wait for it more than they compute."""
MAX_ROWS = 8
"""Rows of a piece: what more of them work on leaves the processor's cache."""


class RowThreads:
    """Steps B dreams in pieces of at most `MAX_ROWS`; on a GPU all at once."""

    def __init__(self, simulator: Simulator, batch_size: int) -> None:
        is_cpu = simulator.world.device.type == "cpu"
        threads = torch.get_num_threads() if is_cpu else 1
        num_workers = min(threads, batch_size, MAX_WORKERS)
        num_pieces = max(num_workers, -(-batch_size // MAX_ROWS)) if is_cpu else 1
        self._simulator = simulator
        self._pieces = list(_pieces(batch_size, num_pieces))
        self._num_workers, self._process = num_workers, os.getpid()
        self._pool = _start_workers(num_workers, threads) if num_workers > 1 else None

    @isolated
    def step(self, state: WorldState, actions: Tensor) -> WorldState:
        """Return the state after the frames that `actions` `[B, A]` lead to; `state` stays as it was."""
        if len(self._pieces) == 1:
            return self._simulator.step(state, actions)[1]
        pieces = [(_rows(state, piece), actions[piece]) for piece in self._pieces]
        pool = self._workers()
        run = map if pool is None else pool.map
        return self.alone(WorldState.join, list(run(self._step_piece, *zip(*pieces, strict=True))))

    def alone(self, call: Callable[[Argument], Result], argument: Argument) -> Result:
        """Return `call(argument)` of something small, computed by one of the workers if there are any.

        Outside of them PyTorch would share it out among threads, which then wait for each other.
        """
        pool = self._workers()
        return call(argument) if pool is None else pool.submit(call, argument).result()

    def _workers(self) -> ThreadPoolExecutor | None:
        """Return the workers, started anew in a process that was forked: threads do not come along."""
        if self._pool is not None and self._process != os.getpid():
            self._process = os.getpid()
            self._pool = _start_workers(self._num_workers, torch.get_num_threads())
        return self._pool

    def _step_piece(self, state: WorldState, actions: Tensor) -> WorldState:
        return self._simulator.step(state, actions)[1]

    def __getstate__(self) -> dict[str, Any]:
        """Return what it is made of, for a copy with threads of its own."""
        return self.__dict__ | {"_pool": None}

    def __setstate__(self, made_of: dict[str, Any]) -> None:
        self.__dict__.update(made_of, _process=os.getpid())
        if self._num_workers > 1:
            self._pool = _start_workers(self._num_workers, torch.get_num_threads())

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None and self._process == os.getpid():
            self._pool.shutdown()


def _start_workers(num_workers: int, threads: int) -> ThreadPoolExecutor:
    """Return a pool whose workers share out the threads that PyTorch may use."""
    ready = threading.Barrier(num_workers + 1)

    def begin() -> None:
        # When a thread first asks, it takes over the common number: now, not after its own was set.
        torch.get_num_threads()
        torch.set_num_threads(max(1, threads // num_workers))
        ready.wait()

    pool = ThreadPoolExecutor(num_workers, "dreams", initializer=begin)
    for _ in range(num_workers):
        pool.submit(int)  # a worker is only started when there is work and none is idle
    ready.wait()
    torch.set_num_threads(threads)  # what threads that come later begin with
    return pool


def _pieces(batch_size: int, num_pieces: int) -> Iterator[slice]:
    bounds = [batch_size * piece // num_pieces for piece in range(num_pieces + 1)]
    return (slice(*both) for both in zip(bounds, bounds[1:], strict=False))


def _rows(state: WorldState, piece: slice) -> WorldState:
    """Return some rows of a state without copying them."""
    memory: MemoryState = state.memory.slice_rows(piece)
    return replace(
        state,
        memory=memory,
        frame_index=state.frame_index[piece],
        seed=state.seed[piece],
        frames=state.frames[piece],
    )
