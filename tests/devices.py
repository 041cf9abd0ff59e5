"""Training runs on several devices: processes of this machine, started as a launcher would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess

import pytest
import torch

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
