"""Training runs on several devices, started as a launcher would start them; and what a device is sent."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from worldsim.errors import WorldError

needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="needs processes that fork")


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_on_devices(run: Callable[[], object], count: int = 2) -> list[BaseProcess]:
    """Start a run as several processes; a `WorldError` ends one with exit code 1 and goes to stderr."""
    port = free_port()

    def process(rank: int) -> None:
        torch.set_num_threads(1)  # a forked process has none of its parent's threads
        place = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "NODE_RANK": "0",
            "OMP_NUM_THREADS": "1",
        }
        os.environ.update(place | {"LOCAL_RANK": str(rank)})
        try:
            run()
        except WorldError as error:
            sys.exit(f"error: {error}")
        finally:
            with suppress(Exception):  # after a failure the others are gone
                torch.distributed.destroy_process_group()

    # Forked, because starting Python and PyTorch anew would take longer than all the rest.
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=process, args=(rank,), daemon=True) for rank in range(count)]
    for each in processes:
        each.start()
    return list(processes)


def wait_for(processes: list[BaseProcess], seconds: float = 60.0) -> list[int | None]:
    """Return the exit codes of processes once they have ended; None of one that has not after some time."""
    for each in processes:
        each.join(timeout=seconds)
    codes = [each.exitcode for each in processes]
    for each in processes:
        each.kill()
    return codes


def run_on_devices(run: Callable[[], object], count: int = 2) -> list[int | None]:
    """Run something as several processes of one machine and return their exit codes."""
    return wait_for(start_on_devices(run, count))


class HostLooks(TorchDispatchMode):
    """Note every operator that joins tensors of two devices, which is a copy that is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, out))
        if len({leaf.device for leaf in leaves if isinstance(leaf, Tensor)}) > 1:
            self.mixed.append(str(func))
        return out
